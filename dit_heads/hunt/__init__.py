"""The search for heads: `HeadHunter` finds them, `tune` finds how strongly they should guide."""

from typing import TYPE_CHECKING

from dit_heads._lazy import lazy_exports

if TYPE_CHECKING:
    from dit_heads.hunt.config import HuntConfig
    from dit_heads.hunt.hunter import HeadHunter
    from dit_heads.hunt.result import Result

__all__ = ["HeadHunter", "HuntConfig", "Result"]

_HOME = {
    "HeadHunter": "dit_heads.hunt.hunter",
    "HuntConfig": "dit_heads.hunt.config",
    "Result": "dit_heads.hunt.result",
}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
