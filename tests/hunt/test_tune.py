"""Sweeps of scale and softness."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from PIL import Image

from dit_heads import HeadGuidance, HeadHunter, HeadSet
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.trials import Strength
from dit_heads.hunt.tune import Tuning, tune, write_tuning
from tests.saved import red, tiny_pipeline

HEADS = HeadSet.parse("L0H1, L2H2")
CALL = {"max_sequence_length": 8}


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunter(pipe: Any, folder: Path) -> HeadHunter:
    return HeadHunter(pipe, red, ["a cat", "two dogs"], folder, HuntConfig(steps=2, batch=3), call=CALL)


def test_every_strength_is_scored_by_pictures_of_its_own(pipe, tmp_path):
    search = hunter(pipe, tmp_path)
    found = tune(search, HEADS, (1.0, 4.0), (0.5, 1.0))
    assert set(found.scores) == {(w, u) for w in (1.0, 4.0) for u in (0.5, 1.0)}
    for (scale, softness), scores in found.scores.items():
        for score, (prompt, seed) in zip(scores, search.pairs, strict=True):
            with HeadGuidance(pipe, HEADS, scale=scale, softness=softness):
                image = pipe(
                    prompt, generator=torch.Generator().manual_seed(seed), guidance_scale=1.0,
                    num_inference_steps=2, output_type="pt", **CALL,
                ).images  # fmt: skip
            assert score == pytest.approx(red(image, None).item(), abs=1e-5)
    drawn = len(search.log)
    assert tune(search, HEADS, (1.0, 4.0), (0.5, 1.0)) == found and len(search.log) == drawn == 2 * 5


def test_the_best_strength_has_the_highest_mean_and_of_equals_the_weakest():
    gains = {(1.0, 0.5): [1.0, 2.0], (2.0, 0.5): [2.0, 2.0], (2.0, 1.0): [1.0, 3.0], (3.0, 0.5): [0.0, 0.0]}
    scores = {Strength(*strength): found for strength, found in gains.items()}
    found = Tuning(HEADS, scores, [1.0, 1.0])
    assert found.best == (2.0, 0.5) and found.gain(Strength(1.0, 0.5)) == 0.5
    assert "best at scale 2, softness 0.5, +1.0000 over 1.0000 without heads" in str(found)


def test_what_is_written(pipe, tmp_path):
    search = hunter(pipe, tmp_path)
    found = tune(search, HEADS, (1.0, 4.0, 8.0), (1.0,))
    paths = write_tuning(search, found, tmp_path)
    assert HeadSet.load(paths[0]) == HEADS
    stored = json.loads(paths[0].read_text())
    assert (stored["scale"], stored["softness"]) == found.best
    assert [row["mean"] for row in stored["grid"]] == [fmean(s) for s in found.scores.values()]
    for path in paths[1:]:
        with Image.open(path) as image:
            assert image.width > 300


@pytest.mark.parametrize(
    ("scales", "softnesses", "message"),
    [
        ((), (1.0,), "scales: expected positive numbers"),
        ((0.0,), (1.0,), "scales"),
        ((1.0,), (0.0, 1.0), "softnesses"),
        ((1.0,), (1.5,), "softnesses: expected numbers above 0"),
        ((1.0,), (), "softnesses"),
    ],
)
def test_bad_grids_are_refused(pipe, tmp_path, scales, softnesses, message):
    with pytest.raises(ValueError, match=message):
        tune(hunter(pipe, tmp_path), HEADS, scales, softnesses)
