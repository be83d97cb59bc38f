"""Depth and instances of pictures of any form, with a solver and tokenizers of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_heads import load_embedded
from dit_heads.embedded.soft_tokens.truth import Encoder
from dit_heads.errors import InputError
from dit_heads.pipelines import SoftTokenPipeline, with_soft_tokens
from dit_heads.tasks.annotations import Boxes, Depth, Instances
from dit_heads.tasks.query import Query
from dit_heads.tasks.soft_tokens.features import FeatureConfig
from dit_heads.tasks.soft_tokens.files import save_module
from dit_heads.tasks.soft_tokens.reading import HARD, SoftReader
from dit_heads.tasks.soft_tokens.solver import Solver, SolverConfig
from tests.pipelines.tokens_made import HEADS, SMALL, WORDS, parts, saved


@pytest.fixture(scope="module")
def see() -> SoftTokenPipeline:
    return SoftTokenPipeline(load_embedded("sd3"), parts())


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_answers_are_those_of_the_reader_on_the_features_of_the_picture(see: SoftTokenPipeline):
    image = picture(128, 128)
    encoder = object.__new__(Encoder)  # the pipeline that is there already
    encoder.pipe, encoder.device = see.pipe, torch.device("cpu")
    found: Any = see(image)
    assert see._text is not None
    encoder.text, encoder.pooled = see._text
    features = encoder.features(image[None], HEADS)
    read = see.reader.read_depth(features)
    metres = see.reader.depth.range.metres(read.values)[0]
    valid = found.depth.annotations[0].valid
    assert np.allclose(found.depth.annotations[0].metres[valid], metres.numpy()[valid], rtol=1e-4)
    assert np.allclose(found.depth_probabilities, read.probability, atol=1e-5)
    (objects,) = see.reader.read_objects(features)
    assert found.instances.annotations[0].classes == objects.instances((128, 128)).classes
    assert {k: v.shape for k, v in found.object_probabilities[0].items()} == {
        "box": (len(objects.classes), 4, 33),
        "class": (len(objects.classes), 3),
        "mask": (len(objects.classes), 4, 10),
    }


@pytest.mark.parametrize("form", ["np", "pt"])
def test_answers_lie_on_the_grid_of_a_picture_of_any_size(see: SoftTokenPipeline, form: str, tmp_path: Path):
    file = tmp_path / "a.png"
    Image.fromarray(picture(50, 90)).save(file)
    given = [file, picture(70, 31), Image.fromarray(picture(20, 20))]
    found: Any = see(given, output_type=form, batch_size=2)
    for each, size in zip(found.depth.annotations, ((50, 90), (70, 31), (20, 20)), strict=True):
        assert isinstance(each, Depth) and each.metres.shape == size
    assert [each.shape for each in found.uncertainty] == [(50, 90), (70, 31), (20, 20)]
    assert all(each.min() >= 0 and each.max() <= 1 for each in found.uncertainty)
    shape = (1, 50, 90) if form == "pt" else (50, 90, 1)
    assert tuple(found.depth.prediction[0].shape) == tuple(found.depth.uncertainty[0].shape) == shape
    for each, doubts in zip(found.instances.annotations, found.instances.uncertainty, strict=True):
        assert isinstance(each, Instances) and len(each) == len(doubts)
    assert found.depth.visualize([file, picture(70, 31), picture(20, 20)])[0].size == (90, 50)


def test_batches_change_nothing_and_a_large_tau_is_hard(see: SoftTokenPipeline):
    images = [picture(128, 128, seed) for seed in range(3)]
    one, together = see.depth(images, batch_size=1), see.depth(images, batch_size=3)
    assert np.allclose(one.prediction, together.prediction, rtol=1e-3)
    options: list[dict[str, Any]] = [{"hard": True}, {"tau": 1e7}, {}]
    hard, almost, soft = (see.depth(images[0], **o) for o in options)
    assert np.allclose(hard.prediction, almost.prediction, rtol=1e-2)
    assert not np.allclose(hard.prediction, soft.prediction, rtol=1e-2)
    assert see.reader.read_depth(torch.zeros(1, 64, 96), HARD).values.isfinite().all()


def test_with_flips_a_mirrored_picture_has_the_mirrored_depth(see: SoftTokenPipeline):
    image = picture(128, 128)
    a, b = see.depth(image, flips=True), see.depth(np.ascontiguousarray(image[:, ::-1]), flips=True)
    assert np.allclose(a.prediction, b.prediction[:, :, ::-1], rtol=1e-3)
    assert not np.allclose(a.prediction, see.depth(image).prediction, rtol=1e-2)


def test_questions_are_answered_in_the_form_of_instructcv(see: SoftTokenPipeline):
    image = picture(128, 128)
    everything = see.instances(image)
    boxes = see.ask(image, Query("detect", ("cube",)))
    assert isinstance(boxes.annotations[0], Boxes) and set(boxes.annotations[0].classes) <= {"cube"}
    assert len(boxes.annotations[0]) == everything.annotations[0].classes.count("cube")
    assert see.ask(image, "how far is everything?").query.task == "depth"
    assert boxes.image == [] and len(boxes.uncertainty[0]) == len(boxes.annotations[0])


def test_what_it_cannot_answer_is_refused(see: SoftTokenPipeline):
    image = picture(16, 16)
    with pytest.raises(InputError, match="expected some of cube, cone, object, got dog"):
        see.instances(image, "dog")
    with pytest.raises(InputError, match="soft tokens answer depth, instances, detect, got classify"):
        see.ask(image, Query("classify", ("day", "night")))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"output_type": "pil"}, "output_type"),
        ({"batch_size": 0}, "batch_size"),
        ({"tau": 0.0}, "tau"),
    ]
    for wrong, message in refused:
        with pytest.raises(InputError, match=message):
            see(image, **wrong)
    with pytest.raises(InputError, match="image: expected a picture or several"):
        see([])
    with pytest.raises(InputError, match="got object"):
        SoftTokenPipeline(object(), see.reader)


def test_files_that_do_not_fit_together_are_refused(see: SoftTokenPipeline, tmp_path: Path):
    reader = see.reader
    saved(reader, tmp_path)
    loaded = with_soft_tokens(see.pipe, tmp_path)
    image = picture(128, 128)
    a, b = (each.depth(image).prediction for each in (loaded, see))  # in fp16, a few pixels of sky change
    assert np.isclose(a, b, rtol=0.05).mean() > 0.99
    save_module(reader.depth, reader.depth.config, tmp_path / "mask.safetensors")
    with pytest.raises(InputError, match="mask with 4 tokens of 10 codes, got one of depth"):
        with_soft_tokens(see.pipe, tmp_path)
    (tmp_path / "depth.safetensors").unlink()
    with pytest.raises(InputError, match="expected a file of weights"):
        with_soft_tokens(see.pipe, tmp_path)
    other = SolverConfig(vocabulary=WORDS, features=FeatureConfig("L1"), channels=96, kept=96, **SMALL)
    with pytest.raises(InputError, match=r"pipe: expected a model with 96 channels of features, .*, got 192"):
        SoftTokenPipeline(see.pipe, SoftReader(Solver(other), reader.depth, reader.mask))
