import json
import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.hunt import log as trial_log
from dit_heads.hunt.log import TrialLog
from dit_heads.hunt.scorer import Scorer
from dit_heads.hunt.trials import Trial, batches_of, evaluate
from dit_heads.io.fingerprints import fingerprint
from tests.saved import red, tiny_pipeline

HEADER = {"weights": "abc", "objective": "red"}
SETTINGS = st.tuples(st.sampled_from(["", "L0H1"]), st.integers(1, 2), st.sampled_from([1.0, 2.0]))


def trial(heads: str = "L0H1", seed: int = 0, prompt: str = "a cat", steps: int = 2) -> Trial:
    return Trial(heads, prompt, seed, steps, 2.0, 0.5)


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- batches ---


@given(settings=st.lists(SETTINGS, max_size=30), size=st.integers(1, 7))
def test_batches_hold_every_trial_in_order_and_one_setting_each(settings, size):
    listed = [Trial(heads, "a", i, steps, scale, 1.0) for i, (heads, steps, scale) in enumerate(settings)]
    batches = batches_of(listed, size)
    assert [t for batch in batches for t in batch] == listed
    assert all(len(batch) <= size and len({t.setting for t in batch}) == 1 for batch in batches)
    assert all(len(a) == size or a[0].setting != b[0].setting for a, b in pairwise(batches))


# --- pictures and scores ---


def test_a_picture_of_a_batch_is_the_one_that_guidance_draws_alone(pipe):
    call = {"guidance_scale": 2.0, "max_sequence_length": 16}
    batch = (trial("L0H1", 3), trial("L2", 4, "two dogs"), trial("L0H1, L1H0", 3))
    images = Scorer(pipe, red, call)(batch), Scorer(pipe, red, call).paint(batch)
    for score, image, t in zip(*images, batch, strict=True):
        with HeadGuidance(pipe, t.heads, scale=2.0, softness=0.5):
            alone = pipe(
                t.prompt,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(t.seed),
                output_type="pt",
                **call,
            ).images[0]
        assert_close(image, alone, atol=1e-5, rtol=0)
        assert score == pytest.approx(alone[0].mean().item(), abs=1e-5)


def test_without_heads_a_picture_is_the_pipelines_own(pipe):
    drawn = Scorer(pipe, red, {}).paint((trial("", 7),))
    own = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(7), output_type="pt")
    assert torch.equal(drawn, own.images)


def test_models_have_fingerprints_of_their_own():
    pipe = tiny_pipeline()
    before = fingerprint(pipe.transformer)
    assert fingerprint(tiny_pipeline().transformer) == before
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn.to_q.weight += 1e-3
    assert fingerprint(pipe.transformer) != before


# --- the log ---


def scored(batches):
    for batch in batches:
        yield batch, [t.seed + 0.5 for t in batch]


def filled(path: Path, listed) -> dict[Trial, float]:
    return evaluate(listed, TrialLog(path, HEADER), scored, size=3)


@given(share=st.floats(0, 1), count=st.integers(1, 8))
def test_a_log_that_was_cut_anywhere_gives_the_same_scores(tmp_path_factory, share, count):
    path = tmp_path_factory.mktemp("log") / "trials.jsonl"
    listed = [trial(seed=seed) for seed in range(count)]
    whole = filled(path, listed)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    kept = first + round(share * (len(data) - first))
    path.write_bytes(data[:kept])
    again: list[Trial] = []

    def execute(batches):
        again.extend(t for batch in batches for t in batch)
        yield from scored(batches)

    assert evaluate(listed, TrialLog(path, HEADER), execute, size=3) == whole
    assert bool(again) == (kept < len(data))
    lost = {t for t in batches_of(listed, 3) if set(t) & set(again)}
    assert again == [t for batch in batches_of(listed, 3) if batch in lost for t in batch]  # whole batches
    assert evaluate(listed, TrialLog(path, HEADER), execute, size=3) == whole


def test_scores_that_are_known_are_not_computed_again(tmp_path):
    listed = [trial(seed=seed) for seed in range(5)]
    filled(tmp_path / "log", listed)
    done: list[int] = []
    log = TrialLog(tmp_path / "log", HEADER)

    def nothing(batches):
        assert not batches
        return []

    evaluate(listed, log, nothing, size=3, done=done.append)
    assert done == [5] and len(log) == 5


def test_a_picture_that_comes_again_in_another_batch_keeps_its_score(tmp_path):
    log = TrialLog(tmp_path / "log", HEADER)
    log.add((trial(seed=1), trial(seed=2)), [0.1, 0.2])
    log.add((trial(seed=2), trial(seed=3)), [0.2000001, 0.3])
    for found in (log, TrialLog(tmp_path / "log", HEADER)):
        assert [found[trial(seed=seed)] for seed in (1, 2, 3)] == [0.1, 0.2, 0.3] and len(found) == 3
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_the_log_of_another_search_is_refused_with_the_difference(tmp_path):
    filled(tmp_path / "log", [trial()])
    with pytest.raises(ValueError, match=r"of another search \(objective: 'red' there, 'blue' here\)"):
        TrialLog(tmp_path / "log", HEADER | {"objective": "blue"})


@pytest.mark.parametrize("text", ["[1, 2]\n", "not JSON\n"])
def test_a_file_that_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match="is not the log of a search"):
        TrialLog(tmp_path / "log", HEADER)
    assert (tmp_path / "log").read_text() == text


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "log"
    filled(path, [trial()])
    log, before = TrialLog(path, HEADER), path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trial_log.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate([trial(seed=1)], log, scored, size=3)
    assert path.read_bytes() == before
    monkeypatch.setattr(trial_log.os, "fsync", os.fsync)


def test_a_line_is_a_picture(tmp_path):
    filled(tmp_path / "log", [trial(seed=3)])
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert rows[0] == HEADER
    assert rows[1] == asdict(trial(seed=3)) | {"score": 3.5}
