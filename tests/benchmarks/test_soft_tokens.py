"""The table of soft tokens: what is trained for it, and what its rows say."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import soft_tokens
from dit_heads.embedded.soft_tokens.evaluate import FIGURES, SECONDS
from dit_heads.embedded.soft_tokens.runs import WEIGHTS, SolverRun, folder_of, keep_settings
from dit_heads.io.pictures import read_settings
from dit_heads.tasks.soft_tokens.files import save_module
from tests.pipelines.tokens_made import parts


@pytest.fixture(autouse=True)
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_HEADS_CACHE", str(tmp_path))


def kept(name: str, level: float) -> None:
    figures = dict.fromkeys(soft_tokens.SHOWN, level)
    found = {"soft": figures, "hard": figures, "tokenizers": figures, SECONDS: 0.02, "scenes": 9}
    path = folder_of(name) / FIGURES
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))


def test_an_interval_is_students_of_the_seeds():
    values = [0.1, 0.2, 0.4]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert soft_tokens.cell(values, 4) == f"{np.mean(values):.4f} ± {(high - low) / 2:.4f}"
    assert soft_tokens.cell([0.5]) == "0.500"


def test_each_row_names_tokenizers_that_are_trained():
    common = ("--steps", "2")
    made = {job.name for job in soft_tokens.tokenizer_jobs((), (0, 1), common)}
    jobs = soft_tokens.solver_jobs((), (0, 1), common, "L3H2", 5)
    assert len({job.name for job in jobs}) == 2 * (len(soft_tokens.ROWS) + 1)
    for job in jobs:
        named = {job.command[job.command.index(flag) + 1] for flag in ("--depth", "--mask")}
        assert named <= made and job.then[-1] == "5"
    few = {job.name for job in soft_tokens.tokenizer_jobs(("gaps",), (0, 1), common)}
    assert few == {"mask-s0", "depth-gaps-s0", "depth-gaps-s1"}


def test_a_run_that_is_there_is_not_made_again():
    (job, *_) = soft_tokens.tokenizer_jobs((), (0,), ())
    assert not job.is_done
    folder_of(job.name).mkdir(parents=True)
    (folder_of(job.name) / WEIGHTS).touch()
    assert job.is_done
    solver = soft_tokens.solver_jobs(("parallel",), (0,), (), "", 5)[0]
    assert not solver.is_done
    kept(solver.name, 1.0)
    assert solver.is_done


def test_the_table_has_a_row_for_each_way_of_reading(capsys: pytest.CaptureFixture[str]):
    for seed, level in enumerate((1.0, 2.0, 3.0)):
        kept(f"parallel-s{seed}", level)
    kept("plain-s0", 5.0)
    soft_tokens.table()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "tokenizers alone: parallel",
        "parallel, soft",
        "parallel, hard",
        "parallel, cross-entropy alone, soft",
        "parallel, cross-entropy alone, hard",
    ]
    assert "| 2.000 ± 2.484 |" in rows[1] and rows[1].endswith("| 20.0 |")
    assert "parallel: 3 seeds, 9 scenes" in lines[-1]


def test_unknown_rows_are_refused():
    with pytest.raises(SystemExit, match="rows: expected some of parallel"):
        soft_tokens.train("solvers", rows=("nothing",))


def test_a_sheet_shows_what_a_run_answers(tmp_path: Path):
    reader = parts()
    for name in ("solver", "depth", "mask"):
        part = getattr(reader, name)
        save_module(part, part.config, folder_of(name) / WEIGHTS)
    keep_settings(SolverRun(name="solver"))
    soft_tokens.sheet("solver", tmp_path / "sheet.png", count=2)
    assert read_settings(tmp_path / "sheet.png") == {"run": "solver", "scenes": 2}
