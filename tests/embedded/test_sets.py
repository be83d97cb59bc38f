"""Sets of the in-context tasks: what changes and what stays, captions, files, and agreement by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dit_heads.embedded.agreement import agreement, identity_kept, panels_right, solids_seen
from dit_heads.embedded.nets.judge import WHOLE, Verdict, labels
from dit_heads.embedded.sets import (
    FIRST,
    TASKS,
    SceneSet,
    sample_set,
    split_sets,
    turned,
    write_sets,
)
from dit_heads.embedded.world.captions import NAMES
from dit_heads.embedded.world.data import ATTRIBUTES
from dit_heads.embedded.world.geometry import cast
from dit_heads.embedded.world.render import EYE, SIZE, render
from dit_heads.embedded.world.scenes import HELD_OUT, SKIES, SPLITS, Scene, Solid
from dit_heads.embedded.world.text import make_t5_tokenizer, unknown_words
from dit_heads.loras.sets.captions import JointCaption, identities
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.tasks.markers import markers

COUNT = 60


@cache
def sets_of(task: str) -> list[SceneSet]:
    return split_sets(task, "train", COUNT)


def look(solid: Solid) -> Solid:
    """The solid without its place."""
    return replace(solid, x=0.0, z=0.0, yaw=0.0)


# --- which sets there are ---


@pytest.mark.parametrize("task", TASKS)
def test_splits_do_not_meet_and_a_seed_is_a_set(task):
    train, test = sets_of(task), split_sets(task, "test", COUNT)
    assert len({one.scenes for one in train + test}) == 2 * COUNT
    assert train[7] == sample_set(task, SPLITS["train"][FIRST + 7])
    assert test[7] == sample_set(task, SPLITS["test"][FIRST + 7])
    assert split_sets(task, "train", 3) == train[:3]


@pytest.mark.parametrize("task", TASKS)
def test_sets_avoid_held_out_combinations_and_other_styles(task):
    for scene in (scene for one in sets_of(task) for scene in one.scenes):
        assert not {(s.colour, s.shape) for s in scene.solids} & HELD_OUT
        assert scene.style == "photo"


def test_unknown_tasks_and_counts_are_refused(tmp_path):
    for call in (lambda t: sample_set(t, 0), lambda t: split_sets(t, "test", 1)):
        with pytest.raises(ValueError, match="task: expected one of sky, grounds, turntable, got 'story'"):
            call("story")
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        write_sets("sky", "train", 0, tmp_path / "sets")
    assert not list(tmp_path.iterdir())


# --- what changes in a set, and what stays ---


def test_the_sky_alone_changes():
    for one in sets_of("sky"):
        assert [scene.sky for scene in one.scenes] == list(SKIES)
        assert len({replace(scene, sky="day") for scene in one.scenes}) == 1
    assert {len(one.scenes[0].solids) for one in sets_of("sky")} == {1, 2, 3}


def test_one_subject_stands_on_three_grounds():
    for one in sets_of("grounds"):
        solids = [solid for scene in one.scenes for solid in scene.solids]
        assert len(solids) == 3 and len({look(solid) for solid in solids}) == 1
        assert len({(s.x, s.z, s.yaw) for s in solids}) == 3
        assert len({scene.ground for scene in one.scenes}) == 3
    assert len({scene.ground for one in sets_of("grounds") for scene in one.scenes}) == 4


def test_a_quarter_turn_brings_what_is_right_to_the_front():
    """Two solids a metre left and right of (0.25, 0.5); z points away from the camera."""
    left, right = Solid("cube", "red", x=-0.75, z=0.5, yaw=0.1), Solid("cone", "blue", x=1.25, z=0.5)
    views = [turned(Scene((left, right)), degrees) for degrees in (0, 90, 180, 270)]
    places = {"red": [], "blue": []}
    for view in views:
        for solid in view.solids:
            places[solid.colour].append((solid.x, solid.z))
    assert np.allclose(places["blue"], [(1.25, 0.5), (0.25, -0.5), (-0.75, 0.5), (0.25, 1.5)])
    assert np.allclose(places["red"], [(-0.75, 0.5), (0.25, 1.5), (1.25, 0.5), (0.25, -0.5)])
    assert [s.colour for s in views[2].solids] == ["blue", "red"]
    reds = [next(s for s in view.solids if s.colour == "red") for view in views]
    assert np.allclose([s.yaw for s in reds], [0.1, 0.1 + math.pi / 2, 0.1 + math.pi, 0.1 + 1.5 * math.pi])


def test_a_turn_is_the_camera_going_around():
    """Rays that are turned the other way about the axis, (0.25, 0.5), hit the same points of a solid."""
    scene = Scene((Solid("pyramid", "red", x=-0.5, z=0.2, yaw=0.7), Solid("cone", "blue", x=1.0, z=0.8)))
    after = next(s for s in turned(scene, 35).solids if s.colour == "red")
    c, s = math.cos(math.radians(35)), math.sin(math.radians(35))
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    axis = np.array([0.25, 0, 0.5], np.float32)
    rng = np.random.default_rng(0)
    targets = np.array([after.x, 0.4, after.z]) + rng.uniform(-0.3, 0.3, (50, 3))
    rays = (targets - EYE).astype(np.float32)
    far, _, hit = cast(after, EYE, rays)
    was_far, _, was_hit = cast(scene.solids[0], axis + (EYE - axis) @ turn, rays @ turn)
    assert np.isfinite(far).sum() > 20
    assert np.allclose(far, was_far, atol=1e-4) and np.allclose(hit, was_hit, atol=1e-3)


def test_a_turntable_shows_one_scene_from_four_sides():
    for one in sets_of("turntable"):
        first = one.scenes[0]
        assert len(first.solids) == 2
        for scene, degrees in zip(one.scenes, (0, 90, 180, 270), strict=True):
            again = turned(first, degrees)
            assert [look(s) for s in scene.solids] == [look(s) for s in again.solids]
            assert np.allclose([(s.x, s.z) for s in scene.solids], [(s.x, s.z) for s in again.solids])
            assert replace(scene, solids=()) == replace(first, solids=())
        assert {tuple(map(look, scene.solids)) for scene in one.scenes} == _both_orders(first)


def _both_orders(scene: Scene) -> set[tuple[Solid, ...]]:
    solids = tuple(map(look, scene.solids))
    return {solids, solids[::-1]}


def test_every_solid_of_a_turntable_is_seen_from_all_sides():
    for one in sets_of("turntable")[:25]:
        for scene in one.scenes:
            ids = render(scene, 32).ids
            alone = [(render(replace(scene, solids=(s,)), 32).ids > 0).sum() for s in scene.solids]
            shown = np.bincount(ids.ravel(), minlength=3)[1:]
            assert (shown > 0.5 * np.array(alone)).all() and not ids[:, [0, -1]].any()


# --- captions ---


@pytest.mark.parametrize("task", TASKS)
def test_captions_are_joint_captions_in_words_that_the_model_knows(task):
    t5 = make_t5_tokenizer()
    for one in sets_of(task):
        caption = JointCaption.parse(one.caption)
        assert str(caption) == one.caption
        assert caption.markers == markers(TASKS[task].rows, TASKS[task].columns)
        assert unknown_words(one.caption) == []
        assert 40 <= len(one.caption.split()) <= 90
        assert len(t5(one.caption).input_ids) <= 128
    assert len({JointCaption.parse(one.caption).panels[0][:2] for one in sets_of(task)}) > 1


@pytest.mark.parametrize("task", TASKS)
def test_a_panels_caption_says_all_that_the_judge_checks(task):
    for one in sets_of(task):
        for said, scene in zip(JointCaption.parse(one.caption).panels, one.scenes, strict=True):
            words = said.replace(",", "").split()
            found = [[words.index(s.colour), words.index(s.shape)] for s in scene.solids if _unique(scene)]
            assert all(a[1] < b[0] for a, b in pairwise(found)), said  # from left to right
            for solid in scene.solids:
                texture = [] if solid.texture == "plain" else [solid.texture]
                assert " ".join([*texture, solid.colour, solid.shape]) in said and solid.size in words
            assert f"on {scene.ground}" in said and scene.sky in words


def _unique(scene: Scene) -> bool:
    return all(len({getattr(s, n) for s in scene.solids}) == len(scene.solids) for n in ("colour", "shape"))


def test_the_subject_of_three_grounds_has_a_name():
    for one in sets_of("grounds"):
        ((name, panels),) = identities(JointCaption.parse(one.caption)).items()
        assert name in NAMES and panels == (0, 1, 2)


# --- files ---


@pytest.mark.parametrize("task", TASKS)
def test_files_are_a_data_set(task, tmp_path):
    write_sets(task, "test", 2, tmp_path / "new" / "sets")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sets"]
    rows, columns = TASKS[task].rows, TASKS[task].columns
    data = SetDataset(tmp_path / "new" / "sets", rows=rows, columns=columns, buckets=[(SIZE, SIZE)])
    expected = split_sets(task, "test", 2)
    assert [sample.caption for sample in data.samples] == [one.caption for one in expected]
    assert [sample.source for sample in data.samples] == ["set000", "set001"]
    last = np.asarray(data[1].composite())[-SIZE:, -SIZE:]
    assert np.array_equal(last, render(expected[1].scenes[-1]).image)
    with Image.open(tmp_path / "new" / "sets" / "set000" / "1.png") as first:
        assert np.array_equal(np.asarray(first), render(expected[0].scenes[0]).image)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "sets").mkdir()
    with pytest.raises(ValueError, match=r"out: expected a new folder, got '.*sets', which exists"):
        write_sets("sky", "train", 1, tmp_path / "sets")
    assert not list((tmp_path / "sets").iterdir())


def test_a_check_before_each_set_ends_the_work_and_leaves_nothing(tmp_path):
    checked = []

    def check():
        checked.append(len(list(tmp_path.glob(".sets.*/set*"))))
        if len(checked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sets("sky", "train", 9, tmp_path / "sets", check)
    assert checked == [0, 1] and not list(tmp_path.iterdir())


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("dit_heads.embedded.sets.render", lambda scene: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_sets("sky", "train", 1, tmp_path / "sets")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(tmp_path):
    command = [sys.executable, "-m", "dit_heads.embedded.sets"]
    out = ["--count", "1", "--out", str(tmp_path / "sets")]
    done = subprocess.run([*command, "grounds", *out], capture_output=True, text=True, check=True)
    assert "wrote 1 sets of 1 x 3 panels" in done.stdout
    assert len(list((tmp_path / "sets" / "set000").iterdir())) == 4
    wrong = subprocess.run([*command, "story", *out], capture_output=True, text=True)
    assert wrong.returncode == 2 and "got 'story'" in wrong.stderr


# --- agreement ---

CLASSES = {name: len(values) for name, values in {**WHOLE, **ATTRIBUTES}.items()}
CUBE, BALL = Solid("cube", "red", "striped", "large", x=-0.5), Solid("sphere", "blue", size="small", x=0.5)
PAIR, SWAPPED = Scene((CUBE, BALL)), Scene((replace(BALL, x=-0.5), replace(CUBE, x=0.5)))


def said_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Logits of a judge that sees these scenes, and some solid in every slot beyond their count."""
    return {k: 9.0 * F.one_hot(v.clamp(min=0), CLASSES[k]) for k, v in labels(scenes).items()}


