"""Objectives by the names that commands take."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit_heads.embedded.objective import embedded_clip
from dit_heads.objectives import aesthetic, load_objective, name_of
from tests.objectives.made import NAMED, brightness

MADE = brightness.__module__
load = functools.partial(load_objective, more={"clip": embedded_clip})


def test_a_loaded_objective_has_the_name_it_was_loaded_by(folder):
    for spec in ("clip", f"clip:{folder}", f"{MADE}:brightness"):
        assert name_of(load(spec)) == spec


def test_the_aesthetic_predictor_is_named_by_its_file(folder, head):
    assert aesthetic(head, folder).name == f"aesthetic:{head}"


def test_a_callable_is_loaded_by_import_path():
    assert load_objective(f"{MADE}:brightness") is brightness
    assert load_objective(f"{MADE}:NAMED") is NAMED


EXPECTED = "expected clip, clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE.safetensors or MODULE:FUNCTION"


@pytest.mark.parametrize("spec", ["", "nothing", "clip:", "hpsv2", "hpsv2:", "aesthetic", "os:", ":", "CLIP"])
def test_other_names_are_refused_with_the_choices(spec):
    with pytest.raises(ValueError, match=f"^objective: {EXPECTED}, got '{spec}'$"):
        load(spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("no_such_module:score", "No module named 'no_such_module'"),
        (":score", "Empty module name"),
        ("{module}:missing", "made has no function 'missing'"),
        ("{module}:NUMBER", "has no function 'NUMBER'"),
        ("{module}:Constant", "has no function 'Constant'"),
        ("{module}:NAMELESS", "expected a `name` attribute or a function of a module"),
        ("pickscore:x", "No module named 'pickscore'"),
        ("aesthetic:{tmp}/absent.safetensors", "No such file"),
        ("aesthetic:{tmp}/text.safetensors", "header"),
        ("aesthetic:{tmp}/other.safetensors", r"weights: expected layers.N.weight"),
        ("clip:{tmp}", "safetensors|config"),
        ("hpsv2:{tmp}", "safetensors|config"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason_and_the_choices(spec, why, tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("not tensors")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    spec = spec.format(module=MADE, tmp=tmp_path)
    with pytest.raises(ValueError, match=f"^objective: cannot load '{spec}': .*({why}).*; {EXPECTED}$"):
        load(spec)
