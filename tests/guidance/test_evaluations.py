"""What head guidance costs in block evaluations, and that it costs nothing where it is off."""

from contextlib import ExitStack

import pytest
import torch

from dit_heads import HeadGuidance
from tests.guidance.by_hand import CFG, STEPS, evaluations, run
from tests.tiny import BLOCKS


@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
@pytest.mark.parametrize("fork", range(BLOCKS))
def test_blocks_evaluated(pipe, fork, cfg):
    """One prediction of R rows and L blocks costs R (L - f) more with a fork at block f, R L more with two
    passes."""
    rows, own = 2, STEPS * BLOCKS * (4 if cfg > 1 else 2)
    for trunk, blocks in (("shared", BLOCKS - fork), ("two_pass", BLOCKS)):
        guide = HeadGuidance(pipe, f"L{fork}H1, L3", stop=0.5, trunk=trunk)
        with guide:
            counted = evaluations(pipe.transformer, lambda: run(pipe, cfg=cfg))
        extra = 2 * rows * blocks  # two of four steps are guided
        assert counted == own + extra
        assert (guide.report.evaluations, guide.report.extra) == (counted, extra)


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"softness": 0.0}, {"softness": {"L1H0": 0.0}}])
def test_switched_off_it_is_the_unguided_run_bit_for_bit(any_pipe, off):
    plain = run(any_pipe)
    own = evaluations(any_pipe.transformer, lambda: run(any_pipe))
    with HeadGuidance(any_pipe, "L1H0", **off) as guide:
        assert torch.equal(run(any_pipe), plain)
        assert evaluations(any_pipe.transformer, lambda: run(any_pipe)) == own
    assert guide.report.trunk == "none"


def test_steps_that_are_not_guided_are_the_unguided_ones_bit_for_bit(pipe):
    seen = {}
    for name in ("plain", "guided"):
        latents = seen[name] = []
        with HeadGuidance(pipe, "L1H0", start=0.5) if name == "guided" else ExitStack():
            run(
                pipe,
                callback_on_step_end=lambda _, __, ___, d, latents=latents: latents.append(d["latents"]) or d,
            )
    same = [torch.equal(a, b) for a, b in zip(seen["plain"], seen["guided"], strict=True)]
    assert same == [True, True, False, False]