def judge_seeing(scenes: Sequence[Scene]) -> Any:
    """A judge that finds the number of a picture in its first pixel."""
    return lambda pixels: {k: v[pixels[:, 0, 0, 0].long()] for k, v in said_of(scenes).items()}


def pictures(sets: int, panels: int) -> Tensor:
    return torch.arange(float(sets * panels)).view(sets, panels, 1, 1, 1).expand(-1, -1, 3, 4, 4)


def with_first(**changes: str) -> Scene:
    return replace(PAIR, solids=(replace(CUBE, **changes), BALL))


def test_solids_seen_are_those_that_are_counted_in_any_order():
    alone = Scene((BALL,))
    pair, swapped, one = solids_seen(said_of([PAIR, SWAPPED, alone]))
    assert pair == swapped == (("cube", "red", "striped", "large"), ("sphere", "blue", "plain", "small"))
    assert one == (("sphere", "blue", "plain", "small"),)
    assert solids_seen(said_of([alone]), ("colour", "size")) == [(("blue", "small"),)]


def test_identity_is_kept_if_all_panels_show_the_same_solids():
    other_sky = replace(PAIR, sky="night", ground="snow")
    seen = [PAIR, other_sky, SWAPPED]  # kept
    seen += [PAIR, PAIR, with_first(texture="dotted")]  # not kept
    seen += [PAIR, Scene((CUBE,)), PAIR]  # a solid is missing
    seen += [with_first(size="small"), PAIR, PAIR]  # another size
    kept = identity_kept(judge_seeing(seen), pictures(4, 3), "sky", batch=5)
    assert kept.tolist() == [True, False, False, False]


