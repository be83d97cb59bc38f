"""Pictures with answers as samples: which question, how often, mirrored together."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.loras.tasks.pairs import Questions, mirrored
from dit_heads.tasks.annotations import Boxes
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import TASKS

SIDE = 32


def questions(**changed: Any) -> Questions:
    given: dict[str, Any] = {"pairs": WorldPairs("train", 40, SIDE), "tasks": TASKS, "weights": (1.0,) * 5}
    given |= {
        "variety": 2,
        "flip": True,
        "seed": 0,
        "words": lambda query, key: CODECS[query.task].prompt(query),
    }
    return Questions(**given | changed)


def test_tasks_come_as_often_as_their_weights_say():
    asked = questions(tasks=("segment", "depth", "detect"), weights=(1.0, 3.0, 0.0))
    found = Counter(q.query.task for step in range(60) for q in asked.batch_at(step, 10))
    assert found.keys() == {"segment", "depth"} and 2.4 < found["depth"] / found["segment"] < 3.8


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    first, second = questions(), questions()
    [first.batch_at(step, 4) for step in range(3)]
    assert [q.words for q in first.batch_at(7, 4)] == [q.words for q in second.batch_at(7, 4)]
    other = questions(seed=1).batch_at(7, 4)
    assert [q.index for q in other] != [q.index for q in second.batch_at(7, 4)]


def test_a_picture_has_no_more_questions_of_a_task_than_were_asked_for():
    """So that the cache of encoded answers is bounded."""
    asked = questions(tasks=("segment",), weights=(1.0,), variety=2)
    found: dict[int, set[str]] = {}
    for step in range(200):
        for q in asked.batch_at(step, 4):
            found.setdefault(q.index, set()).add(q.target.key)
    assert max(map(len, found.values())) <= 4  # two questions, mirrored or not
    assert len(found) == 40


@pytest.mark.parametrize("task", TASKS)
def test_picture_and_answer_are_mirrored_together(task: Any):
    question = questions().asked(2, task, 0, "")
    flipped = replace(question, flip=True)
    picture, turned = (np.asarray(q.source.composite()) for q in (question, flipped))
    assert np.array_equal(picture[:, ::-1], turned)
    assert flipped.source.key != question.source.key and flipped.target.key != question.target.key
    answer, other = (np.asarray(q.target.composite()) for q in (question, flipped))
    if task == "instances":  # its colours follow the places
        assert np.array_equal(answer[:, ::-1].any(-1), other.any(-1))
    else:
        assert np.array_equal(answer[:, ::-1] if task != "classify" else answer, other)
    again = mirrored(mirrored(question.annotation()))
    for name, value in vars(question.annotation()).items():
        assert np.array_equal(value, getattr(again, name))


def test_mirrored_boxes_stay_boxes():
    box = Boxes(np.array([[1.0, 2.0, 5.0, 9.0]]), ("cube",), (10, 20))
    assert mirrored(box).boxes.tolist() == [[15.0, 2.0, 19.0, 9.0]]  # pyright: ignore


def test_a_hundred_thousand_pictures_cost_nothing_to_begin_with():
    asked = questions(pairs=WorldPairs("train", 100_000, SIDE))
    rendered = asked.pairs._rendered.cache_info()  # pyright: ignore
    batch = asked.batch_at(0, 16)
    assert len({q.index for q in batch}) == 16 and rendered.misses == 0
    assert all(q.source.key for q in batch)
    assert asked.pairs._rendered.cache_info().misses == 0  # pyright: ignore
