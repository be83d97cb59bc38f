"""The other benchmarks in their shortest settings: each runs, and prints a line for each row of its table."""

import csv
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import FluxPipeline

from benchmarks import codecs, curves, diffusers_tests, in_context, train
from dit_heads.pipelines import FluxHeadsPipeline


@pytest.mark.slow
def test_every_coding_is_sent_through_the_autoencoder(capsys):
    codecs.main(count=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    codings = [coding for made in codecs.TASKS.values() for coding in made()]
    assert len(rows) == len(codecs.TASKS) + 3 * len(codings)


def test_curves_are_drawn_of_every_figure_of_a_log(tmp_path):
    log = tmp_path / "log.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "seconds", "loss", "gradient", "validation", "psnr"))
        writer.writerows(
            (step, step / 2, 1.0, 1.0, 0.5 - step / 100, "" if step % 2 else 20) for step in range(9)
        )
    curves.main(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tests_of_a_pipeline_test_its_drop_in_class():
    class OfFlux:
        pipeline_class: type = FluxPipeline

        def get_dummy_inputs(self) -> dict[str, Any]:
            return {"prompt": "a cat"}

    ours, other = (SimpleNamespace(cls=kind) for kind in (OfFlux, int))
    left: list[Any] = []
    config: Any = SimpleNamespace(
        hook=SimpleNamespace(pytest_deselected=lambda items: left.extend(items)), getoption=lambda _: "guided"
    )
    items: list[Any] = [ours, other]
    diffusers_tests.pytest_collection_modifyitems(config, items)
    assert items == [ours] and left == [other]
    assert OfFlux.pipeline_class is FluxHeadsPipeline
    assert OfFlux().get_dummy_inputs() == {"prompt": "a cat", "heads": "L0H0", "head_guidance_scale": 1.0}


@pytest.mark.slow
def test_sets_are_measured_without_a_lora(capsys):
    in_context.main(tasks=("sky",), count=1, steps=1, batch=1, device="cpu")
    assert "### sky: 1 sets" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_step_is_measured_in_every_way(capsys):
    train.main(steps=1, rounds=1, batch=1, precision="no")
    assert len(capsys.readouterr().out.splitlines()) >= 4 + len(train.ROWS)
