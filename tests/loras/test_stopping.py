"""Encoding and drawing end before the next call of a model, and leave nothing behind."""

import pytest
import torch

from dit_heads.loras.stopping import Stopped, stopping
from tests.saved import tiny_pipeline

CALL = {"prompt": "a b", "num_inference_steps": 5, "height": 32, "width": 32, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hooks(pipe) -> int:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(len(module._forward_pre_hooks) for part in parts for module in part.modules())


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])
def test_the_next_call_of_a_model_is_not_made(pipe, part):
    calls = []
    seen = getattr(pipe, part).register_forward_hook(lambda *_: calls.append(part))
    before = hooks(pipe)
    with pytest.raises(Stopped), stopping(pipe, lambda: bool(calls)):
        pipe(**CALL)
    seen.remove()
    assert calls == [part] and hooks(pipe) == before


def test_an_autoencoder_is_asked_too(pipe):
    with pytest.raises(Stopped), stopping(pipe, lambda: True):
        pipe.vae.encode(torch.zeros(1, 3, 16, 16))


def test_what_is_not_stopped_is_as_without(pipe):
    def drawn():
        return pipe(**CALL, generator=torch.Generator().manual_seed(0), output_type="pt").images

    alone = drawn()
    for stop in (None, lambda: False):
        with stopping(pipe, stop):
            assert torch.equal(drawn(), alone)
