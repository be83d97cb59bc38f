"""Questions about the blocks world have the answers that its renderer knows."""

import numpy as np
import pytest

from dit_heads.embedded.pairs import WorldPairs
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import render
from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.codecs import CODECS
from dit_heads.tasks.query import OTHER, TASKS, Query

PAIRS = WorldPairs("train", 20)
COUNT = 60


@pytest.mark.parametrize("task", TASKS)
def test_every_question_has_an_answer_that_its_codec_can_draw(task):
    rng, named = np.random.default_rng(0), set()
    for number in range(COUNT):
        query = PAIRS.question(number, task, rng)
        named.add(query.names)
        if number < 8:
            drawn = CODECS[task].encode(PAIRS.answer(number, query), query, np.asarray(PAIRS.picture(number)))
            assert drawn.shape == (128, 128, 3) and drawn.dtype == np.uint8
    assert len(named) > 10 or task == "depth"


def test_the_same_question_comes_from_the_same_random_numbers():
    for task in TASKS:
        first, second = (PAIRS.question(3, task, np.random.default_rng(5)) for _ in range(2))
        assert first == second


def test_a_mask_is_what_the_renderer_drew():
    scene = scene_of("train", 0)
    ids, depth = render(scene).ids, render(scene).depth
    found = PAIRS.answer(0, Query("segment", ("object",)))
    assert isinstance(found, Segmentation) and np.array_equal(found.mask("object"), ids > 0)
    both = PAIRS.answer(0, Query("segment", ("sky", "ground")))
    assert isinstance(both, Segmentation)
    assert np.array_equal(both.mask("sky"), np.isinf(depth) & (ids == 0))
    assert np.array_equal(both.labels > 0, ids == 0)


def test_masks_boxes_and_numbers_agree():
    for index in range(12):
        scene, query = scene_of("train", index), Query("instances", ("object",))
        masks, boxes = PAIRS.answer(index, query), PAIRS.answer(index, Query("detect", ("object",)))
        assert isinstance(masks, Instances) and isinstance(boxes, Boxes)
        assert len(masks) == len(boxes) == len(scene.solids)
        assert np.array_equal(masks.boxes().boxes, boxes.boxes)
        answer = PAIRS.answer(index, Query("classify", ("one", "two", "three")))
        assert isinstance(answer, Labels) and answer.best == ("one", "two", "three")[len(masks) - 1]


def test_half_of_the_choices_and_more_ask_whether_an_answer_is_true():
    rng, found = np.random.default_rng(0), []
    for index in range(8):
        for _ in range(10):
            query = PAIRS.question(index, "classify", rng)
            if OTHER in query.names:
                name, _ = query.names
                scene = scene_of("train", index)
                facts = {scene.ground, scene.sky, ("one", "two", "three")[len(scene.solids) - 1]}
                facts |= {f"{s.colour} object" for s in scene.solids} | {s.shape for s in scene.solids}
                answer = PAIRS.answer(index, query)
                assert isinstance(answer, Labels) and answer.best == (name if name in facts else OTHER)
                found.append(name in facts)
    assert len(found) > 40 and 0.2 < np.mean(found) < 0.6


def test_a_colour_and_a_shape_name_what_is_both():
    for index in range(12):
        for solid in scene_of("train", index).solids:
            query = Query("detect", (f"{solid.colour} {solid.shape}",))
            boxes = PAIRS.answer(index, query)
            assert isinstance(boxes, Boxes) and len(boxes) >= 1
    absent = PAIRS.answer(0, Query("segment", ("purple cone",)))
    assert isinstance(absent, Segmentation) and not absent.labels.any()


def test_depth_is_in_metres_and_the_sky_has_none():
    found, depth = PAIRS.answer(1, Query("depth")), render(scene_of("train", 1)).depth
    assert isinstance(found, Depth)
    assert np.array_equal(found.metres[found.valid], depth[np.isfinite(depth)])
    assert np.array_equal(found.sky, np.isinf(depth))


def test_a_question_with_two_true_answers_is_refused():
    scene = scene_of("train", 0)
    with pytest.raises(InputError, match="query: expected one true answer among"):
        PAIRS.answer(0, Query("classify", (scene.ground, scene.sky)))


def test_splits_show_other_scenes_under_other_keys():
    one, two = WorldPairs("train", 3), WorldPairs("validation", 3)
    assert one.key != two.key and np.any(np.asarray(one.picture(0)) != np.asarray(two.picture(0)))
