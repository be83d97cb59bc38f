"""Head-level guidance for diffusion transformers, on the diffusers pipeline you already have.

Only the standard library is imported here; what needs torch is imported on first use, so that
`import dit_heads` and `dit-heads --help` stay fast.
"""

from typing import TYPE_CHECKING

from dit_heads._lazy import lazy_exports

if TYPE_CHECKING:
    from dit_heads.embedded import load_embedded
    from dit_heads.guidance import HeadGuidance
    from dit_heads.heads import HeadId, HeadSet
    from dit_heads.hunt.hunter import HeadHunter

__version__ = "0.1.0"
__all__ = ["HeadGuidance", "HeadHunter", "HeadId", "HeadSet", "__version__", "load_embedded"]

_HOME = {
    "HeadGuidance": "dit_heads.guidance",
    "HeadHunter": "dit_heads.hunt",
    "HeadId": "dit_heads.heads",
    "HeadSet": "dit_heads.heads",
    "load_embedded": "dit_heads.embedded",
}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
