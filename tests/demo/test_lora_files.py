"""LoRA files of visitors: what is refused before it is loaded, and what is kept for how long."""

import json
import time

import pytest
import torch
from safetensors.torch import save

from dit_heads.demo.facts import facts_of
from dit_heads.demo.limits import Limits
from dit_heads.demo.lora_files import FILE, bring, check_header, chosen, plain_name, shipped
from dit_heads.demo.shelf import Shelf
from dit_heads.errors import InputError

KEY = "transformer.transformer_blocks.1.attn.to_q"


def tensors(key: str = KEY, inputs: int = 32) -> bytes:
    return save({f"{key}.lora_A.weight": torch.ones(2, inputs), f"{key}.lora_B.weight": torch.ones(32, 2)})


@pytest.fixture
def shelf():
    return Shelf("lora", 3, 2**20)


@pytest.fixture(scope="module")
def facts(model):
    return facts_of(model)


def test_a_file_that_fits_can_be_chosen_with_a_weight(shelf, facts):
    file = bring(shelf, facts, "My LoRA (v2).safetensors", tensors(), "ann", Limits())
    assert file.name == "My-LoRA-v2.safetensors"
    value = {"loras": [{"id": file.id, "on": True, "scale": 0.5}, {"id": "none", "on": False}]}
    (lora,), names = chosen(value, shelf, facts, Limits())
    assert (lora.path, lora.scale) == (file.path, 0.5) and names == ("My-LoRA-v2.safetensors=0.5",)


def test_a_picker_that_nobody_has_touched_counts_as_the_server_sent_it(shelf, facts):
    file = bring(shelf, facts, "a.safetensors", tensors(), "ann", Limits())
    line = {"id": file.id, "on": False, "scale": 1.0}
    sent = {"loras": [{"id": "other", "on": True, "scale": 1.0}], "add": [line], "on": {file.id: 0.5}}
    (lora,), names = chosen(sent, shelf, facts, Limits())
    assert lora.scale == 0.5 and names == ("a.safetensors=0.5",)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.ckpt", tensors(), r"expected a \.safetensors file, got 'a\.safetensors'|got 'a"),
        ("a.safetensors", b"", "damaged, or of another kind"),
        ("a.safetensors", b"\x80\x04pickle" * 40, "damaged, or of another kind"),
        ("a.safetensors", (2**60).to_bytes(8, "little") + b"{}", "damaged, or of another kind"),
        ("a.safetensors", (4).to_bytes(8, "little") + b"[[[]", "damaged, or of another kind"),
        ("a.safetensors", tensors()[:-8], "cannot be used with this model"),
        ("a.safetensors", tensors("unet.attn.to_q"), "cannot be used with this model"),
        ("a.safetensors", tensors(inputs=48), "expected B and A of a"),
        ("a.safetensors", save({"a": torch.ones(1)}), "cannot be used with this model"),
        ("a.safetensors", tensors().ljust(2**17, b" "), "expected at most"),
    ],
)
def test_other_files_are_refused_with_a_sentence_and_deleted(shelf, facts, name, data, told):
    limits = Limits(lora_upload_bytes=2**16)
    with pytest.raises(InputError, match=told) as refused:
        bring(shelf, facts, name, data, "ann", limits)
    assert len(shelf) == 0 and list(shelf._root.iterdir()) == []
    assert str(shelf._root) not in str(refused.value)


def test_a_header_of_too_many_keys_is_refused():
    header = json.dumps({str(n): 0 for n in range(20_001)}).encode()
    with pytest.raises(InputError, match="damaged"):
        check_header(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"loras": [{"id": "x", "on": True, "scale": 1}]}, "not here any more"),
        ({"loras": [{"id": None, "on": True, "scale": 1}]}, "not here any more"),
        ({"loras": [{"id": "x", "on": True, "scale": 9}]}, "lora weight: expected a number from -4"),
        ({"loras": [{"id": "x", "on": True, "scale": "1"}]}, "lora weight"),
        ({"loras": [{"on": True}] * 4}, "expected at most 3 at once, got 4"),
    ],
)
def test_what_cannot_be_used_is_told(shelf, facts, value, told):
    with pytest.raises(InputError, match=told):
        chosen(value, shelf, facts, Limits())


@pytest.mark.parametrize("value", [None, [], {}, {"loras": None}, {"loras": [None, 3, {}]}])
def test_nothing_chosen_is_nothing(shelf, facts, value):
    assert chosen(value, shelf, facts, Limits()) == ([], ())


def test_a_lora_is_for_its_model_alone(shelf, facts):
    file = bring(shelf, facts, "a.safetensors", tensors(), None, Limits())
    with pytest.raises(InputError, match="is for another model"):
        chosen({"loras": [{"id": file.id, "on": True, "scale": 1}]}, shelf, facts_of("embedded"), Limits())


def test_the_shipped_ones_know_their_layouts():
    assert {file.name: file.layout for file in shipped("embedded")} == {
        "grounds": (1, 3),
        "sky": (1, 3),
        "turntable": (2, 2),
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.safetensors", "a.safetensors"),
        ("C:\\x\\../../etc/passwd", "passwd.safetensors"),
        ("<b>\u202e=0.5", "b-0.safetensors"),
        ("", "lora.safetensors"),
        ("x" * 99, "x" * 40 + ".safetensors"),
    ],
)
def test_names_can_be_shown_and_typed(given, shown):
    assert plain_name(given) == shown


# --- the shelf ---


def filling(size: int):
    return lambda folder: (folder / FILE).write_bytes(b"0" * size)


def test_a_shelf_makes_room_for_what_is_new_and_keeps_what_is_used():
    shelf = Shelf("lora", 3, 1000)
    first, second, third = (shelf.put(filling(10)) for _ in range(3))
    shelf.get(first.id)
    shelf.put(filling(10))
    assert first.folder.exists() and third.folder.exists() and not second.folder.exists()
    shelf.put(filling(995))
    assert len(shelf) == 1
    with pytest.raises(InputError, match="expected at most"):
        shelf.put(filling(2000))
    assert len(list(shelf._root.iterdir())) == 1


def test_what_a_visitor_brought_goes_with_the_visitor():
    shelf = Shelf("lora", 3, 1000)
    anns, nobodys = shelf.put(filling(1), "ann"), shelf.put(filling(1))
    shelf.leave("bob")
    shelf.leave(None)
    assert len(shelf) == 2
    shelf.leave("ann")
    assert not anns.folder.exists() and shelf.get(nobodys.id) == nobodys


def test_what_nobody_asks_for_is_deleted_in_the_end():
    shelf = Shelf("lora", 9, 1000, seconds=0.0)
    old = shelf.put(filling(1))
    time.sleep(0.01)
    shelf.put(filling(1))
    assert not old.folder.exists()
