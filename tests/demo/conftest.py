"""Fixtures of the demo's tests: an engine on a tiny model."""

import asyncio

import pytest

from dit_heads.cli.generate import Settings
from dit_heads.demo.engine import Engine
from dit_heads.demo.limits import Limits
from tests.saved import tiny_pipeline


@pytest.fixture(autouse=True)
def _closed_loops(monkeypatch):
    """Gradio makes event loops for its locks and leaves them open; here they are closed."""
    made, new = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(new()) or made[-1])
    yield
    for loop in made:
        if not loop.is_running():
            loop.close()


@pytest.fixture(scope="package")
def model(tmp_path_factory) -> str:
    """A folder of the tiny SD3 pipeline."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def roomy(model):
    """An engine with room for all jobs of a test, shared by the tests of a run."""
    with Engine({model: tiny_pipeline}, Limits(queue=500, per_visitor=500)) as engine:
        yield engine


@pytest.fixture
def settings(model):
    """Settings of a quick picture, some of them others."""

    def make(**changes) -> Settings:
        quick = {"prompt": "a cat", "model": model, "steps": 2, "guidance_scale": 2.0}
        return Settings(**{**quick, **changes})

    return make
