"""A search by two Ray workers: the same as in this process, also when a worker is killed."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_heads import HeadHunter
from dit_heads.errors import InputError
from dit_heads.hunt.cluster import on_ray
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.scorer import Scorer
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
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 starves workers beside other load
    threads = torch.get_num_threads()
    yield tmp_path / "marks"
    ray.shutdown()
    torch.set_num_threads(threads)


def hunter(folder: Path, config: HuntConfig = CONFIG, **options: Any) -> HeadHunter:
    here = scorer()
    return HeadHunter(
        here.pipe,
        marked,
        ["a cat", "two dogs"],
        folder,
        config,
        candidates="L0, L2H0-1",
        call=CALL,
        **options,
    )


def on_two_workers() -> Any:
    return on_ray(scorer, 2)


def last_asked(marks: Path, others: set[str]) -> int:
    """The process that scored last, others left out. Their order says nothing: process ids wrap around."""
    workers = [path for path in marks.iterdir() if path.name not in others]
    return int(max(workers, key=lambda path: path.stat().st_mtime_ns).name)


@pytest.mark.slow
def test_two_workers_and_killed_ones_find_what_this_process_finds(marks, tmp_path):
    here = hunter(tmp_path / "here").run()
    known = {path.name for path in marks.iterdir()}
    execute, killed = on_two_workers(), []

    def killing(batches):
        for number, found in enumerate(execute(batches)):
            if number == 1:
                killed.append(last_asked(marks, known | set(map(str, killed))))
                os.kill(killed[-1], signal.SIGKILL)
            yield found

    there = hunter(tmp_path / "there", execute=killing).run()
    assert there == here
    assert len(killed) == len(set(killed)) == 3  # one in each round, one without heads
    assert len(list(marks.iterdir())) >= len(known) + 3  # two workers, and those that came for the killed


def other_scorer() -> Scorer:
    """Another model in one of the two processes: in the one that comes second."""
    found, mark = scorer(), Path(os.environ["DIT_HEADS_TEST_MARKS"]) / "first"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        torch.nn.init.normal_(found.pipe.transformer.proj_out.weight)
    return found


@pytest.mark.slow
def test_workers_of_other_weights_are_refused(marks):
    with pytest.raises(InputError, match=r"workers: expected the same .* components\.transformer\.weights"):
        on_ray(other_scorer, 2)


@pytest.mark.slow
def test_a_search_whose_model_the_workers_alone_hold_finds_what_this_process_finds(marks, tmp_path):
    config = replace(CONFIG, method="fast", share=0.9)
    here = hunter(tmp_path / "here", config=config)
    prompts = ["a cat", "two dogs"]
    there = HeadHunter.on(on_two_workers(), prompts, tmp_path / "there", config, candidates="L0, L2H0-1")
    assert there.cost() == here.cost()
    found = [search.run() for search in (here, there)]
    assert found[0] == found[1]
    for search, result in zip((here, there), found, strict=True):
        search.write(result)
    for name in ("heads.json", "scores.csv", "sheet.png", "screen-1.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


class Deadly(Scorer):
    """Dies of one prompt, as of memory that does not suffice."""

    def __call__(self, batch):
        if any(trial.prompt == "two dogs" for trial in batch):
            (Path(os.environ["DIT_HEADS_TEST_MARKS"]) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def deadly() -> Scorer:
    return Deadly(tiny_pipeline(), red, CALL)


@pytest.mark.slow
def test_three_workers_that_die_of_one_batch_end_the_search_with_the_reason(marks, tmp_path):
    search = HeadHunter.on(on_ray(deadly, 1), ["a cat", "two dogs"], tmp_path / "h", replace(CONFIG, batch=1))
    with pytest.raises(InputError, match=r"batch: 3 workers died of a batch of 1 pictures .*: .*\w"):
        search.run()
    assert len(list(marks.iterdir())) == 3


def failing() -> Scorer:
    raise InputError("model: there is none")


@pytest.mark.slow
def test_what_a_worker_refuses_is_refused_here_in_the_same_words(marks):
    with pytest.raises(InputError, match="model: there is none"):
        on_ray(failing, 1)


@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_refused(marks):
    import ray

    ray.init(num_cpus=1, include_dashboard=False)
    with pytest.raises(ValueError, match="workers: 2 need 2 CPUs, and the cluster has 1"):
        on_two_workers()


def test_no_workers_are_refused():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        on_ray(scorer, 0)


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'dit-heads\[search\]'"):
        on_ray(scorer, 1)
