"""What may change in a model under head guidance, and what may not."""

from __future__ import annotations

from typing import Any

from dit_heads.compat import surface
from dit_heads.errors import InputError
from dit_heads.families import HeadLayout
from dit_heads.families.processors import HeadProcessor
from dit_heads.guidance.checks import check_runs_hooks


class ModelWatch:
    """Remembers a model as it is now, and notices changes that would hide calls or heads.

    Args:
        transformer: the model, with our processors in place.
        layout: of the model.
        fork: the first perturbed block. Attention before it is nobody's concern.
    """

    def __init__(self, transformer: Any, layout: HeadLayout, fork: int) -> None:
        self._transformer, self._layout, self._fork = transformer, layout, fork
        self._processors = [attn.processor for _, attn in self._attentions()]
        self._modules = list(transformer.modules())
        self._surfaces = [surface(module) for module in self._modules]

    def unlike_stock(self) -> str | None:
        """The first attention from the fork on whose processor is unknown, or None. Such a processor may look
        across the rows of a batch, so that a grown batch would change what it computes."""
        known = self._layout.family.processor.replaceable
        for path, attn in self._attentions():
            if not isinstance(attn.processor, HeadProcessor) and type(attn.processor) not in known:
                return f"{path} has {type(attn.processor).__name__}"
        return None

    def check_untouched(self) -> None:
        """Check that the model is as it was. Offloading and casting may have moved it.

        Raises:
            InputError: for another attention processor from the fork on, modules that came or went (a LoRA),
                a cache, and compilation.
        """
        surfaces = [surface(module) for module in self._modules]
        changed = surfaces != self._surfaces
        if changed:
            check_runs_hooks(self._transformer, self._layout)
        for (path, attn), processor in zip(self._attentions(), self._processors, strict=True):
            if attn.processor is not processor:
                raise InputError(
                    f"{path}: its attention processor was replaced by {type(attn.processor).__name__} while "
                    "head guidance is attached; detach, change the model, attach again"
                )
        if changed and list(map(id, self._transformer.modules())) != list(map(id, self._modules)):
            raise InputError(
                f"{self._layout.model}: its modules were changed (a LoRA loaded?) while head guidance is "
                "attached; detach, change the model, attach again"
            )
        self._surfaces = surfaces

    def _attentions(self) -> list[tuple[str, Any]]:
        """Path and module of every attention from the fork on."""
        blocks = range(self._fork, len(self._layout.blocks))
        paths = [f"{self._layout.blocks[b]}.{name}" for b in blocks for name in self._layout.attentions(b)]
        return [(path, self._transformer.get_submodule(path)) for path in paths]
