"""A search by two Ray workers: the same as in this process, also when a worker is killed."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_heads import HeadHunter
from dit_heads.hunt.cluster import on_ray
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.trials import Scorer, fingerprint
from tests.saved import red, tiny_pipeline

CALL = {"guidance_scale": 1.0, "max_sequence_length": 8}
CONFIG = HuntConfig(rounds=2, per_round=1, scale=4.0, steps=2, seeds=(0, 1), batch=3)


def marked(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    """`red`, and a file named like the process that was asked."""
    (Path(os.environ["DIT_HEADS_TEST_MARKS"]) / str(os.getpid())).touch()
    return red(images, prompts)


def scorer() -> Scorer:
    torch.set_num_threads(1)
    return Scorer(tiny_pipeline(), marked, CALL)


@pytest.fixture
def marks(tmp_path, monkeypatch) -> Iterator[Path]:
    ray = pytest.importorskip("ray")
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv("DIT_HEADS_TEST_MARKS", str(tmp_path / "marks"))
    threads = torch.get_num_threads()
    yield tmp_path / "marks"
    ray.shutdown()
    torch.set_num_threads(threads)


def hunter(folder: Path, **options: Any) -> HeadHunter:
    here = scorer()
    return HeadHunter(
        here.pipe,
        marked,
        ["a cat", "two dogs"],
        folder,
        CONFIG,
        candidates="L0, L2H0-1",
        call=CALL,
        **options,
    )


def on_two_workers() -> Any:
    return on_ray(scorer, 2, weights=fingerprint(tiny_pipeline().transformer))


@pytest.mark.slow
def test_two_workers_and_a_killed_one_find_what_this_process_finds(marks, tmp_path):
    here = hunter(tmp_path / "here").run()
    known = {path.name for path in marks.iterdir()}
    execute = on_two_workers()

    def killing(batches):
        for number, found in enumerate(execute(batches)):
            if number == 1:
                workers = {path.name for path in marks.iterdir()} - known
                os.kill(int(max(workers)), signal.SIGKILL)
            yield found

    there = hunter(tmp_path / "there", execute=killing).run()
    assert there == here
    assert len(list(marks.iterdir())) >= len(known) + 3  # two workers, and those that came for the killed


@pytest.mark.slow
def test_workers_of_other_weights_are_refused(marks):
    with pytest.raises(ValueError, match="workers: expected a model of weights abc, and some have"):
        on_ray(scorer, 1, weights="abc")


@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_refused(marks):
    import ray

    ray.init(num_cpus=1, include_dashboard=False)
    with pytest.raises(ValueError, match="workers: 2 need 2 CPUs, and the cluster has 1"):
        on_two_workers()


def test_no_workers_are_refused():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        on_ray(scorer, 0, weights="abc")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'dit-heads\[search\]'"):
        on_ray(scorer, 1, weights="abc")
