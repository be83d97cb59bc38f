"""Answers of vision tasks as pictures: `encode` draws one, `decode` reads it, with no model in between."""

from __future__ import annotations

from typing import Any, Protocol

from dit_heads.tasks.annotations import Annotation
from dit_heads.tasks.codecs.boxes import BoxCodec
from dit_heads.tasks.codecs.depth import DepthCodec
from dit_heads.tasks.codecs.instances import InstanceCodec
from dit_heads.tasks.codecs.labels import LabelCodec
from dit_heads.tasks.codecs.masks import MaskCodec
from dit_heads.tasks.codecs.pixels import Picture
from dit_heads.tasks.query import Query, Task

__all__ = ["CODECS", "BoxCodec", "Codec", "DepthCodec", "InstanceCodec", "LabelCodec", "MaskCodec"]


class Codec(Protocol):
    """How the answers of a task are drawn and read."""

    def prompt(self, query: Query) -> str:
        """The plain instruction for a query."""
        ...

    def encode(self, annotation: Any, query: Query, source: Any = None) -> Picture:
        """The picture of an answer; some are drawn on the source."""
        ...

    def decode(self, image: Any, query: Query, source: Any = None) -> Annotation:
        """The answer that a picture shows, a model's or that of `encode`."""
        ...


CODECS: dict[Task, Codec] = {
    "segment": MaskCodec(),
    "instances": InstanceCodec(),
    "detect": BoxCodec(),
    "depth": DepthCodec(),
    "classify": LabelCodec(),
}
"""The codec of each task with its defaults, which docs/vision.md accounts for."""
