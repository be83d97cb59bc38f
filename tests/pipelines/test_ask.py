"""Questions in free words are answered by the task that they mean."""

from typing import Any

import numpy as np
import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes, Labels
from tests.pipelines.seen import FAST, QUERIES, answer, seeing

# The tokenizers of tiny pipelines read letters, so that an instruction is longer than their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*these words are lost")
TEXTS = {
    "segment the object": ("segment", lambda see, x, **o: see.segment(x, "object", **o)),
    "segment every cube individually": ("instances", lambda see, x, **o: see.instances(x, "cube", **o)),
    "where are the cubes?": ("detect", lambda see, x, **o: see.detect(x, "cube", **o)),
    "how far is everything?": ("depth", lambda see, x, **o: see.depth(x, **o)),
    "is it day or night?": ("classify", lambda see, x, **o: see.classify(x, ["day", "night"], **o)),
}


@pytest.mark.parametrize(
    "text", [pytest.param(t, marks=[] if "how" in t else [pytest.mark.slow]) for t in TEXTS]
)
def test_a_question_in_free_words_is_answered_by_its_task(text: str, monkeypatch: pytest.MonkeyPatch):
    see, (task, asked) = seeing(monkeypatch), TEXTS[text]
    pictures = [torch.rand(3, 16, 24), torch.rand(3, 20, 16)]
    made: Any = {"generator": None, "ensemble_size": 1, **FAST}
    one, other = (
        call(generator=[torch.Generator().manual_seed(k) for k in (1, 2)])
        for call in (
            lambda **o: see.ask(pictures, text, **{**made, **o}),
            lambda **o: asked(see, pictures, **{**made, **o}),
        )
    )
    assert one.query == other.query and one.query.task == task
    assert len(one.annotations) == 2
    for a, b in zip(one.prediction, other.prediction, strict=True):
        assert np.array_equal(a, b, equal_nan=task == "depth")


def test_colours_in_the_words_are_those_that_are_read(monkeypatch: pytest.MonkeyPatch):
    painted = np.full((16, 16, 3), (40, 70, 220), np.uint8)
    see = seeing(monkeypatch, [painted, painted])
    for colours, right in (("red for cat, blue for dog", "dog"), ("blue for cat, red for dog", "cat")):
        found = see.ask(torch.rand(3, 16, 16), f"Answer with a colour: {colours}.").annotations[0]
        assert isinstance(found, Labels) and found.best == right


def test_a_ready_query_is_a_question_too(monkeypatch: pytest.MonkeyPatch):
    picture, _, painted = answer(1, "detect")
    output = seeing(monkeypatch, [painted]).ask(picture, QUERIES["detect"])
    assert output.query == QUERIES["detect"] and isinstance(output.annotations[0], Boxes)


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("make it prettier", (), 'no task is understood in .*; try such as "segment the cube'),
        ("segment", (), "names nothing to segment"),
        ("what is it?", (), "names no answers"),
        ("where is the dog?", ("cube", "cone"), "'dog' is not known; there are cube, cone"),
        ("", (), "no task is understood in ''"),
        (None, (), "question: expected text, got NoneType"),
    ],
)
def test_words_that_are_not_understood_are_answered_with_what_can_be_asked(
    text: Any, known: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match=message):
        seeing(monkeypatch).ask(torch.rand(3, 16, 16), text, known)
