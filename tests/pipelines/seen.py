"""Pipelines that see: of random weights, or such as paint what a test says."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.pipelines.sources import Frame
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import Query
from tests.saved import tiny_pipeline

PAIRS = WorldPairs("train", 8)
QUERIES: dict[Any, Query] = {
    "segment": Query("segment", ("object",)),
    "instances": Query("instances", ("object",)),
    "detect": Query("detect", ("object",)),
    "depth": Query("depth"),
    "classify": Query("classify", ("day", "sunset", "night")),
}
FAST: dict[str, Any] = {"num_inference_steps": 1, "max_sequence_length": 8}


def seeing(monkeypatch: pytest.MonkeyPatch, paint: Any = None) -> InstructPipeline:
    """A pipeline of random weights, or one that paints what `paint` says for each picture in turn."""
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    see = InstructPipeline(pipe, "tokens")
    if paint is not None:
        answers = iter(paint)

        def painted(seen: Any, size: tuple[int, int], scale: float, call: dict[str, Any]) -> torch.Tensor:
            out = torch.zeros(len(seen[0]), 3, *size)
            for row in out:
                picture = torch.from_numpy(np.array(next(answers))).permute(2, 0, 1) / 255
                row[:, : picture.shape[1], : picture.shape[2]] = picture
            return out

        monkeypatch.setattr(see, "_painted", painted)
        monkeypatch.setattr(see, "_noise", lambda frames, n, g: [[torch.zeros(1)] * n] * len(frames))
        monkeypatch.setattr(see, "frame", lambda s, longest: Frame.of(tuple(s[0].shape[1:]), 16))
    return see


def answer(index: int, task: Any, size: tuple[int, int] = (128, 128)) -> tuple[Image.Image, Any, np.ndarray]:
    """A picture, the answer to the query of a task, and that painted."""
    picture, found = PAIRS.picture(index), PAIRS.answer(index, QUERIES[task])
    return picture, found, CODECS[task].encode(found, QUERIES[task], np.asarray(picture))
