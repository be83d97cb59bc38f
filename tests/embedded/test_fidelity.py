"""Identity and instruction of edits: by hand on what a judge might see, and by the judge on exact results."""

import numpy as np
import pytest

from dit_heads.embedded.edits import Edit, edit_of
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.fidelity import fidelity, followed, identity
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.render import render
from dit_heads.embedded.world.scenes import Scene, Solid

CUBE, CONE = Solid("cube", "red"), Solid("cone", "blue", "striped", "small")
BALL = Solid("sphere", "red", size="small")
SEEN = {
    "cube": ("cube", "red", "plain", "large"),
    "cone": ("cone", "blue", "striped", "small"),
    "ball": ("sphere", "red", "plain", "small"),
}
WHOLE = {"count": 2, "ground": "grass", "sky": "day", "style": "photo"}
# The cone of a picture takes the place of the ball beside the cube.
REPLACE = Edit("compositional", "replace", "", Scene((CUBE, CONE)), Scene((CUBE, BALL)), (Scene((CONE,)),))


def seen(*names: str) -> list[tuple[str, ...]]:
    return [SEEN[name] for name in names]


def test_a_subject_is_kept_wherever_it_stands():
    for order in (("cube", "cone"), ("cone", "cube"), ("cone",)):
        assert set(identity(REPLACE, seen(*order)).values()) == {1.0}
    found = identity(REPLACE, [SEEN["cube"], ("cone", "green", "striped", "large")])
    assert found == {"shape": 1, "colour": 0, "texture": 1, "identity": 0}


def test_attributes_of_several_solids_do_not_add_up_to_a_subject():
    found = identity(REPLACE, [("cone", "red", "plain", "large"), ("cube", "blue", "striped", "large")])
    assert found == {"shape": 1, "colour": 1, "texture": 1, "identity": 0}


def test_a_subject_that_is_already_there_has_to_come_once_more():
    two = Edit("compositional", "add", "", Scene((CUBE, CUBE)), Scene((CUBE,)), (Scene((CUBE,)),))
    assert identity(two, seen("cube"))["identity"] == 0
    assert identity(two, seen("cube", "cube"))["identity"] == 1


def test_without_a_reference_the_solids_that_stay_are_kept():
    edit = Edit("edit", "recolour", "", Scene((Solid("cube", "green"), CONE)), Scene((CUBE, CONE)))
    assert identity(edit, seen("cube", "cone"))["identity"] == 1
    assert identity(edit, seen("cube", "ball"))["identity"] == 0
    alone = Edit("edit", "recolour", "", Scene((Solid("cube", "green"),)), Scene((CUBE,)))
    assert identity(alone, seen("cube")) == {}


def test_what_goes_has_to_go_and_the_subject_is_judged_apart():
    assert followed(REPLACE, seen("cube", "cone"), WHOLE)
    assert not followed(REPLACE, seen("cube", "ball"), WHOLE)
    assert followed(REPLACE, seen("cube", "cube"), WHOLE)  # the cone is `identity`'s affair
    assert followed(REPLACE, seen("cube", "cone"), WHOLE | {"sky": "night"})  # nothing was said of the sky


def test_what_changes_has_to_change():
    night = Edit("edit", "sky", "", Scene((CUBE,), sky="night"), Scene((CUBE,)))
    assert followed(night, seen("cone"), WHOLE | {"sky": "night"})
    assert not followed(night, seen("cube"), WHOLE)
    gone = Edit("edit", "remove", "", Scene((CUBE,)), Scene((CUBE, BALL)))
    assert followed(gone, seen("cube"), WHOLE | {"count": 1})
    assert not followed(gone, seen("cube", "ball"), WHOLE)


def test_on_a_blank_canvas_all_that_is_said_counts_but_the_subject():
    edit = Edit("subject", "subject", "", Scene((CUBE, CONE)), None, (Scene((CONE,)),))
    assert followed(edit, seen("cube", "ball"), WHOLE)
    assert not followed(edit, seen("ball", "cone"), WHOLE)
    assert not followed(edit, seen("cube", "cone"), WHOLE | {"ground": "snow"})


@pytest.mark.parametrize("kind", ["subject", "compositional"])
def test_the_judge_tells_exact_results_from_what_was_there(kind):
    edits = [edit_of("validation", kind, k) for k in range(8)]
    judge = load_judge()

    def judged(scenes: list[Scene]) -> tuple[float, float]:
        pictures = to_tensor(np.stack([render(scene).image for scene in scenes]))
        rows = fidelity(judge, pictures, edits, batch=3)
        return tuple(float(np.mean([row[name] for row in rows])) for name in ("identity", "instruction"))  # pyright: ignore

    right = judged([edit.target for edit in edits])
    before = judged([edit.source or edit.references[0] for edit in edits])
    assert min(right) >= 0.85 and before[1] <= 0.15
    assert before[0] >= 0.85 if kind == "subject" else before[0] <= 0.15
