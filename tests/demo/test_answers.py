"""Answers in words, with legends, and in depth as points in space."""

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_heads.demo.answers import (
    cloud,
    depth_scale,
    in_words,
    legend,
    painted,
    place_of,
    understood,
)
from dit_heads.embedded.pairs import WorldPairs
from dit_heads.pipelines.vision_output import coloured_depth, visualized
from dit_heads.tasks.annotations import Boxes, Depth, Instances, Labels, Segmentation
from dit_heads.tasks.query import Query
from dit_heads.tasks.router import route
from dit_heads.tasks.words import listed

PAIRS = WorldPairs("test", 6)
EMBEDDED: Any = SimpleNamespace(embedded=True)
UNKNOWN: Any = SimpleNamespace(embedded=False)


def test_what_is_understood_is_a_sentence_that_names_all():
    told = {
        "where are the cubes?": "Understood: a box around each cube.",
        "segment the cube and the cone": "Understood: which pixels show cube or cone.",
        "show each object in a colour of its own": "Understood: a mask for each object.",
        "how far is everything?": "Understood: how far each pixel is.",
        "is it a cat, a dog or a cow?": "Understood: which of these it is: cat, dog or cow.",
    }
    for text, sentence in told.items():
        assert understood(route(text)) == sentence


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0, 0, 10, 10), "at the top left"),
        ((40, 40, 60, 60), "in the middle"),
        ((45, 90, 55, 100), "at the bottom"),
        ((90, 45, 100, 55), "at the right"),
    ],
)
def test_places_are_told_by_thirds(box, place):
    assert place_of(np.array(box), (100, 100)) == place


def test_objects_are_told_with_their_places_the_surest_first():
    boxes = Boxes(
        np.array([[0, 0, 9, 9], [80, 80, 99, 99]]), ("cube", "cone"), (100, 100), np.array([0.3, 0.9])
    )
    assert in_words(boxes, ("cube", "cone")) == "2 found: cone at the bottom right and cube at the top left."
    many = Boxes.clipped([[n, 0, n + 5, 5] for n in range(20)], ["cube"] * 20, (100, 100))
    assert in_words(many, ("cube",)).endswith("and 12 more.")
    nothing = Boxes.clipped(np.zeros((0, 4)), [], (9, 9))
    assert in_words(nothing, ("cube", "cone")) == "No cube and no cone is found." and legend(nothing) == []


def test_legends_have_the_colours_that_are_shown():
    picture = np.zeros((8, 8, 3))
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4], masks[1, 4:, :4] = True, True
    found = Instances(masks, ("cube", "cube"), np.array([0.9, 0.5]))
    shown = np.asarray(visualized(found, picture, 3))
    assert shown.shape == (24, 24, 3)
    for line, place in zip(legend(found), [(0, 0), (20, 0)], strict=True):
        colour = np.array([int(line["colour"][k : k + 2], 16) for k in (1, 3, 5)])
        assert np.abs(shown[place] - colour / 2).max() <= 1
    segments = Segmentation(np.array([[0, 1], [2, 2]]), ("grass", "sky"))
    assert [line["value"] for line in legend(segments)] == ["25.0% of the picture", "50.0% of the picture"]
    assert in_words(segments, segments.classes) == "Of the picture, grass 25% and sky 50%."


def test_answers_to_choose_from_are_bars_the_likeliest_first():
    found = Labels(("day", "night"), np.array([0.25, 0.75]))
    assert in_words(found, found.answers) == "Most likely night (75%), rather than day (25%)."
    assert [(line["name"], line["share"]) for line in legend(found)] == [("night", 0.75), ("day", 0.25)]


def test_the_scale_has_the_colours_of_the_map_from_near_to_far():
    depth = Depth.from_metres(np.geomspace(2, 32, 9)[None].astype(np.float32))
    scale, shown = depth_scale(depth), np.asarray(coloured_depth(depth))[0]
    assert scale and scale["ticks"] == ["2 m", "4 m", "8 m", "16 m", "32 m"]
    for stop, colour in zip(scale["stops"][::2], shown, strict=True):
        assert np.abs([int(stop[k : k + 2], 16) for k in (1, 3, 5)] - colour.astype(int)).max() <= 4
    told = in_words(depth, ())
    assert told == "From 2 m, at the left, to 32 m."


def test_depth_without_a_distance_has_no_scale():
    sky = Depth.from_metres(np.full((3, 3), np.inf))
    assert depth_scale(sky) is None and in_words(sky, ()) == "No distance is known. Sky covers 100% of it."
    assert set(
        np.frombuffer(base64.b64decode(cloud(sky, Image.new("RGB", (3, 3)), UNKNOWN)["levels"]), "<u2")
    ) == {0}


@pytest.mark.parametrize("size", [(128, 128), (300, 40), (1, 1)])
def test_points_are_the_pixels_of_the_picture_at_their_distances(size):
    rng = np.random.default_rng(0)
    metres = rng.uniform(0.5, 40, size[::-1]).astype(np.float32)
    metres[0, 0] = np.inf if metres.size > 1 else 3.0
    picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    found = cloud(Depth.from_metres(metres), picture, UNKNOWN)
    rows, columns = found["rows"], found["columns"]
    assert max(rows, columns) <= 128
    step = -(-max(size) // 128)
    levels = np.frombuffer(base64.b64decode(found["levels"]), "<u2").reshape(rows, columns)
    colours = np.frombuffer(base64.b64decode(found["colours"]), np.uint8).reshape(rows, columns, 3)
    assert (colours == np.asarray(picture)[::step, ::step]).all()
    own = metres[::step, ::step]
    known = np.isfinite(own)
    assert ((levels > 0) == known).all()
    assert np.abs(levels / 65535 * found["far"] - np.where(known, own, 0)).max() < 1e-3


def test_points_of_a_rendered_scene_lie_on_its_ground():
    """The renderer's own geometry: ground pixels, put back into space, lie on one plane."""
    query = Query("segment", ("ground",))
    depth, ground = PAIRS.answer(5, Query("depth")), PAIRS.answer(5, query).mask("ground")  # pyright: ignore
    found = cloud(depth, PAIRS.picture(5), EMBEDDED)  # pyright: ignore[reportArgumentType]
    z = np.frombuffer(base64.b64decode(found["levels"]), "<u2").reshape(128, 128) / 65535 * found["far"]
    across = (2 * np.arange(128) + 1 - 128) / 128 * found["half_view"]
    points = np.stack([across[None] * z, across[:, None] * z, z], -1)[ground & (z > 0) & (z < 12)]
    middle = points.mean(0)
    assert np.linalg.svd(points - middle, full_matrices=False)[1][-1] / len(points) ** 0.5 < 0.01


def test_what_was_painted_is_shown_as_large_as_the_answer():
    assert painted(np.full((3, 5, 3), np.nan), 4).size == (20, 12)
    assert listed(["a"], "and") == "a" and listed(["a", "b", "c"], "or") == "a, b or c"
