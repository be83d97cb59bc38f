import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_heads import HeadId, HeadSet
from dit_heads.errors import InputError
from dit_heads.heads import BlockId
from dit_heads.heads.names import MAX_PARTS

HEAD_IDS = st.builds(HeadId, st.integers(0, 60), st.integers(0, 40), st.booleans())
PARTS = HEAD_IDS | st.builds(BlockId, st.integers(0, 60), st.booleans())
SETS = st.sets(PARTS, min_size=1).map(HeadSet)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("L1H10", [HeadId(1, 10)]),
        ("L1H10, L11H15", [HeadId(1, 10), HeadId(11, 15)]),
        ("L7", [BlockId(7)]),
        ("L12H0-2", [HeadId(12, 0), HeadId(12, 1), HeadId(12, 2)]),
        ("L3-5", [BlockId(3), BlockId(4), BlockId(5)]),
        ("L3-4H2", [HeadId(3, 2), HeadId(4, 2)]),
        ("L3H2i L3i", [BlockId(3, True), HeadId(3, 2, True)]),
        (" L0H1 ,\tL0H0,", [HeadId(0, 0), HeadId(0, 1)]),
    ],
)
def test_text_names_heads(text, parts):
    assert list(HeadSet.parse(text)) == parts


@given(SETS)
def test_text_and_json_give_the_set_again(heads):
    assert HeadSet.parse(str(heads)) == heads
    assert HeadSet.from_json(json.loads(json.dumps(heads.to_json()))) == heads
    assert eval(repr(heads)) == heads


@given(SETS, SETS)
def test_union_is_that_of_sets(a, b):
    assert set(a | b) == set(a) | set(b)
    assert (a | b) == (b | a) and hash(a | b) == hash(b | a)


@given(
    st.lists(HEAD_IDS, min_size=1).flatmap(lambda parts: st.tuples(st.just(parts), st.permutations(parts)))
)
def test_order_and_repetition_do_not_matter(pair):
    listed, shuffled = pair
    assert HeadSet(listed) == HeadSet(shuffled + shuffled)
    assert str(HeadSet(listed)) == str(HeadSet(shuffled))


def test_neighbouring_heads_are_written_as_a_range():
    heads = HeadSet.parse("L12H2, L12H0, L12H1, L12H5, L7")
    assert str(heads) == "L7, L12H0-2, L12H5"
    assert len(heads) == 5


def test_a_whole_block_contains_its_heads_but_not_those_of_the_other_attention():
    heads = HeadSet.parse("L7, L2H3i")
    assert HeadId(7, 31) in heads and BlockId(7) in heads and HeadId(2, 3, True) in heads
    assert HeadId(7, 31, True) not in heads and HeadId(2, 3) not in heads and BlockId(2) not in heads


def test_resolving_gives_single_heads():
    assert HeadSet.parse("L1, L0H2").resolve([4, 3]) == (
        HeadId(0, 2),
        HeadId(1, 0),
        HeadId(1, 1),
        HeadId(1, 2),
    )
    assert HeadSet.parse("L0i, L0H1").resolve([2, 2], [2, 0]) == (
        HeadId(0, 0, True),
        HeadId(0, 1),
        HeadId(0, 1, True),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one"),
        (" , ", "expected at least one"),
        ("L1H2, H3", "got 'H3'"),
        ("L1H2.5", "got 'L1H2.5'"),
        ("l1h2", "got 'l1h2'"),
        ("L1H5-2", "goes up, got 'L1H5-2'"),
        ("L5-2", "goes up, got 'L5-2'"),
        ("L-1", "got 'L-1'"),
        ("L1H9999999999", "got 'L1H9999999999'"),
        ("L٣H1", "got 'L٣H1'"),
    ],
)
def test_text_that_names_no_heads_is_refused(text, message):
    with pytest.raises(ValueError, match="heads: ") as error:
        HeadSet.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L9H0", "blocks L0 to L1, got L9H0"),
        ("L2", "blocks L0 to L1, got L2"),
        ("L0H4", "heads up to L0H3, got L0H4"),
        ("L1H0i", r"blocks with an image-only attention \(i\) are \[0\], got L1H0i"),
        ("L0H4i", "heads up to L0H3i, got L0H4i"),
    ],
)
def test_heads_that_the_model_lacks_are_named_with_its_range(text, message):
    with pytest.raises(ValueError, match=message):
        HeadSet.parse(text).resolve([4, 4], [4, 0])


def test_a_model_without_image_only_attention_says_so():
    with pytest.raises(ValueError, match="no block of the model has an image-only attention"):
        HeadSet.parse("L0H0i").resolve([4])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("L0-999H0-999", 1_000_000),
        ("L0-127H0-127, L0", 16_385),
        (", ".join(["L0-999H0-999"] * 50), 50_000_000),
    ],
)
def test_more_heads_than_any_model_has_are_refused_before_they_are_made(text, count):
    began = time.process_time()
    with pytest.raises(InputError, match=f"at most {MAX_PARTS} heads and blocks, got {count} in 'L0"):
        HeadSet.parse(text)
    assert time.process_time() - began < 0.1
    assert len(HeadSet.parse("L0-127H0-127")) == MAX_PARTS


def test_a_long_text_is_read_in_linear_time_and_quoted_in_part():
    began = time.process_time()
    with pytest.raises(InputError, match=r"got 'x{60}\.\.\.'"):
        HeadSet.parse("x" * 1_000_000)
    assert HeadSet.parse(" ," * 1_000_000 + "L1") == HeadSet.parse("L1")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("part", ["L1H2", (1, 2), 3])
def test_a_set_of_other_things_is_refused(part):
    with pytest.raises(ValueError, match="expected HeadId or BlockId"):
        HeadSet([part])


def test_files(tmp_path):
    heads = HeadSet.parse("L1H0-2, L7, L3i")
    heads.save(tmp_path / "heads.json")
    assert HeadSet.load(tmp_path / "heads.json") == heads
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"heads": "L1"}', '{"heads": [1]}', '{"heads": []}', '{"heads": ["X"]}']
)
def test_files_of_other_things_are_refused(text, tmp_path):
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read '.*heads\.json'"):
        HeadSet.load(tmp_path / "heads.json")
