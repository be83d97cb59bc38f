"""Several names are asked for one by one, and the answers joined; or at once, as one instruction says."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from dit_heads.pipelines.apart import apart, together
from dit_heads.tasks.annotations import Boxes, Labels, Segmentation
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import OTHER, Query
from tests.pipelines.seen import FAST, PAIRS, seeing

# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")
NAMES = ("cube", "sphere", "cone")


def test_each_name_has_a_question_of_its_own():
    assert apart(Query("segment", NAMES)) == [Query("segment", (name,)) for name in NAMES]
    assert apart(Query("detect", NAMES[:2])) == [Query("detect", (name,)) for name in NAMES[:2]]
    assert apart(Query("classify", NAMES)) == [Query("classify", (name, OTHER)) for name in NAMES]


@pytest.mark.parametrize(
    "query",
    [
        Query("depth"),
        Query("segment", ("cube",)),
        Query("segment", ("cube", "cone"), ("red", "blue")),
        Query("classify", ("cube", OTHER)),
    ],
)
def test_what_cannot_be_taken_apart_stays(query: Query):
    assert apart(query) == [query]


def test_a_pixel_that_two_classes_claim_is_of_the_last():
    first, second = np.array([[1, 1, 0]]), np.array([[0, 1, 0]])
    parts = [Segmentation(first, ("cube",)), Segmentation(second, ("red object",))]
    found: Any = together(Query("segment", ("cube", "red object")), parts)
    assert found.labels.tolist() == [[1, 2, 0]] and found.classes == ("cube", "red object")


def test_boxes_of_all_names_are_found():
    one = Boxes(np.array([[0.0, 0, 4, 4]]), ("cube",), (8, 8), np.array([0.9]))
    none = Boxes(np.zeros((0, 4)), (), (8, 8))
    found: Any = together(Query("detect", ("cube", "cone")), [one, none])
    assert found.classes == ("cube",) and found.scores.tolist() == [0.9] and found.boxes.shape == (1, 4)


def test_probabilities_are_shares_of_those_of_each_answer():
    parts = [
        Labels((name, OTHER), np.array([p, 1 - p])) for name, p in zip(NAMES, (0.6, 0.3, 0.3), strict=True)
    ]
    found: Any = together(Query("classify", NAMES), parts)
    assert found.answers == NAMES
    assert_allclose(found.probabilities, [0.5, 0.25, 0.25])


def test_answers_painted_one_by_one_give_the_answer_about_all(monkeypatch: pytest.MonkeyPatch):
    query, index = Query("segment", ("object", "sky", "ground")), 3
    picture, codec = PAIRS.picture(index), CODECS["segment"]
    truth: Any = PAIRS.answer(index, query)
    painted = [codec.encode(PAIRS.answer(index, one), one, np.asarray(picture)) for one in apart(query)]
    output = seeing(monkeypatch, painted).segment(picture, list(query.names))
    assert np.array_equal(output.annotations[0].labels, truth.labels)
    assert output.image[0].shape == (3, 128, 128, 3)


def test_an_ensemble_asks_each_member_about_every_name(monkeypatch: pytest.MonkeyPatch):
    see = seeing(monkeypatch)
    prompts: list[str] = []
    painted = see._painted
    monkeypatch.setattr(see, "_painted", lambda *a: prompts.extend(a[3]["prompt"]) or painted(*a))
    output = see.classify(torch.rand(3, 16, 16), NAMES, ensemble_size=2, **FAST)
    words = [CODECS["classify"].prompt(one) for one in apart(Query("classify", NAMES))]
    assert prompts == words * 2
    assert output.uncertainty.shape == (1, 3)


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_at_once_there_is_one_instruction(task: Any, monkeypatch: pytest.MonkeyPatch):
    see = seeing(monkeypatch)
    prompts: list[str] = []
    painted = see._painted
    monkeypatch.setattr(see, "_painted", lambda *a: prompts.extend(a[3]["prompt"]) or painted(*a))
    ask = getattr(see, task)
    ask(torch.rand(3, 16, 16), NAMES, at_once=True, **FAST)
    ask(torch.rand(3, 16, 16), NAMES, prompt="what is where?", **FAST)
    assert prompts == [CODECS[task].prompt(Query(task, NAMES)), "what is where?"]


def test_a_picture_is_encoded_once_whatever_is_asked_about_it(monkeypatch: pytest.MonkeyPatch):
    see, encoded = seeing(monkeypatch), []
    latents = see.latents
    monkeypatch.setattr(see, "latents", lambda pictures: encoded.extend(pictures) or latents(pictures))
    see.classify([torch.rand(3, 16, 16)] * 2, NAMES, ensemble_size=2, batch_size=4, **FAST)
    assert len(encoded) == 2
