"""Whatever happens in between, detaching puts everything back."""

import copy

import pytest
import torch
from diffusers import (
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch.testing import assert_close

from dit_heads import HeadGuidance
from tests.guidance.by_hand import Stop, run, state
from tests.tiny import pipeline, sd3


def test_everything_is_put_back(any_pipe):
    plain, before = run(any_pipe), state(any_pipe)
    with HeadGuidance(any_pipe, "L0H1, L2") as guide:
        assert state(any_pipe) != before
        assert not torch.equal(run(any_pipe), plain)
    assert state(any_pipe) == before and torch.equal(run(any_pipe), plain)
    guide.detach()
    assert state(any_pipe) == before


def test_everything_is_put_back_after_an_exception_in_the_middle_of_a_run(any_pipe):
    plain, before = run(any_pipe), state(any_pipe)

    def interrupt(*_):
        raise Stop

    with pytest.raises(Stop), HeadGuidance(any_pipe, "L0H1"):
        run(any_pipe, callback_on_step_end=interrupt)
    assert state(any_pipe) == before and torch.equal(run(any_pipe), plain)


def test_a_run_after_an_interrupted_one_starts_anew(pipe):
    def interrupt(*_):
        raise Stop

    with HeadGuidance(pipe, "L1H0", stop=0.5) as guide:
        with pytest.raises(Stop):
            run(pipe, callback_on_step_end=interrupt)
        again = run(pipe)
        assert guide.report.guided == [0, 1]
        assert torch.equal(run(pipe), again)


def test_attach_and_detach_by_hand(pipe):
    guide = HeadGuidance(pipe, "L1H0")
    plain = run(pipe)
    guided = run(guide.attach().pipe)
    guide.detach()
    assert torch.equal(run(pipe), plain)
    with guide:
        assert torch.equal(run(pipe), guided)


def test_a_shadowed_progress_bar_is_put_back(pipe):
    own = pipe.progress_bar
    vars(pipe)["progress_bar"] = own
    with HeadGuidance(pipe, "L1H0"):
        run(pipe)
    assert vars(pipe)["progress_bar"] is own


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_cpu_offload_before_and_after_attaching(pipe, trunk):
    with HeadGuidance(pipe, "L1H0", trunk=trunk):
        guided = run(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        assert_close(run(pipe), guided)
        assert_close(run(pipe), guided)
    unguided = run(pipe)
    assert not torch.allclose(unguided, guided)
    with HeadGuidance(pipe, "L1H0", trunk=trunk):
        assert_close(run(pipe), guided)
        assert_close(run(pipe), guided)
    assert_close(run(pipe), unguided)


def test_the_caller_keeps_his_arguments(pipe):
    mine = {"scale": 0.5}
    with HeadGuidance(pipe, "L1H0"):
        run(pipe, joint_attention_kwargs=mine)
    assert mine == {"scale": 0.5}


def test_nesting_is_refused(pipe):
    other = StableDiffusion3Pipeline(**pipe.components)
    with HeadGuidance(pipe, "L1H0"):
        for shared in (pipe, other):
            with pytest.raises(ValueError, match="under head guidance already"):
                HeadGuidance(shared, "L2").attach()
        run(pipe)


def test_two_guided_pipelines_in_turn_keep_their_heads(pipe):
    other = pipeline(sd3("sd3.5-large"))
    alone = []
    for each, heads in ((pipe, "L1H0"), (other, "L2H1")):
        with HeadGuidance(each, heads):
            alone.append(run(each))
    with HeadGuidance(pipe, "L1H0"), HeadGuidance(other, "L2H1"):
        for _ in range(2):
            assert torch.equal(run(pipe), alone[0])
            assert torch.equal(run(other), alone[1])


def test_nothing_of_ours_stays_when_projections_are_fused_while_attached(pipe):
    plain = run(pipe)
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.fuse_qkv_projections()
    pipe.transformer.unfuse_qkv_projections()
    assert {type(p) for p in pipe.transformer.attn_processors.values()} == {JointAttnProcessor2_0}
    assert_close(run(pipe), plain)
    HeadGuidance(pipe, "L1H0").attach().detach()


def test_a_copy_of_the_pipeline_is_refused_while_attached_and_free_afterwards(pipe):
    plain = run(pipe)
    with HeadGuidance(pipe, "L1H0"):
        with pytest.raises(ValueError, match="cannot be copied; detach first"):
            copy.deepcopy(pipe.transformer)
        shallow = copy.copy(pipe)
        with pytest.raises(ValueError, match="expected a run of its own"):
            run(shallow)
        assert not torch.equal(run(pipe), plain)
    assert torch.equal(run(copy.deepcopy(pipe)), plain) and torch.equal(run(shallow), plain)
