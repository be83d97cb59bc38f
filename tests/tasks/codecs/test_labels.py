import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_heads.errors import InputError
from dit_heads.tasks.annotations import Labels
from dit_heads.tasks.codecs import LabelCodec
from dit_heads.tasks.palette import COLOURS
from dit_heads.tasks.query import Query

CODEC = LabelCodec(size=(8, 12))


@given(st.integers(2, 40), st.data())
def test_the_answer_comes_back_and_is_sure(count, data):
    names = tuple(map(str, range(count)))
    right, query = data.draw(st.sampled_from(names)), Query("classify", names)
    back = CODEC.decode(CODEC.encode(Labels.of(names, right), query), query)
    assert back.best == right
    assert back.probabilities.max() > 0.95


@settings(max_examples=20)
@given(st.permutations(list(COLOURS)), st.integers(2, 16))
def test_any_colours_may_be_bound(order, count):
    names = tuple(map(str, range(count)))
    query = Query("classify", names, tuple(order[:count]))
    for name in names:
        assert CODEC.decode(CODEC.encode(Labels.of(names, name), query), query).best == name


def test_a_picture_in_halves_is_undecided():
    query = Query("classify", ("cat", "dog"), ("red", "blue"))
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4], picture[:, 4:] = COLOURS["red"], COLOURS["blue"]
    assert np.allclose(CODEC.decode(picture, query).probabilities, 0.5, atol=0.01)
    between = np.broadcast_to((np.array(COLOURS["red"]) + COLOURS["blue"]) / 2 / 255, (4, 8, 3))
    assert np.allclose(CODEC.decode(between, query).probabilities, 0.5, atol=0.05)


def test_noise_does_not_change_the_answer():
    query = Query("classify", tuple(map(str, range(16))))
    rng = np.random.default_rng(0)
    for name in query.names:
        picture = CODEC.encode(Labels.of(query.names, name), query) / 255
        noisy = np.clip(picture + rng.normal(0, 0.08, picture.shape), 0, 1)
        assert CODEC.decode(noisy, query).best == name


def test_the_frame_is_as_large_as_the_source():
    query = Query("classify", ("cat", "dog"))
    source = np.zeros((5, 9, 3), np.uint8)
    assert CODEC.encode(Labels.of(query.names, "cat"), query, source).shape == source.shape


def test_seventeen_answers_have_bands():
    query = Query("classify", tuple(map(str, range(17))))
    picture = CODEC.encode(Labels.of(query.names, "16"), query)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2


def test_an_unknown_answer_and_uneven_bands_are_refused():
    query = Query("classify", ("cat", "dog"))
    with pytest.raises(InputError, match="expected one of cat, dog, got 'cow'"):
        CODEC.encode(Labels.of(("cow", "cat"), "cow"), query)
    with pytest.raises(InputError, match="as many in each answer"):
        CODEC.decode(np.zeros((4, 4)), Query("classify", ("cat", "dog"), ("red and blue", "red")))
