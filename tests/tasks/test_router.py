import pytest

from dit_heads.errors import InputError
from dit_heads.tasks.instructions import FRAMES, fill, phrases
from dit_heads.tasks.query import Query
from dit_heads.tasks.router import means, route

QUERIES = {
    "segment": Query("segment", ("cube",)),
    "segment_classes": Query("segment", ("cube", "red cone"), ("teal", "pink")),
    "instances": Query("instances", ("cat",)),
    "detect": Query("detect", ("traffic light",)),
    "detect_classes": Query("detect", ("cube", "red cone"), ("blue", "lime")),
    "depth": Query("depth"),
    "classify": Query("classify", ("cat", "dog", "cow"), ("red", "navy", "white")),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_each_of_our_instructions_is_understood_as_what_it_was_made_of(frame):
    query = QUERIES[frame]
    wrong = {}
    for phrase in phrases(frame):
        found = route(fill(phrase, query))
        if (found.task, found.names) != (query.task, query.names):
            wrong[phrase] = found
        elif found.colours:
            assert found.colours == query.colours
    assert wrong == {}


# Written before the signs were weighed, by how people ask.
QUESTIONS = {
    "how far is everything?": Query("depth"),
    "How far away is the red cube?": Query("depth"),
    "what's the depth here": Query("depth"),
    "distance map please": Query("depth"),
    "Which things are near and which are far?": Query("depth"),
    "where are the cubes?": Query("detect", ("cube",)),
    "Where is the red cube?": Query("detect", ("red cube",)),
    "find all people": Query("detect", ("people",)),
    "find the people": Query("detect", ("people",)),
    "find every person in the crowd": Query("detect", ("person",)),
    "locate traffic lights": Query("detect", ("traffic light",)),
    "detect cars and buses": Query("detect", ("car", "bus")),
    "Can you find a blue sphere and two cones?": Query("detect", ("blue sphere", "cone")),
    "put boxes around the dogs": Query("detect", ("dog",)),
    "bounding boxes for cats": Query("detect", ("cat",)),
    "detect everything": Query("detect", ("object",)),
    "find all objects": Query("detect", ("object",)),
    "segment the cone": Query("segment", ("cone",)),
    "segment all objects": Query("segment", ("object",)),
    "mask of the object": Query("segment", ("object",)),
    "mask of the white cube": Query("segment", ("white cube",)),
    "cut out the person": Query("segment", ("person",)),
    "segment cubes, cones and spheres": Query("segment", ("cube", "cone", "sphere")),
    "Give me a mask for the sky": Query("segment", ("sky",)),
    "how far is it?": Query("depth"),
    "which pixels belong to the road?": Query("segment", ("road",)),
    "separate each cube by a different colour": Query("instances", ("cube",)),
    "instance masks for all sheep": Query("instances", ("sheep",)),
    "instances cube": Query("instances", ("cube",)),
    "segment every cube individually": Query("instances", ("cube",)),
    "is this a cat or a dog?": Query("classify", ("cat", "dog")),
    "Is it a cube, a cone or a sphere?": Query("classify", ("cube", "cone", "sphere")),
    "cat or dog?": Query("classify", ("cat", "dog")),
    "Does the picture show grass, sand or snow?": Query("classify", ("grass", "sand", "snow")),
    "Is there a cube?": Query("classify", ("cube", "no cube")),
    "Show red if there is a cat, else blue": Query("classify", ("cat", "no cat"), ("red", "blue")),
    "classify day or night": Query("classify", ("day", "night")),
    "classify this as day or night": Query("classify", ("day", "night")),
}


@pytest.mark.parametrize("text", QUESTIONS)
def test_questions_in_free_words_are_understood(text):
    if text == "find all people":
        assert route(text).names in (("people",), ("person",))
    else:
        wanted, found = QUESTIONS[text], route(text)
        names = tuple("person" if name == "people" else name for name in wanted.names)
        assert (found.task, found.names, found.colours) == (wanted.task, names, wanted.colours)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "make it prettier", "a large red cube on grass", "turn the day into night", "???", "1 2 3",
     "remove the cube", "who are you"],
)  # fmt: skip
def test_what_is_no_task_is_refused_with_examples(text):
    with pytest.raises(InputError, match="where are the cubes"):
        route(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segment", "names nothing to segment"),
        ("what is it?", "names no answers"),
        ("show each cat and each dog in a different colour", "one class for instances, got cat, dog"),
    ],
)
def test_a_task_without_what_it_needs_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        route(text)


def test_only_known_classes_are_taken_if_they_are_listed():
    assert route("where are the Cubes?", known=("cube", "cone")).names == ("cube",)
    assert route("detect everything", known=("cube",)).names == ("object",)
    with pytest.raises(InputError, match="'dog' is not known; there are cube, cone"):
        route("where is the dog?", known=("cube", "cone"))


def test_a_phrase_of_another_task_does_not_mean_it():
    assert means("Paint every {name} white on black.", "segment")
    assert not means("Paint every {name} white on black.", "detect")
    assert not means("How far is the {name}?", "detect")
