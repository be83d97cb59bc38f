"""Edits of the blocks world: the result differs from the source in what is said and in nothing else."""

import re

import numpy as np
import pytest

from dit_heads.embedded.edits import EDITS, KINDS, Edit, edit_of
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import HELD_OUT, Scene, Solid
from dit_heads.embedded.world.text import unknown_words
from dit_heads.tasks.codecs.pixels import dilated
from dit_heads.tasks.multimodal import PLACEHOLDER, MultimodalInstruction

COUNT = 150


@pytest.fixture(scope="module")
def edits() -> dict[str, list[Edit]]:
    return {kind: [edit_of("validation", kind, k) for k in range(COUNT)] for kind in KINDS}


def solids(scene: Scene) -> set[Solid]:
    return set(scene.solids)


def test_every_instruction_is_read_and_has_its_pictures(edits: dict[str, list[Edit]]):
    for made in (each for some in edits.values() for each in some):
        words = MultimodalInstruction.of(made.prompt, list(made.references)).text
        assert not unknown_words(words), words
        assert not re.search(r"\ba orange|\ban? on\b", words)
        held = {(s.colour, s.shape) for s in made.target.solids}
        assert not held & HELD_OUT


def test_an_index_gives_one_edit_and_splits_others():
    assert edit_of("test", "edit", 3) == edit_of("test", "edit", 3)
    assert edit_of("test", "edit", 3) != edit_of("validation", "edit", 3)


def test_edits_of_all_sorts_change_one_thing(edits: dict[str, list[Edit]]):
    assert {made.what for made in edits["edit"]} == set(EDITS)
    for made in edits["edit"]:
        source, target = made.source, made.target
        assert source is not None
        gone, new = solids(source) - solids(target), solids(target) - solids(source)
        other = sum(getattr(source, n) != getattr(target, n) for n in ("ground", "sky", "style"))
        wanted = {
            "add": (0, 1, 0),
            "remove": (1, 0, 0),
            "sky": (0, 0, 1),
            "ground": (0, 0, 1),
            "style": (0, 0, 1),
        }
        assert (len(gone), len(new), other) == wanted.get(made.what, (1, 1, 0)), made
        assert source.phase == target.phase


def test_a_subject_is_not_named_and_stands_in_the_result(edits: dict[str, list[Edit]]):
    for made in edits["subject"]:
        (shown,) = made.references
        (solid,) = shown.solids
        look = (solid.shape, solid.colour, solid.texture, solid.size, solid.shiny)
        there = [(s.shape, s.colour, s.texture, s.size, s.shiny) for s in made.target.solids]
        assert look in there and made.source is None
        named = made.prompt.count(solid.shape)
        assert named == sum(s.shape == solid.shape for s in made.target.solids) - 1
        assert made.prompt.count(PLACEHOLDER) == 1


def test_compositional_edits_bring_what_the_picture_shows(edits: dict[str, list[Edit]]):
    assert {made.what for made in edits["compositional"]} == {"add", "replace"}
    for made in edits["compositional"]:
        assert made.source is not None
        (new,) = solids(made.target) - solids(made.source)
        (solid,) = made.references[0].solids
        assert (new.shape, new.colour, new.texture) == (solid.shape, solid.colour, solid.texture)


def test_pixels_away_from_the_change_are_the_same(edits: dict[str, list[Edit]]):
    made = next(e for e in edits["edit"] if e.what == "recolour" and e.target.style == "photo")
    assert made.source is not None
    before, after = render(made.source), render(made.target)
    pairs = zip(made.source.solids, made.target.solids, strict=True)
    (number,) = (k for k, (old, new) in enumerate(pairs, 1) if old != new)
    changed = (before.image != after.image).any(-1)
    assert changed[before.ids == number].mean() > 0.5
    assert not changed[~dilated(before.ids == number, 1)].any()
    assert np.array_equal(before.ids, after.ids)
