"""Drop-in pipelines: classes of diffusers whose call also takes heads."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, ClassVar

from diffusers import (
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)

from dit_heads.errors import InputError
from dit_heads.guidance import HeadGuidance

_TASKS: tuple[Any, ...] = (
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
)
# Additional arguments of `__call__` -> arguments of HeadGuidance.
_OPTIONS = {
    "head_guidance_scale": "scale",
    "softness": "softness",
    "perturbation": "perturbation",
    "region": "region",
    "temperature": "temperature",
    "head_guidance_start": "start",
    "head_guidance_stop": "stop",
    "head_guidance_rescale": "rescale",
    "head_guidance_every": "every",
    "trunk": "trunk",
}


class HeadsMixin:
    """Adds the options of `HeadGuidance` to a pipeline's `__call__`: `heads`, `head_guidance_scale`, ...

    Without `heads`, the call is that of the parent class. After a guided call, `head_guidance_report` holds
    its report. Folders written by `save_pretrained` name the parent class, so that stock diffusers loads
    them.
    """

    stock: ClassVar[type]
    head_guidance_report: Any = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "stock"):  # a subclass of a drop-in class inherits it with the guided call
            cls.stock = next(kind for kind in cls.__mro__ if not issubclass(kind, HeadsMixin))
            cls.__call__ = _guided(cls.stock.__call__)
            _link(cls)

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string())  # pyright: ignore[reportAttributeAccessIssue]
        return json.dumps(config | {"_class_name": self.stock.__name__}, indent=2, sort_keys=True) + "\n"


def _link(cls: type[HeadsMixin]) -> None:
    """Register a drop-in class with diffusers' AutoPipelines, so that `from_pipe` can turn the drop-in
    pipeline of one task into that of another."""
    for task in _TASKS:
        model = next((model for model, kind in task.items() if kind is cls.stock), None)
        if model is not None:
            task[f"{model}-heads"] = cls


def _guided(call: Callable[..., Any]) -> Callable[..., Any]:
    """The parent's `__call__` with the options of head guidance added."""

    @functools.wraps(call)
    def guided(self: Any, *args: Any, heads: Any = None, **kwargs: Any) -> Any:
        options = {name: kwargs.pop(asked) for asked, name in _OPTIONS.items() if asked in kwargs}
        if heads is None:
            if options:
                raise InputError(
                    f"heads: expected heads to guide by, got none with {', '.join(sorted(options))}"
                )
            return call(self, *args, **kwargs)
        with HeadGuidance(self, heads, **options) as guidance:
            output = call(self, *args, **kwargs)
        self.head_guidance_report = guidance.report
        return output

    guided.__signature__ = _signature(call)  # pyright: ignore[reportAttributeAccessIssue]
    return guided


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    own = inspect.signature(call)
    theirs = inspect.signature(HeadGuidance.__init__).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter("heads", keyword, default=None)]
    added += [theirs[name].replace(name=asked, kind=keyword) for asked, name in _OPTIONS.items()]
    return own.replace(parameters=[*own.parameters.values(), *added])


class StableDiffusion3HeadsPipeline(HeadsMixin, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` guided by attention heads."""


class StableDiffusion3HeadsImg2ImgPipeline(HeadsMixin, StableDiffusion3Img2ImgPipeline):
    """`StableDiffusion3Img2ImgPipeline` guided by attention heads."""


class StableDiffusion3HeadsInpaintPipeline(HeadsMixin, StableDiffusion3InpaintPipeline):
    """`StableDiffusion3InpaintPipeline` guided by attention heads."""


class FluxHeadsPipeline(HeadsMixin, FluxPipeline):
    """`FluxPipeline` guided by attention heads."""


class FluxHeadsImg2ImgPipeline(HeadsMixin, FluxImg2ImgPipeline):
    """`FluxImg2ImgPipeline` guided by attention heads."""


class FluxHeadsInpaintPipeline(HeadsMixin, FluxInpaintPipeline):
    """`FluxInpaintPipeline` guided by attention heads."""
