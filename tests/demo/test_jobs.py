"""A job's states, and how it ends."""

import asyncio
import threading

import pytest

from dit_heads.demo.jobs import Job
from dit_heads.demo.sentences import BUG, FULL, sentence, without_paths
from dit_heads.errors import InputError


def job(work=lambda pipe, job: None, seconds=60.0) -> Job:
    return Job(work, None, seconds, lambda job: 3)


def raising(error):
    def work(pipe, job):
        raise error

    return work


def test_a_job_waits_at_its_place_in_the_queue():
    view = job().view
    assert (view.state, view.position, view.over) == ("waiting", 3, False)


def test_the_result_of_the_work_is_the_result_of_the_job():
    done = job(lambda pipe, job: (pipe, job))
    done.run("a pipeline")
    assert done.view.state == "done" and done.wait(0) == ("a pipeline", done)


def test_bad_input_is_told_in_its_own_words():
    failed = job(raising(InputError("steps: expected fewer")))
    failed.run(None)
    assert failed.view.state == "failed"
    with pytest.raises(InputError, match=r"^steps: expected fewer$"):
        failed.wait(0)


def test_a_bug_is_told_without_its_details(caplog):
    failed = job(raising(RuntimeError("secret of /root/house")))
    failed.run(None)
    assert failed.view.note == BUG and "secret" not in caplog.text
    assert "RuntimeError" in caplog.text and "raise error" in caplog.text


def test_a_job_that_waits_is_cancelled_at_once():
    waiting = job()
    waiting.cancel()
    assert waiting.view.state == "cancelled" and waiting.over


def test_a_job_that_runs_is_cancelled_at_its_next_check():
    seen = []

    def work(pipe, job):
        for step in range(5):
            job.check()
            seen.append(step)
            if step == 1:
                job.cancel()

    running = job(work)
    running.run(None)
    assert seen == [0, 1] and running.view.state == "cancelled"


def test_a_job_ends_when_its_time_is_over():
    late = job(lambda pipe, job: job.check(), seconds=0.0)
    late._deadline = 0.0
    late.run(None)
    assert late.view.state == "failed" and "time" in late.view.note


def test_a_job_that_is_over_does_not_change():
    over = job()
    over.cancel()
    over.update(state="running", note="again")
    assert over.view.state == "cancelled" and over.view.note == ""


def test_followers_see_every_state_until_the_last():
    gate, told = threading.Event(), threading.Event()

    def work(pipe, job):
        job.update(step=1, steps=2)
        told.set()
        gate.wait(5)
        return "picture"

    followed = job(work)

    async def follow():
        views = []
        async for view in followed.follow():
            views.append(view)
            if view.state == "waiting":
                threading.Thread(target=followed.run, args=(None,)).start()
                await asyncio.to_thread(told.wait, 5)
            if view.step:
                gate.set()
        return views

    views = asyncio.run(follow())
    assert [view.state for view in views] == ["waiting", "running", "done"]
    assert views[-1].result == "picture"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("path: cannot read '/tmp/a b/x.safetensors' as it is", "path: cannot read 'x.safetensors' as it is"),
        ("no such file: /root/house/secret.png", "no such file: secret.png"),
        ("expected embedded, embedded/flux, got a/b", "expected embedded, embedded/flux, got a/b"),
        ("start <= i / N < stop", "start <= i / N < stop"),
    ],
)
def test_no_message_has_a_path_of_the_machine(told, shown):
    assert without_paths(told) == shown
    assert sentence(InputError(told)) == shown


def test_a_full_memory_is_told_with_what_to_do():
    assert sentence(MemoryError()) == FULL
    assert sentence(RuntimeError("CUDA out of memory")) == FULL
