"""The engine: one job after the other, and nothing of one in another."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_heads.demo.drawing import Drawing, Lora
from dit_heads.demo.engine import Engine
from dit_heads.demo.isolation import lent, state_of
from dit_heads.demo.jobs import Cancelled
from dit_heads.demo.limits import Limits
from dit_heads.errors import InputError
from tests.demo.lone_runs import alone, lone, visible_loras
from tests.demo.watched import cancelled_at, memory_grown, watched
from tests.saved import tiny_pipeline


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> list[Path]:
    return visible_loras(tmp_path_factory.mktemp("loras"))


def requests(settings, loras, count):
    """Drawings that differ in heads, seeds, strengths and LoRAs."""
    for n in range(count):
        heads = [None, f"L{n % 3}", f"L{n % 3}H{n % 4}", f"L0H{n % 4}, L2"][n % 4]
        guided = {"heads": heads, "scale": 1.0 + n % 5, "softness": 0.5} if heads else {}
        used = [Lora(loras[n % 3], 1.0 + n % 2), Lora(loras[(n + 1) % 3], 0.5)][: n % 3]
        yield Drawing(settings(seed=n % 7, **guided), tuple(used))


def test_a_picture_is_the_one_of_diffusers_with_heads_and_loras(roomy, model, settings, loras):
    for drawing in [
        Drawing(settings(seed=3)),
        Drawing(settings(seed=3, heads="L1H2", scale=4.0)),
        Drawing(settings(seed=3, heads="L1H2", scale=4.0), (Lora(loras[0], 1.5),)),
    ]:
        assert roomy.submit(model, drawing).wait(60).image.tobytes() == alone(drawing)


@pytest.mark.parametrize(("count", "compared"), [(24, 4), pytest.param(200, 24, marks=pytest.mark.slow)])
def test_requests_at_once_get_the_pictures_of_lone_runs(roomy, model, settings, loras, count, compared):
    drawings = list(requests(settings, loras, count))
    jobs: list[Any] = [None] * len(drawings)
    gate = threading.Barrier(20)

    def ask(first):
        gate.wait()
        for n in range(first, len(drawings), 20):
            jobs[n] = roomy.submit(model, drawings[n], owner=f"visitor {n}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pictures = [job.wait(900).image.tobytes() for job in jobs]
    expected = {}
    for drawing, picture in zip(drawings, pictures, strict=True):
        key = repr(drawing)
        if key not in expected and len(expected) < compared:
            expected[key] = lone(model, drawing)
        if key in expected:
            assert picture == expected[key], key
    by_request = {}
    for drawing, picture in zip(drawings, pictures, strict=True):
        assert by_request.setdefault(repr(drawing), picture) == picture
    assert len(set(by_request.values())) > 0.9 * len(by_request)


def test_a_pipeline_is_bit_for_bit_as_before_after_every_kind_of_job(model, settings, loras):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before, weights = state_of(pipe), {k: v.clone() for k, v in pipe.transformer.state_dict().items()}

    class Job:
        view = None

        def update(self, **changes):
            if changes.get("step") == self.stop:
                raise Cancelled

        stop = -1

    for stop, drawing in [
        (-1, Drawing(settings(heads="L1"), (Lora(loras[0]), Lora(loras[1], 0.5)), compare=True)),
        (1, Drawing(settings(heads="L1H1"), (Lora(loras[0]),))),
    ]:
        job: Any = Job()
        job.stop = stop
        try:
            with lent(pipe, lambda: None):
                drawing(pipe, job)
        except Cancelled:
            assert stop == 1
        assert state_of(pipe) == before
    after = pipe.transformer.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_a_model_that_a_job_has_changed_is_loaded_again(model, settings, caplog):
    loaded = []

    def load():
        loaded.append(1)
        return tiny_pipeline()

    def vandal(pipe, job):
        with torch.no_grad():
            next(pipe.transformer.parameters()).add_(1.0)

    with Engine({model: load}) as engine:
        clean = engine.submit(model, Drawing(settings())).wait(60).image
        engine.submit(model, vandal).wait(60)
        assert engine.submit(model, Drawing(settings())).wait(60).image.tobytes() == clean.tobytes()
    assert len(loaded) == 2 and "left a trace" in caplog.text


def test_a_cancelled_job_frees_the_queue_within_one_step(roomy, model, settings):
    calls = []

    def count(pipe, job):
        hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            return cancelled_at(2, Drawing(settings(steps=50, heads="L1")))(pipe, job)
        finally:
            hook.remove()

    long = roomy.submit(model, count)
    following = roomy.submit(model, Drawing(settings(seed=4)))
    assert following.wait(60).image.tobytes() == lone(model, Drawing(settings(seed=4)))
    assert long.view.state == "cancelled"
    assert len(calls) == 2


def test_a_job_that_waits_leaves_the_queue_when_it_is_cancelled(model, settings):
    gate = threading.Event()
    with Engine({model: tiny_pipeline}) as engine:
        engine.submit(model, lambda pipe, job: gate.wait(30))
        second, third = (engine.submit(model, Drawing(settings(seed=n))) for n in (1, 2))
        second.cancel()
        assert second.view.state == "cancelled"
        assert third.view.position == 1
        gate.set()
        assert third.wait(60).image


def test_waiting_jobs_know_their_place(model, settings):
    gate, began = threading.Event(), threading.Event()

    def hold(pipe, job):
        began.set()
        gate.wait(30)

    with Engine({model: tiny_pipeline}) as engine:
        engine.submit(model, hold)
        assert began.wait(30)
        waiting = [engine.submit(model, Drawing(settings(seed=n))) for n in range(3)]
        assert [job.view.position for job in waiting] == [1, 2, 3]
        gate.set()


def test_a_full_queue_and_a_greedy_visitor_are_told_to_wait(model):
    gate = threading.Event()
    with Engine({model: tiny_pipeline}, Limits(queue=3, per_visitor=2)) as engine:
        for _ in range(2):
            engine.submit(model, lambda pipe, job: gate.wait(30), "ann")
        with pytest.raises(InputError, match="queue: 2 of your requests"):
            engine.submit(model, lambda pipe, job: None, "ann")
        with pytest.raises(InputError, match=r"queue: 3 requests are waiting"):
            for n in range(5):
                engine.submit(model, lambda pipe, job: None, f"bob {n}")
        gate.set()


def test_jobs_can_be_found_by_their_id_and_old_ones_are_forgotten(model):
    with Engine({model: tiny_pipeline}, Limits(kept=2)) as engine:
        jobs = [engine.submit(model, lambda pipe, job: "done") for _ in range(5)]
        for job in jobs:
            job.wait(60)
        last = engine.submit(model, lambda pipe, job: None)
        assert engine.job(last.id) is last and engine.job(jobs[-1].id) is jobs[-1]
        with pytest.raises(InputError, match="job: there is none"):
            engine.job(jobs[0].id)


def test_a_model_that_cannot_be_loaded_fails_its_jobs_with_a_sentence(model):
    def load():
        raise InputError("model: cannot load '/root/models/none'")

    with (
        Engine({model: load}) as engine,
        pytest.raises(InputError, match=r"^model: cannot load 'none'$"),
    ):
        engine.submit(model, lambda pipe, job: None).wait(60)


def test_an_unknown_model_is_refused(roomy):
    with pytest.raises(InputError, match="model: expected one of"):
        roomy.submit("other", lambda pipe, job: None)


def test_the_unguided_picture_comes_along_and_is_found_again(roomy, model, settings):
    from dit_heads.demo.drawing import Cache

    cache = Cache()
    plain = roomy.submit(model, Drawing(settings(seed=9))).wait(60).image
    for scale in (2.0, 3.0):
        drawing = Drawing(settings(seed=9, heads="L1", scale=scale), compare=True, cache=cache)
        drawn = roomy.submit(model, drawing).wait(60)
        assert drawn.unguided.tobytes() == plain.tobytes() != drawn.image.tobytes()
    assert len(cache._pictures) == 1


def test_previews_show_the_picture_that_is_coming(roomy, model, settings):
    seen = []
    work = watched(Drawing(settings(steps=4, seed=2)), lambda job, changes: seen.append(changes))
    drawn = roomy.submit(model, work).wait(60)
    previews = [changes["preview"] for changes in seen if "preview" in changes]
    assert [changes["step"] for changes in seen if "step" in changes][-1] == 4
    assert previews and previews[0].size == drawn.image.size


def test_the_last_preview_of_all_is_the_picture(model, settings, monkeypatch):
    monkeypatch.setattr("dit_heads.demo.preview.SHARE", 1e9)
    with Engine({model: tiny_pipeline}) as engine:
        last = []
        work = Drawing(settings(steps=3, seed=2))
        shown = watched(work, lambda job, changes: last.append(changes.get("preview")))
        drawn = engine.submit(model, shown).wait(60)
    assert [image for image in last if image is not None][-1].tobytes() == drawn.image.tobytes()


@pytest.mark.slow
def test_memory_is_level_after_100_requests(roomy, model, settings, loras):
    def work(count):
        for drawing in requests(settings, loras, count):
            roomy.submit(model, drawing).wait(60)

    assert memory_grown(work) < 16 * 2**20
