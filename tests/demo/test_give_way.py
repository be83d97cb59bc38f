"""Long jobs that let others go first, and nothing of one in the other."""

import threading
from pathlib import Path

import pytest
import torch

from dit_heads.demo.drawing import Drawing, Lora
from dit_heads.demo.engine import Engine
from dit_heads.errors import InputError
from tests.demo.lone_runs import lone, visible_loras
from tests.saved import tiny_pipeline


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> list[Path]:
    return visible_loras(tmp_path_factory.mktemp("loras"))


class Long:
    """Three pictures, between which others go first; `between` is called before each."""

    long = True

    def __init__(self, settings, between=lambda: None):
        self.settings, self.between = settings, between

    def __call__(self, pipe, job):
        pictures = []
        for seed in range(3):
            self.between()
            job.give_way()
            noise = torch.rand(2).tolist()  # the random state goes on where it was
            pictures.append((noise, Drawing(self.settings(seed=seed))(pipe, job).image.tobytes()))
        return pictures


def test_a_long_job_lets_others_go_first_and_both_get_the_pictures_of_lone_runs(
    roomy, model, settings, loras
):
    drawing, jobs, over = Drawing(settings(seed=8, heads="L1"), (Lora(loras[0]),)), [], []

    def between():
        over.append([job.over for job in jobs])
        jobs.append(roomy.submit(model, drawing))

    alone = roomy.submit(model, Long(settings)).wait(60)
    long = roomy.submit(model, Long(settings, between))
    assert long.wait(60) == alone
    assert over == [[], [True], [True, True]]
    assert {job.wait(60).image.tobytes() for job in jobs} == {lone(model, drawing)}


def test_a_long_job_gives_no_way_to_other_long_ones_and_goes_on_after_one_round(model, settings):
    seen, jobs = [], []

    def work(pipe, job):
        seen.append("quick")
        if len(jobs) < 5:  # each brings another one
            jobs.append(engine.submit(model, work))

    def between():
        seen.append("long")
        if not jobs:
            jobs.append(engine.submit(model, work))
            jobs.append(engine.submit(model, Long(settings, lambda: seen.append("other"))))

    with Engine({model: tiny_pipeline}) as engine:
        engine.submit(model, Long(settings, between)).wait(60)
        jobs[1].wait(60)
    assert seen[:6] == ["long", "quick", "long", "quick", "long", "quick"]
    assert "other" not in seen[:6]


def test_a_cancelled_long_job_does_not_end_the_one_that_goes_first(model, settings):
    with Engine({model: tiny_pipeline}) as engine:
        quick = []

        def first(pipe, job):
            long.cancel()
            return Drawing(settings())(pipe, job)

        def between():
            if not quick:
                quick.append(engine.submit(model, first))

        ready = threading.Event()
        long = engine.submit(model, Long(settings, lambda: ready.wait(30) and between()))
        ready.set()
        with pytest.raises(InputError, match="cancelled"):
            long.wait(60)
        assert quick[0].wait(60).image


def test_a_long_job_that_has_changed_the_model_gives_no_way(model, settings):
    seen = []

    class Changing:
        long = True

        def __call__(self, pipe, job):
            hook = pipe.transformer.register_forward_hook(lambda *_: None)
            quick = engine.submit(model, lambda pipe, job: seen.append("quick"))
            job.give_way()
            seen.append("long")
            hook.remove()
            return quick

    with Engine({model: tiny_pipeline}) as engine:
        engine.submit(model, Changing()).wait(60).wait(60)
    assert seen == ["long", "quick"]
