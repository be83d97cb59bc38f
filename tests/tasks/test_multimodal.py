"""Instructions with pictures in them: placeholders and pictures are checked against each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_heads.errors import InputError
from dit_heads.tasks.multimodal import MOST, PLACEHOLDER, MultimodalInstruction

WORDS = st.text(alphabet="abc ,.", max_size=8)


def test_pictures_stand_in_the_order_of_the_text():
    found = MultimodalInstruction.of(f"Put {PLACEHOLDER} beside {PLACEHOLDER}.", ["cube", "cone"])
    assert found.words == ("Put ", " beside ", ".")
    assert found.pictures == ("cube", "cone")
    assert found.text == "Put beside."


def test_names_are_bound_to_pictures():
    found = MultimodalInstruction.of("Make <dog> chase <cat>, and <dog> bark.", {"cat": 1, "dog": 2})
    assert found.names == ("dog", "cat", "dog")
    assert found.pictures == (2, 1, 2)
    assert found.text == "Make dog chase cat, and dog bark."


def test_pictures_become_words():
    found = MultimodalInstruction.of(f"Put {PLACEHOLDER} on {PLACEHOLDER}.", ["cube", "cone"])
    assert found.in_words == MultimodalInstruction(("Put the picture 1 on the picture 2.",))
    named = MultimodalInstruction.of("a <dog>, a <cat>, <dog>", {"cat": 1, "dog": 2})
    assert named.in_words.words == ("a dog, a cat, dog",)


def test_the_picture_of_a_name_that_comes_twice_counts_once():
    assert MultimodalInstruction.of("<b> by <a> by <b>", {"a": 1, "b": 2}).distinct == (2, 1)
    assert MultimodalInstruction.of(PLACEHOLDER * 2, ["a", "a"]).distinct == ("a", "a")
    assert MultimodalInstruction.of("<1> <0>", {"0": 3, "1": 4}).distinct == (4, 3)


def test_text_without_pictures_is_left_alone():
    found = MultimodalInstruction.of("<Leo> on  grass")
    assert (found.words, found.pictures, found.text) == (("<Leo> on  grass",), (), "<Leo> on grass")


@given(st.lists(WORDS, min_size=1, max_size=MOST + 1))
def test_the_text_is_cut_at_its_placeholders(words: list[str]):
    found = MultimodalInstruction.of(PLACEHOLDER.join(words), list(range(len(words) - 1)))
    assert found.words == tuple(words)
    named = "".join(f"{word}<{k}>" for k, word in enumerate(words[:-1])) + words[-1]
    by_name = MultimodalInstruction.of(named, {str(k): k for k in range(len(words) - 1)})
    assert (by_name.words, by_name.pictures) == (found.words, found.pictures)


@pytest.mark.parametrize(
    ("text", "references", "message"),
    [
        (f"{PLACEHOLDER} and {PLACEHOLDER}", ["one"], "references: expected 2, one for each"),
        ("no picture", ["one"], "references: expected 0"),
        (PLACEHOLDER, {}, "references: expected a picture for <imagehere>, got none"),
        ("the <cat>", {"dog": 1}, "references: expected a picture for <cat>, got none"),
        ("the dog", {"dog": 1}, "prompt: expected <dog> in it"),
        (PLACEHOLDER * 5, list("abcde"), "references: expected at most 4 pictures, got 5"),
        (PLACEHOLDER, "cat.png", "references: expected a list of pictures or a mapping"),
        (7, [], "prompt: expected text, got int"),
    ],
)
def test_what_does_not_fit_is_named(text, references, message):
    with pytest.raises(InputError, match=message):
        MultimodalInstruction.of(text, references)
