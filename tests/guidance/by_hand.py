"""Guided runs of small pipelines, the same as a loop written out, and what guidance could leave behind."""

from collections import Counter
from contextlib import ExitStack

import torch

from tests.tiny import explicit, prompts

STEPS = 4


CFG = 3.5


def run(pipe, count=2, cfg=CFG, **options):
    call = {"num_inference_steps": STEPS, "guidance_scale": cfg, "output_type": "latent"}
    return pipe(**prompts(count), **(call | options)).images


@torch.no_grad()
def by_hand(pipe, softness, scale, *, count=2, cfg=CFG, guided=lambda i: True, steps=STEPS, every=1):
    """CFG + head guidance as a loop over single predictions, with explicit attention maps in float64."""
    given, model, scheduler = prompts(count), pipe.transformer, pipe.scheduler
    x, difference = given["latents"], torch.zeros(())
    scheduler.set_timesteps(steps)

    def predicted(prompt, softness):
        return explicit(
            model,
            softness,
            hidden_states=x,
            encoder_hidden_states=given[f"{prompt}prompt_embeds"],
            pooled_projections=given[f"{prompt}pooled_prompt_embeds"],
            timestep=t.expand(count),
        )

    for i, t in enumerate(scheduler.timesteps):
        conditional, velocity = predicted("", {}), predicted("", {})
        if cfg > 1:
            unconditional = predicted("negative_", {})
            velocity = unconditional + cfg * (conditional - unconditional)
        if i % every == 0:
            difference = scale * (conditional - predicted("", softness))
        if guided(i):
            velocity = velocity + difference
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


def evaluations(transformer, action) -> int:
    """Rows x blocks that the transformer evaluates during `action`, counted at the feed-forwards."""
    total = Counter()
    with ExitStack() as stack:
        for block in transformer.transformer_blocks:
            hook = block.ff.register_forward_hook(lambda _, args, __: total.update(rows=len(args[0])))
            stack.callback(hook.remove)
        action()
    return total["rows"]


def state(pipe):
    """All that guidance could have left behind."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in pipe.transformer.named_modules()
    ]
    return hooks, {k: id(p) for k, p in pipe.transformer.attn_processors.items()}, set(vars(pipe))


class Stop(Exception):
    pass
