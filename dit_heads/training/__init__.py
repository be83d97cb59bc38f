"""The one training loop: any loss, averaged weights, checkpoints, exact resume."""

from typing import TYPE_CHECKING

from dit_heads._lazy import lazy_exports

if TYPE_CHECKING:
    from dit_heads.training.batch import Batch
    from dit_heads.training.loop import FitConfig, Loss, Part, Watch, fit

__all__ = ["Batch", "FitConfig", "Loss", "Part", "Watch", "fit"]

_HOME = {name: "dit_heads.training.loop" for name in __all__} | {"Batch": "dit_heads.training.batch"}
__getattr__, __dir__ = lazy_exports(globals(), _HOME)
