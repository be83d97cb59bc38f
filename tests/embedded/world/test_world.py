"""The renderer against geometry worked out by hand, and the promises of splits and captions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.embedded.world import scenes
from dit_heads.embedded.world.captions import caption, described, varied_caption
from dit_heads.embedded.world.data import COVERAGE_CHANNELS, coverage, scene_of
from dit_heads.embedded.world.render import boxes, render
from dit_heads.embedded.world.scenes import HELD_OUT, Scene, Solid, sample_scene, split_seed
from dit_heads.embedded.world.text import (
    make_clip_tokenizer,
    make_t5_tokenizer,
    split_words,
    unknown_words,
    vocabulary,
)

SIZE = 128
EYE = np.array([0.0, 1.55, -4.0])
FORWARD = np.array([0.0, -1.05, 4.1]) / math.hypot(1.05, 4.1)
UP = np.array([0.0, FORWARD[2], -FORWARD[1]])
RIGHT = np.array([1.0, 0.0, 0.0])
HALF = math.tan(math.radians(21))


def project(point: np.ndarray) -> tuple[float, float, float]:
    """Pixel coordinates (x, y) and depth of a point, as a pinhole camera sees it."""
    away = point - EYE
    depth = float(away @ FORWARD)
    across, down = float(away @ RIGHT) / depth / HALF, -float(away @ UP) / depth / HALF
    return (1 + across) * SIZE / 2, (1 + down) * SIZE / 2, depth


def angle_to(x: float, y: float, point: np.ndarray) -> float:
    """Angle between the ray through a pixel's centre and the direction to a point."""
    a, b = (2 * (x + 0.5) / SIZE - 1) * HALF, (1 - 2 * (y + 0.5) / SIZE) * HALF
    ray = FORWARD + a * RIGHT + b * UP
    to = point - EYE
    return math.acos(min(1.0, float(ray @ to) / np.linalg.norm(ray) / float(np.linalg.norm(to))))


def test_sphere_silhouette_is_the_cone_of_its_tangents():
    centre, radius = np.array([0.3, 0.6, 0.2]), 0.6
    ids = render(Scene((Solid("sphere", "red", x=0.3, z=0.2),))).ids
    opening = math.asin(radius / float(np.linalg.norm(centre - EYE)))
    pixel = 2 * HALF / SIZE  # angular size of a pixel, at most
    for y in range(SIZE):
        for x in range(SIZE):
            beyond = angle_to(x, y, centre) - opening
            if abs(beyond) > pixel:
                assert (ids[y, x] == 1) == (beyond < 0), (x, y)


def test_sphere_depth_at_its_centre_pixel():
    centre, radius = np.array([0.0, 0.6, 0.0]), 0.6
    x, y, depth = project(centre)
    seen = render(Scene((Solid("sphere", "blue"),))).depth[int(y), int(x)]
    distance = float(np.linalg.norm(centre - EYE))
    assert seen == pytest.approx((distance - radius) * depth / distance, abs=2e-3)


def test_ground_depth_below_the_horizon():
    depth = render(Scene((Solid("cone", "red", size="small", x=-1.0),))).depth
    ray = FORWARD + (1 - 2 * (120 + 0.5) / SIZE) * HALF * UP
    expected = -EYE[1] / ray[1] * float(ray @ FORWARD)  # ray @ FORWARD is 1
    assert depth[120, 64] == pytest.approx(expected, rel=0.02)
    assert np.isinf(depth[0]).all()


def test_cube_box_is_that_of_its_projected_corners():
    half = 0.82 * 0.6
    signs = itertools.product((-1, 1), (0, 1), (-1, 1))
    corners = [np.array([0.2 + a * half, b * 2 * half, 0.1 + c * half]) for a, b, c in signs]
    xs, ys, _ = zip(*map(project, corners), strict=True)
    done = render(Scene((Solid("cube", "green", x=0.2, z=0.1),)))
    assert boxes(done.ids, 1)[0] == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1.0)


def test_pyramid_apex_and_cylinder_top():
    apex = project(np.array([0.0, 1.7 * 0.6, 0.0]))
    box = boxes(render(Scene((Solid("pyramid", "red", yaw=0.4),))).ids, 1)[0]
    assert box[1] == pytest.approx(apex[1], abs=1.5)
    rim = project(np.array([0.0, 1.7 * 0.6, 0.8 * 0.6]))  # the far rim of the lid is its highest point
    box = boxes(render(Scene((Solid("cylinder", "red"),))).ids, 1)[0]
    assert box[1] == pytest.approx(rim[1], abs=1.0)


