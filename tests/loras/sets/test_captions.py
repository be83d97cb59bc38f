"""Joint captions: parsing undoes joining; markers, identities, and the words that an encoder would cut."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.loras.sets.captions import (
    JointCaption,
    check_length,
    identities,
    markers_in,
)
from dit_heads.tasks.markers import markers

CLIP, T5 = make_clip_tokenizer(), make_t5_tokenizer()
CORNERS = ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]")
GRIDS = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
# Brackets, tags and odd spaces, but never a whole marker.
TEXTS = st.text(alphabet="abLEFT-1[<>].,  \n\t", max_size=20)
WORDS = TEXTS.filter(lambda text: text.strip() and not markers_in(text))


@st.composite
def captions(draw: st.DrawFn) -> JointCaption:
    rows, columns = draw(st.sampled_from(GRIDS))
    style = draw(st.sampled_from(["places", "scenes", "images"]))
    panels = draw(st.lists(WORDS, min_size=rows * columns, max_size=rows * columns))
    summary, trigger = (draw(WORDS | st.just("")) for _ in range(2))
    return JointCaption(summary, tuple(panels), markers(rows, columns, style), trigger)


# --- markers ---


@pytest.mark.parametrize(
    ("rows", "columns", "style", "expected"),
    [
        (1, 2, "places", ("[LEFT]", "[RIGHT]")),
        (2, 1, "places", ("[TOP]", "[BOTTOM]")),
        (2, 2, "places", CORNERS),
        (1, 3, "places", ("[LEFT]", "[MIDDLE]", "[RIGHT]")),
        (3, 1, "scenes", ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")),
        (1, 2, "images", ("[IMAGE1]", "[IMAGE2]")),
    ],
)
def test_markers_of_layouts(rows, columns, style, expected):
    assert markers(rows, columns, style) == expected


def test_places_without_names_are_refused():
    with pytest.raises(ValueError, match="got 2 x 3; choose scenes or images"):
        markers(2, 3)
    with pytest.raises(ValueError, match="style: expected places, scenes, images, got 'colours'"):
        markers(1, 2, "colours")


# --- joining and parsing ---


def test_a_caption_is_trigger_summary_and_marked_panels():
    text = "TRIPTYCH A day. [LEFT] Dawn. [MIDDLE] Noon. [RIGHT] Dusk."
    caption = JointCaption("A day.", ("Dawn.", "Noon.", "Dusk."), markers(1, 3), "TRIPTYCH")
    assert str(caption) == text
    assert JointCaption.parse(text, trigger="TRIPTYCH") == caption
    assert JointCaption.parse(text).summary == "TRIPTYCH A day."


@given(captions())
def test_parse_undoes_join(caption):
    assert JointCaption.parse(str(caption), trigger=caption.trigger) == caption


@given(captions(), st.sampled_from(["\n", "\t", "  "]))
def test_white_space_does_not_matter(caption, space):
    text = str(caption).replace(" ", space)
    assert JointCaption.parse(text, trigger=caption.trigger) == caption


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("no panels at all", "none"),
        ("a [LEFT] b", "[LEFT]"),
        ("a [RIGHT] b [LEFT] c", "[RIGHT] [LEFT]"),
        ("a [SCENE-1] b [SCENE-3] c", "[SCENE-1] [SCENE-3]"),
        ("a [LEFT] b [RIGHT] c [LEFT] d", "[LEFT] [RIGHT] [LEFT]"),
        ("a [LEFT] b [BOTTOM] c", "[LEFT] [BOTTOM]"),
    ],
)
def test_markers_that_are_no_family_in_order_are_refused(text, got):
    with pytest.raises(ValueError) as raised:
        JointCaption.parse(text)
    assert str(raised.value).endswith(f"got {got}")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("", ("a", " "), markers(1, 2)), r"none behind \[RIGHT\]"),
        (("", ("a",), markers(1, 2)), "panels: expected 2, one a marker, got 1"),
        (("see [LEFT]", ("a", "b"), markers(1, 2)), r"no marker inside a part, got \[LEFT\]"),
        (("", ("a", "b [IMAGE7]"), markers(1, 2)), r"no marker inside a part, got \[IMAGE7\]"),
    ],
)
def test_parts_that_could_not_be_parsed_again_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        JointCaption(*parts)


@pytest.mark.parametrize("text", ["A day. [LEFT] a [RIGHT] b", "TRIPTYCHS [LEFT] a [RIGHT] b"])
def test_a_trigger_that_is_not_there_is_refused(text):
    with pytest.raises(ValueError, match="trigger: expected the caption to begin with 'TRIPTYCH'"):
        JointCaption.parse(text, trigger="TRIPTYCH")


# --- identities ---


def told(*panels: str, summary: str = "A story.") -> JointCaption:
    return JointCaption(summary, panels, markers(1, len(panels), "scenes"))


def test_identities_and_their_panels():
    caption = told("<Leo> wakes.", "<Mia-2> and <Leo>, later.", "Night.", summary="<Leo>, <Mia-2>, <Sam>.")
    assert identities(caption) == {"<Leo>": (0, 1), "<Mia-2>": (1,), "<Sam>": ()}


@pytest.mark.parametrize("broken", ["<Leo", "Leo>", "<Leo Smith>", "<Leo!>", "<<Leo"])
def test_a_malformed_identity_is_refused(broken):
    with pytest.raises(ValueError, match="identity: expected a tag such as <Leo>"):
        identities(told(f"{broken} wakes.", "<Leo> runs."))


def test_other_angle_brackets_are_no_identities():
    assert identities(told("a < b, <3 and 4 > 2", "left -> right")) == {}


# --- length ---


def test_the_words_beyond_the_limit_are_named():
    # Start, eight words or marks, end: ten tokens of CLIP.
    caption = "a red cube on snow at sunset."
    with pytest.warns(UserWarning, match="^caption: CLIPTokenizer reads 7 of 10 .* lost: at sunset.$"):
        assert check_length([CLIP], caption, [7]) == ("at", "sunset.")


def test_a_word_that_is_cut_in_two_is_lost():
    # "sunset." is two tokens, of which the first would still fit.
    with pytest.warns(UserWarning, match="lost: sunset.$"):
        assert check_length([CLIP], "a red cube on snow at sunset.", [9]) == ("sunset.",)


@pytest.mark.parametrize("tokenizer", [CLIP, T5], ids=["CLIP", "T5"])
@given(
    words=st.lists(st.sampled_from(["a", "red", "zebra", "cube,", "snow."]), max_size=30),
    limit=st.integers(0, 40),
)
def test_what_is_left_is_the_longest_that_fits(tokenizer, words, limit):
    def count(kept: int) -> int:
        return len(tokenizer(" ".join(words[:kept])).input_ids)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = check_length([tokenizer], " ".join(words), [limit])
    kept = len(words) - len(lost)
    assert tuple(words[kept:]) == lost
    assert kept == 0 or count(kept) <= limit
    assert not lost or count(kept + 1) > limit


def test_clip_may_cut_what_t5_reads():
    caption = "a red cube on snow. " * 10
    assert check_length([CLIP, CLIP, T5], caption, [None, None, 256]) == ()
    with pytest.warns(UserWarning, match="CLIPTokenizer reads 32 of 62 tokens, CLIPTokenizer .* are lost: "):
        lost = check_length([CLIP, CLIP, None], caption, [None, None, None])
    assert lost == tuple(caption.split()[25:])  # 30 tokens between start and end: five sentences


def test_a_cut_of_t5_is_a_loss_though_clip_reads_the_beginning():
    caption = "a red cube on snow. " * 10
    with pytest.warns(UserWarning, match="T5Tokenizer reads 43 of 61 tokens"):
        assert len(check_length([CLIP, T5], caption, [None, 43])) == 15


def test_arguments_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="max_lengths: expected 2, one a tokenizer, got 1"):
        check_length([CLIP, T5], "a cube", [77])
    with pytest.raises(ValueError, match="tokenizers: expected at least one that is not None"):
        check_length([None], "a cube", [77])