def test_a_turn_may_change_sizes_and_order_but_no_solid():
    twins = Scene((CUBE, replace(CUBE, x=0.5)))
    seen = [PAIR, SWAPPED, with_first(size="small"), SWAPPED]  # kept
    seen += [PAIR, SWAPPED, PAIR, with_first(colour="green")]
    seen += [twins, twins, twins, Scene((CUBE,))]  # one of two equal solids is missing
    assert identity_kept(judge_seeing(seen), pictures(3, 4), "turntable").tolist() == [True, False, False]


def test_a_panel_is_right_if_all_that_was_asked_is():
    asked = torch.tensor([[True, False, False], [True, True, False]] * 2)
    shape = torch.tensor([[True, False, False], [True, True, False], [True, True, True], [True, False, True]])
    right = {"sky": torch.tensor([True, True, False, True]), "shape": shape}
    found = panels_right(Verdict(right, asked, torch.zeros(4)), 2)
    assert found.tolist() == [[True, True], [False, False]]


def test_agreement_of_sets():
    """The first of two sets is as asked; of the second, one panel's sky and another's colour are not."""
    skies = tuple(replace(PAIR, sky=sky) for sky in SKIES)
    seen = [*skies, skies[0], replace(skies[1], sky="day"), replace(with_first(colour="green"), sky="night")]
    asked = [SceneSet("sky", skies, "")] * 2
    found = agreement(judge_seeing(seen), pictures(2, 3), asked)
    assert found.right.tolist() == [[True, True, True], [True, False, False]]
    assert found.share[1].tolist() == pytest.approx(
        [1, 11 / 12, 11 / 12]
    )  # 2 x 4 of solids, 4 of the picture
    assert found.kept.tolist() == [True, False]


def test_agreement_needs_sets_of_one_task_and_all_their_panels():
    skies = SceneSet("sky", (PAIR,) * 3, "")
    with pytest.raises(ValueError, match=r"sets: expected sets of one task, got \['grounds', 'sky'\]"):
        agreement(judge_seeing([PAIR]), pictures(2, 3), [skies, replace(skies, task="grounds")])
    with pytest.raises(ValueError, match=r"pictures: expected 2 x 3 panels, got the shape \(2, 4, 3, 4, 4\)"):
        agreement(judge_seeing([PAIR]), pictures(2, 4), [skies, skies])
    with pytest.raises(ValueError, match="task: expected one of"):
        identity_kept(judge_seeing([PAIR]), pictures(1, 1), "story")
