"""Vision tasks: answers that a model paints are read on the grid of their picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.pipelines.ensembles import joined
from dit_heads.pipelines.vision_output import numbers
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.codecs import CODECS, DepthCodec
from dit_heads.tasks.depth_files import read_depth_png, save_depth_png
from tests.pipelines.seen import FAST, QUERIES, answer, seeing

ASKED: dict[str, Any] = {
    "segment": lambda see, image, **o: see.segment(image, "object", **o),
    "instances": lambda see, image, **o: see.instances(image, **o),
    "detect": lambda see, image, **o: see.detect(image, **o),
    "depth": lambda see, image, **o: see.depth(image, **o),
    "classify": lambda see, image, **o: see.classify(
        image, ["day", "sunset", "night"], **{"at_once": True, **o}
    ),
}
# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")


@pytest.mark.parametrize("task", QUERIES)
def test_an_answer_that_is_painted_rightly_is_read_rightly(task: Any, monkeypatch: pytest.MonkeyPatch):
    pictures, found, painted = zip(*(answer(index, task) for index in range(3)), strict=True)
    output = ASKED[task](seeing(monkeypatch, painted), list(pictures), batch_size=2)
    assert output.uncertainty is None and len(output.image) == 3
    for truth, own, picture in zip(found, output.annotations, painted, strict=True):
        expected = CODECS[task].decode(picture, QUERIES[task], None)
        assert type(own) is type(truth)
        if task != "detect":
            assert_close(numbers(own), numbers(expected), rtol=1e-4, atol=1e-4, equal_nan=True)
        else:
            read, right = sorted(own.boxes.tolist()), sorted(truth.boxes.tolist())
            assert_close(torch.tensor(read), torch.tensor(right), rtol=0, atol=3)


@pytest.mark.parametrize("task", QUERIES)
@pytest.mark.parametrize("form", ["np", "pt"])
def test_predictions_have_the_form_that_was_asked_for(task: str, form: str, monkeypatch: pytest.MonkeyPatch):
    see = seeing(monkeypatch)
    output = ASKED[task](see, [torch.rand(3, 17, 24)] * 2, output_type=form, **FAST)
    kind = torch.Tensor if form == "pt" else np.ndarray
    if task in ("segment", "depth"):
        shape = (2, 1, 17, 24) if form == "pt" else (2, 17, 24, 1)
        assert isinstance(output.prediction, kind) and tuple(output.prediction.shape) == shape
    elif task == "classify":
        assert isinstance(output.prediction, kind) and tuple(output.prediction.shape) == (2, 3)
    else:
        assert len(output.prediction) == 2 and all(isinstance(p, kind) for p in output.prediction)
    assert [picture.shape for picture in output.image] == [(1, 17, 24, 3)] * 2


def test_pictures_of_other_sizes_each_keep_their_own_grid(monkeypatch: pytest.MonkeyPatch):
    sizes = [(17, 24), (1, 1), (40, 31), (40, 31), (200, 100)]
    output = seeing(monkeypatch).depth([torch.rand(3, *size) for size in sizes], batch_size=3, **FAST)
    assert [p.shape[:2] for p in output.prediction] == sizes
    assert [a.metres.shape for a in output.annotations] == sizes


@pytest.mark.parametrize("one", [False, True])
def test_noise_is_drawn_picture_by_picture_whatever_the_batch(one: bool, monkeypatch: pytest.MonkeyPatch):
    see, pictures = seeing(monkeypatch), [torch.rand(3, 20, 20) for _ in range(3)]

    def painted(batch_size: int, chosen: list[int]) -> list[np.ndarray]:
        own = [torch.Generator().manual_seed(n) for n in chosen]
        generator = torch.Generator().manual_seed(7) if one else own
        given = {"generator": generator, "batch_size": batch_size, "ensemble_size": 2, **FAST}
        return see.depth([pictures[n] for n in chosen], **given).image

    together = painted(6, [0, 1, 2])
    for batch_size in (1, 4):
        for a, b in zip(painted(batch_size, [0, 1, 2]), together, strict=True):
            assert_close(a, b, atol=1e-4, rtol=1e-4)
    if not one:
        assert_close(painted(1, [2])[0], together[2], atol=1e-4, rtol=1e-4)
    assert np.abs(together[0][0] - together[0][1]).max() > 0.01


def test_a_smaller_working_size_comes_back_whole(monkeypatch: pytest.MonkeyPatch):
    see = seeing(monkeypatch)
    assert see.pipe.default_sample_size * see.pipe.vae_scale_factor == 32
    for resolution, grain in ((None, 2), (16, 4)):
        output = see.depth(torch.rand(3, 64, 64), processing_resolution=resolution, **FAST)
        (painted,) = output.image[0]
        assert painted.shape == (64, 64, 3)
        blocks = painted.reshape(64 // grain, grain, 64 // grain, grain, 3)
        assert np.array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


# --- ensembles ---


def test_a_pixel_goes_to_most_votes():
    votes = [Segmentation(np.array([[a, b]]), ("x", "y")) for a, b in ((0, 1), (0, 2), (1, 2))]
    found, doubt = joined(votes)
    assert isinstance(found, Segmentation) and found.labels.tolist() == [[0, 2]]
    assert_close(doubt, np.full((1, 2), 1 / 3))


def test_depth_is_the_median_of_those_that_know_it():
    nan, inf = float("nan"), float("inf")
    maps = [
        Depth.from_metres([row]) for row in ([1.0, 5.0, inf, 2.0], [3.0, 5.0, inf, nan], [2.0, nan, 9.0, nan])
    ]
    found, doubt = joined(maps)
    assert isinstance(found, Depth)
    assert found.valid.tolist() == [[True, True, False, False]]
    assert found.sky.tolist() == [[False, False, True, False]]
    assert found.metres[0, :2].tolist() == [2.0, 5.0]
    assert doubt is not None and doubt[0, :2].tolist() == [1.0, 0.0] and np.isnan(doubt[0, 2:]).all()


def test_probabilities_are_averaged():
    found, doubt = joined([Labels(("a", "b"), np.array(p)) for p in ([1.0, 0.0], [0.5, 0.5])])
    assert isinstance(found, Labels) and found.probabilities.tolist() == [0.75, 0.25]
    assert_close(doubt, np.array([0.25, 0.25]))


def test_boxes_of_one_object_become_one():
    one = Boxes(np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), ("a", "a"), (40, 40), np.array([1.0, 0.8]))
    two = Boxes(np.array([[2, 0, 12, 10], [0, 0, 10, 10]]), ("a", "b"), (40, 40), np.array([1.0, 0.5]))
    found, doubt = joined([one, two])
    assert isinstance(found, Boxes) and found.classes == ("a", "a", "b")
    assert found.boxes.tolist() == [[1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10]]
    assert_close(found.scores, np.array([1.0, 0.4, 0.25]))
    assert doubt is not None and doubt.tolist() == [0.0, 0.5, 0.5]
    none = Boxes(np.zeros((0, 4)), (), (40, 40))
    assert len(joined([none, none])[0]) == 0  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("task", ["segment", "detect", "depth", "classify"])
def test_an_ensemble_gives_an_uncertainty_of_the_same_shape(task: str, monkeypatch: pytest.MonkeyPatch):
    output = ASKED[task](seeing(monkeypatch), torch.rand(3, 16, 16), ensemble_size=3, **FAST)
    assert output.image[0].shape == (3, 16, 16, 3)
    if task == "detect":
        assert len(output.uncertainty[0]) == len(output.prediction[0])
    else:
        assert output.uncertainty.shape == output.prediction.shape


# --- out of the program ---


@pytest.mark.parametrize("task", QUERIES)
def test_every_answer_can_be_looked_at(task: str, monkeypatch: pytest.MonkeyPatch):
    picture, _, painted = answer(1, task)
    output = ASKED[task](seeing(monkeypatch, [painted]), picture)
    (shown,) = output.visualize(picture)
    assert shown.size == picture.size and shown.mode == "RGB"
    assert np.any(np.asarray(shown) != np.asarray(picture))


def test_depth_is_stored_in_16_bits_and_its_holes_as_0(tmp_path: Path):
    depth = Depth.from_metres([[1.0, 200.25, np.inf], [0.001, np.nan, 3.5]])
    save_depth_png(depth, tmp_path / "depth.png")
    stored = np.asarray(Image.open(tmp_path / "depth.png"))
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[256, round(200.25 * 256), 0], [1, 0, 896]]
    back = read_depth_png(tmp_path / "depth.png")
    assert back.valid.tolist() == [[True, True, False], [True, False, True]]
    assert_close(back.metres[back.valid].tolist(), [1.0, 200.25, 1 / 256, 3.5], atol=1 / 512, rtol=0)
    with pytest.raises(InputError, match="scale: expected one at which 200 metres fit into 16 bits"):
        save_depth_png(depth, tmp_path / "other.png", scale=1000)
    assert not (tmp_path / "other.png").exists()


def test_boxes_and_masks_leave_as_results_of_coco(monkeypatch: pytest.MonkeyPatch):
    for task in ("detect", "instances"):
        picture, found, painted = answer(1, task)
        output = ASKED[task](seeing(monkeypatch, [painted]), picture)
        entries = json.loads(json.dumps(output.coco([7], {"object": 3})))
        assert len(entries) == len(found)
        assert {(e["image_id"], e["category_id"]) for e in entries} == {(7, 3)}
        for entry, box in zip(entries, output.annotations[0].boxes if task == "detect" else [], strict=False):
            x, y, w, h = entry["bbox"]
            assert_close([x, y, x + w, y + h], box.tolist())
        with pytest.raises(InputError, match="expected an id for each class, got none for object"):
            output.coco([7], {})
        with pytest.raises(InputError, match="ids: expected 1, one a picture, got 2"):
            output.coco([7, 8], {"object": 3})


def test_instances_have_masks_as_predictions(monkeypatch: pytest.MonkeyPatch):
    picture, found, painted = answer(2, "instances")
    output = ASKED["instances"](seeing(monkeypatch, [painted]), picture)
    (own,) = output.annotations
    assert isinstance(own, Instances) and output.prediction[0].shape == (len(found), 128, 128)


def test_an_instruction_that_is_not_read_to_its_end_is_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.warns(UserWarning, match=r"the instruction: .*these words are lost: .*night"):
        ASKED["classify"](seeing(monkeypatch), torch.rand(3, 16, 16), **FAST)


# --- what is asked otherwise, and what cannot be ---


def test_a_codec_of_ones_own_and_other_words(monkeypatch: pytest.MonkeyPatch):
    picture, found, _ = answer(0, "depth")
    codec = DepthCodec("sqrt", "grey", near=0, far=40)
    see = seeing(monkeypatch, [codec.encode(found)])
    seen: list[Any] = []
    painted = see._painted
    monkeypatch.setattr(see, "_painted", lambda *a: seen.append(a[3]["prompt"]) or painted(*a))
    own = see.depth(picture, codec=codec, prompt="how far?").annotations[0]
    near = found.valid & (found.metres < 39)
    assert seen == [["how far?"]] and np.abs(own.metres - found.metres)[near].max() < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda see, x: see.segment(x, []), "names: expected one or more for segment"),
        (lambda see, x: see.segment(x, 3), "classes, answers: expected a name or a list of them, got 3"),
        (lambda see, x: see.classify(x, ["cat"]), "names: expected two or more for classify"),
        (lambda see, x: see.classify(x, []), "names: expected two or more for classify"),
        (lambda see, x: see.classify(x, ["a", "a"]), "names: expected each once"),
        (lambda see, x: see.detect(x, " "), "names: expected none of them empty"),
        (lambda see, x: see.instances(x, ensemble_size=2), "ensemble_size: expected 1 for instances"),
        (
            lambda see, x: see.depth(x, ensemble_size=0),
            "ensemble_size: expected a whole number of at least 1",
        ),
        (lambda see, x: see.depth(x, batch_size=0), "batch_size: expected a whole number of at least 1"),
        (lambda see, x: see.depth(x, output_type="pil"), "output_type: expected np or pt, got 'pil'"),
        (
            lambda see, x: see.depth(x, latents=x),
            "latents: expected none, since a task decides it, got Tensor",
        ),
        (
            lambda see, x: see.depth(x, generator=[None] * 2),
            "generator: expected one, or 1, one a picture, got 2",
        ),
        (lambda see, x: see.depth(x, steps=3), "steps: InstructPipeline and its .* take no such argument"),
        (lambda see, x: see.depth(None), "image: expected PIL images, arrays, tensors or paths, got None"),
        (
            lambda see, x: see.depth(x, processing_resolution=-1),
            "processing_resolution: expected a whole number",
        ),
    ],
)
def test_what_cannot_be_asked_is_named(call: Any, message: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=message):
        call(seeing(monkeypatch), torch.rand(3, 16, 16))
