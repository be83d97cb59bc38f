"""Runs that are started, killed and stopped from outside: `python outside.py JOBS`, a JSON list of jobs.

Children are forked from this process, which has imported everything and has no threads. Prints a JSON object
with the result of each job by its name."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit_heads.cli import main


def started(arguments: list[str], said: Path | str = os.devnull) -> int:
    """A child that trains. What it says goes to files beginning with `said`."""
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            path = said if said == os.devnull else f"{said}.{name}"
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os._exit(main(["train", *arguments]))
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def done(out: Path) -> int:
    """Steps in the checkpoint of a run."""
    from dit_heads.training.checkpoints import read_average

    return read_average(out)[1] if (out / "checkpoint.safetensors").exists() else 0


def encoded(out: Path) -> int:
    return len(list((out / "cache").glob("*.safetensors"))) if (out / "cache").exists() else 0


def stopped(file: str, out: Path, reached: Callable[[], bool], sign: int, pause: float = 0) -> int:
    """The exit code of a run that gets a signal once it has `reached` a point."""
    child = started([file])
    while not reached():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), f"ended early in {out}"
        time.sleep(0.002)
    time.sleep(pause)
    os.kill(child, sign)
    return ended(child)


def run(file: str, out: str, *flags: str) -> dict[str, Any]:
    said = Path(f"{out}-said")
    code = ended(started([file, *flags], said))
    return {
        "code": code,
        "out": said.with_suffix(".out").read_text(),
        "err": said.with_suffix(".err").read_text(),
    }


def kill(file: str, out: str, count: int, steps: int) -> list[int]:
    """Steps done after each kill: first while pictures are encoded, then at random."""
    folder, rng, found = Path(out), random.Random(count), []
    for k in range(count):
        least = k * (steps - 5) // count
        reached = (lambda least=least: done(folder) >= least) if k else (lambda: encoded(folder) > 2)
        code = stopped(file, folder, reached, signal.SIGKILL, rng.uniform(0, 0.1))
        assert code == -signal.SIGKILL, code
        found.append(done(folder))
    assert ended(started([file])) == 0
    return found


def interrupt(file: str, out: str) -> list[int]:
    """The exit code after Ctrl-C, and the steps done by then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of the foreground, wherever the tests run
    code = stopped(file, Path(out), (Path(out) / "log.csv").exists, signal.SIGINT)
    found = [code, done(Path(out))]
    assert ended(started([file])) == 0
    return found


JOBS: dict[str, Callable[..., Any]] = {
    "run": run,
    "kill": kill,
    "interrupt": interrupt,
}

if __name__ == "__main__":
    assert main(["train", "--root", "nowhere"]) == 2  # imports everything, and says what it says on the way
    print(json.dumps({job: JOBS[job](*arguments) for job, *arguments in json.loads(sys.argv[1])}))
