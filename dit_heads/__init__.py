"""Head-level guidance for diffusion transformers, on the diffusers pipeline you already have.

Only the standard library is imported here; what needs torch is imported on first use (PEP 562), so that
`import dit_heads` and `dit-heads --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_heads.embedded import load_embedded
    from dit_heads.guidance import HeadGuidance
    from dit_heads.heads import HeadId, HeadSet
    from dit_heads.hunter import HeadHunter

__version__ = "0.1.0"
__all__ = ["HeadGuidance", "HeadHunter", "HeadId", "HeadSet", "__version__", "load_embedded"]

_HOME = {
    "HeadGuidance": "dit_heads.guidance",
    "HeadHunter": "dit_heads.hunter",
    "HeadId": "dit_heads.heads",
    "HeadSet": "dit_heads.heads",
    "load_embedded": "dit_heads.embedded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dit_heads' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
