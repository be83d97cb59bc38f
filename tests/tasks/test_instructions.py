import json

import pytest

from dit_heads.errors import InputError
from dit_heads.tasks.instructions import (
    FRAMES,
    canonical,
    fill,
    instruction,
    phrases,
    read_phrases,
    rewritten,
    slots_of,
)
from dit_heads.tasks.query import Query
from dit_heads.tasks.words import indefinite, plural, singular

BOTH = Query("classify", ("cat", "apple"), ("red", "blue"))
CUBE = Query("detect", ("cube",))


@pytest.mark.parametrize("frame", FRAMES)
def test_each_task_has_forty_phrases_and_a_quarter_is_kept_unseen(frame):
    every, seen, unseen = phrases(frame), phrases(frame, "seen"), phrases(frame, "unseen")
    assert len(set(every)) == len(every) >= 40
    assert sorted(seen + unseen) == sorted(every)
    assert len(unseen) >= 8
    assert every[0] == seen[0]


@pytest.mark.parametrize("frame", FRAMES)
def test_phrases_have_slots_of_their_task_alone(frame):
    allowed = {
        "depth": set(), "segment": {"name", "plural", "list"}, "instances": {"name", "plural"},
        "detect": {"name", "plural", "colour", "list"},
    }.get(frame, {"bindings", "in_colours", "choices", "list", "or_list"})  # fmt: skip
    for phrase in phrases(frame):
        assert slots_of(phrase) <= allowed, phrase
        assert frame == "depth" or slots_of(phrase), phrase


def test_slots_are_filled_by_hand():
    assert fill("{bindings}", BOTH) == "red for cat, blue for apple"
    assert fill("{choices}", BOTH) == "red if it is a cat, blue if it is an apple"
    assert fill("{in_colours}", BOTH) == "cat in red and apple in blue"
    assert fill("{list}? {or_list}?", BOTH) == "a cat and an apple? a cat or an apple?"
    assert canonical(CUBE) == "Detect every cube and draw a blue box around each."


def test_a_key_always_takes_the_same_phrase_and_keys_take_all():
    assert instruction(CUBE, "a") == instruction(CUBE, "a")
    drawn = {instruction(CUBE, str(k), "unseen") for k in range(400)}
    assert drawn == {fill(phrase, CUBE) for phrase in phrases("detect", "unseen")}
    assert "Ring each cube." in {instruction(CUBE, str(k), more=["Ring each {name}."]) for k in range(400)}


def test_phrases_of_a_file_are_checked(tmp_path):
    path = tmp_path / "more.json"
    good = {"depth": ["How deep is it all?"], "detect": ["Hunt down each {name}, then box it in {colour}."]}
    path.write_text(json.dumps(good))
    assert read_phrases(path) == {frame: tuple(given) for frame, given in good.items()}
    unseen = phrases("depth", "unseen")[0]
    for wrong, message in (
        ({"colour": ["a"]}, "frame: expected one of segment"),
        ({"depth": "How deep?"}, "phrases: expected lists of phrases by"),
        ({"depth": [unseen]}, "expected none that is kept for tests, got"),
        ({"depth": ["Where is the cube?"]}, "expected such as mean depth, got 'Where is the cube"),
        ({"depth": ["How deep is the {name}?"]}, "expected such as mean depth"),
        ({"detect": ["Box each {name"]}, "expected such as mean detect"),
        ([], "phrases: expected lists of phrases by"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            read_phrases(path)
    with pytest.raises(InputError, match="phrases: expected a JSON file, cannot read"):
        read_phrases(tmp_path / "none.json")


def test_only_faithful_and_new_phrases_of_a_language_model_are_kept():
    asked = []

    def write(prompt: str) -> str:
        asked.append(prompt)
        return "\n".join(
            [
                "1. Hunt down each {name} and enclose it with a {colour} rectangle.",
                "2. Detect every {name} and draw a {colour} box around each.",  # that is ours
                "3. Detect every cube and draw a {colour} box around it.",  # a slot is lost
                "4. How far is the {name}, {colour}?",  # another task
                "5. Paint the {name} {colour} {",
                "- Hunt down each {name} and enclose it with one {colour} rectangle.",  # hardly new
            ]
        )

    kept = rewritten("detect", write, rounds=1, count=6)
    assert kept == ["Hunt down each {name} and enclose it with a {colour} rectangle."]
    assert "6 different ways" in asked[0]
    assert "{colour}, {name}" in asked[0]


@pytest.mark.parametrize(
    ("one", "many"),
    [("cube", "cubes"), ("red box", "red boxes"), ("bus", "buses"), ("cherry", "cherries"), ("toy", "toys"),
     ("person", "people"), ("sheep", "sheep"), ("bottle of water", "bottles of water"), ("glass", "glasses"),
     ("horse", "horses"), ("couch", "couches"), ("traffic light", "traffic lights")],
)  # fmt: skip
def test_plurals_and_back(one, many):
    assert plural(one) == many
    if one != "glass":  # glasses are worn too
        assert singular(many) == one
    assert singular(one) == one


def test_articles():
    names = ("cat", "apple", "hour", "the sky", "no cat", "unicorn", "umbrella")
    wanted = ["a cat", "an apple", "an hour", "the sky", "no cat", "a unicorn", "an umbrella"]
    assert [indefinite(name) for name in names] == wanted


def test_an_unknown_frame_is_refused():
    with pytest.raises(InputError, match="expected one of segment, segment_classes"):
        phrases("colour")


def test_numbers_have_no_article():
    assert indefinite("two") == "two"
    assert indefinite("orange sphere") == "an orange sphere"


def test_only_instructions_that_are_read_are_chosen():
    every = [fill(phrase, CUBE) for phrase in phrases("detect", "seen")]
    reads = lambda text: "cubes" not in text  # noqa: E731
    chosen = {instruction(CUBE, str(key), reads=reads) for key in range(300)}
    assert chosen == {text for text in every if reads(text)} < set(every)
    assert {instruction(CUBE, str(key), reads=lambda text: False) for key in range(300)} == set(every)