def test_nearer_solid_hides_the_farther_one():
    near, far = Solid("cube", "red", x=0.0, z=-0.8, size="small"), Solid("sphere", "blue", x=0.05, z=0.9)
    for solids in ((near, far), (far, near)):
        done = render(Scene(solids))
        x, y, _ = project(np.array([0.0, 0.4, -0.8]))
        assert solids[done.ids[int(y), int(x)] - 1] is near


def test_shadow_darkens_the_ground_on_the_far_side_of_the_sun():
    near, away = Solid("cube", "red", size="small"), Solid("cube", "red", size="small", x=-1.2, z=0.9)
    with_it, without = render(Scene((near,))), render(Scene((away,)))
    x, y, _ = project(np.array([-0.45, 0.0, 0.3]))  # the day's sun stands to the right, behind the camera
    at = (int(y), int(x))
    assert with_it.ids[at] == without.ids[at] == 0
    assert with_it.image[at].mean() < 0.75 * without.image[at].mean()


def test_every_style_changes_the_whole_picture():
    scene = sample_scene(7)
    plain = render(Scene(scene.solids, style="photo")).image.astype(float)
    for style in scenes.STYLES[1:]:
        changed = np.abs(render(Scene(scene.solids, style=style)).image - plain).max(-1) > 4
        assert changed.mean() > 0.5, style


def test_same_seed_same_scene_and_splits_never_meet():
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)
    ranges = sorted(scenes.SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(ranges))
    with pytest.raises(ValueError, match="index: expected 0 <= index < 10000000, got -1"):
        split_seed("test", -1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000_000), st.integers(1, 3))
def test_held_out_combinations_appear_only_when_asked_for(seed: int, count: int):
    def combinations(scene: Scene) -> set[tuple[str, str]]:
        return {(s.colour, s.shape) for s in scene.solids}

    assert not combinations(sample_scene(seed, count=count)) & HELD_OUT
    assert combinations(sample_scene(seed, count=count, held_out=True)) & HELD_OUT


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30_000_000))
def test_solids_stand_apart_from_left_to_right(seed: int):
    solids = sample_scene(seed).solids
    assert [s.bearing for s in solids] == sorted(s.bearing for s in solids)
    for i, a in enumerate(solids):
        for b in solids[:i]:
            assert math.hypot(a.x - b.x, a.z - b.z) >= 1.15 * (a.radius + b.radius) - 1e-9


def test_every_solid_is_seen():
    for index in range(40):
        scene = scene_of("test", index)
        shown = np.bincount(render(scene).ids.ravel(), minlength=len(scene.solids) + 1)[1:]
        assert (shown > 60).all(), (index, shown)


def test_coverage_counts_the_pixels_of_each_attribute():
    scene = scene_of("test", 3)
    done = render(scene)
    cover = coverage(scene, done.ids)
    assert cover.shape == (8, 8, COVERAGE_CHANNELS)
    total = (done.ids > 0).mean()
    first = 0
    for values in (scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES, scenes.SIZES):
        assert cover[..., first : first + len(values)].sum() / 255 / 64 == pytest.approx(total, abs=0.01)
        first += len(values)


def test_canonical_caption():
    solids = (Solid("cube", "red", "striped", "large", True), Solid("sphere", "orange", size="small", x=1))
    text = caption(Scene(solids, "snow", "sunset", "pixel art"))
    assert text == "a large shiny striped red cube and a small orange sphere on snow at sunset, pixel art"


def test_every_word_of_the_captions_is_one_token_of_either_tokenizer():
    t5, clip = make_t5_tokenizer(), make_clip_tokenizer()
    for word in vocabulary():
        assert len(t5.tokenize(word)) == 1
        if word.isalpha():
            assert len(clip.tokenize(word)) == 1
    rng = np.random.default_rng(0)
    for index in range(300):
        scene = scene_of("validation", index)
        assert not unknown_words(varied_caption(scene, rng))
        assert len(clip(caption(scene)).input_ids) <= 32


def test_unknown_words_are_named_once_in_order():
    assert unknown_words("a zebra, a red cube and a zebra on mars.") == ["zebra", "mars"]
    assert split_words("a cube, on snow.") == ["a", "cube", "on", "snow"]


def test_descriptions_are_long_but_within_the_t5_of_the_pipeline():
    rng, t5 = np.random.default_rng(0), make_t5_tokenizer()
    lengths = [len(described(sample_scene(i, count=3), rng).split()) for i in range(100)]
    assert min(lengths) >= 60 and max(lengths) <= 110
    assert max(len(t5(described(sample_scene(i, count=3), rng)).input_ids) for i in range(100)) < 256
