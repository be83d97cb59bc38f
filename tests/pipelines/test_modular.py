"""The guider of pipelines/modular.py."""

from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3AutoBlocks,
)
from torch.testing import assert_close

from dit_heads import HeadGuidance, load_embedded
from dit_heads.pipelines.modular import HeadPerturbationGuidance
from tests import tiny
from tests.tiny import explicit, weights


@torch.no_grad()
def guided(guider: HeadPerturbationGuidance, model: Any, step: int = 0, steps: int = 4) -> torch.Tensor:
    """One step as the denoising loop of Modular Diffusers does it."""
    cond, uncond = tiny.inputs(2, seed=1), tiny.inputs(2, seed=2)
    both = {name: (cond[name], cond[name] if name == "hidden_states" else uncond[name]) for name in cond}
    guider.set_state(step=step, num_inference_steps=steps, timestep=cond["timestep"])
    states = guider.prepare_inputs(both)
    for state in states:
        guider.prepare_models(model)
        fields = {name: getattr(state, name) for name in cond}
        state.noise_pred = model(**fields, joint_attention_kwargs=None, return_dict=False)[0]
        guider.cleanup_models(model)
    assert all(isinstance(state, BlockState) for state in states)
    return guider(states).pred


@torch.no_grad()
def by_hand(model: Any, cfg: float, scale: float) -> torch.Tensor:
    cond, uncond = tiny.inputs(2, seed=1), tiny.inputs(2, seed=2)
    uncond["hidden_states"] = cond["hidden_states"]
    clean, without = explicit(model, {}, **cond), explicit(model, {}, **uncond)
    perturbed = explicit(model, weights(2, (1, 0, 0.5), (3, 2, 0.5)), **cond)
    return without + cfg * (clean - without) + scale * (clean - perturbed)


@pytest.mark.parametrize("kind", tiny.SD3)
@pytest.mark.parametrize(("cfg", "scale"), [(3.5, 2.0), (1.0, 2.0), (3.5, 0.0), (1.0, 0.0)])
def test_a_step_equals_explicit_maps(kind, cfg, scale):
    model = tiny.sd3(kind)
    guider = HeadPerturbationGuidance(
        heads="L1H0, L3H2", head_guidance_scale=scale, softness=0.5, guidance_scale=cfg
    )
    assert_close(guided(guider, model), by_hand(model, cfg, scale))
    assert guider.num_conditions == 1 + (cfg != 1) + (scale != 0)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_whole_modular_pipeline_draws_what_head_guidance_on_the_ordinary_one_draws(cfg):
    pipe, modular = load_embedded("sd3"), StableDiffusion3AutoBlocks().init_pipeline()
    guider = HeadPerturbationGuidance(
        heads="L1H3, L4", head_guidance_scale=1.5, softness=0.5, guidance_scale=cfg, head_guidance_stop=0.7
    )
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    modular.update_components(**parts, guider=guider)
    # Unlike the ordinary pipeline, the modular one encodes no negative prompt unless it is given one.
    asked = {"prompt": "a large red cube on grass", "negative_prompt": "", "num_inference_steps": 4}
    drawn: dict[str, Any] = {"output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    got = modular(**asked, **drawn, output="images", height=128, width=128)
    drawn["generator"].manual_seed(0)
    with HeadGuidance(pipe, "L1H3, L4", scale=1.5, softness=0.5, stop=0.7):
        expected = pipe(**asked, **drawn, guidance_scale=cfg).images
    assert_close(got, expected, atol=1e-4, rtol=0)


def test_steps_outside_the_range_are_not_guided():
    model = tiny.sd3()
    guider = HeadPerturbationGuidance(
        heads="L1H0, L3H2",
        head_guidance_scale=2.0,
        softness=0.5,
        guidance_scale=1.0,
        head_guidance_start=0.25,
        head_guidance_stop=0.75,
    )
    for step, scale in enumerate([0.0, 2.0, 2.0, 0.0]):
        assert_close(guided(guider, model, step), by_hand(model, 1.0, scale))


def test_the_model_is_put_back_after_each_prediction():
    model = tiny.sd3()
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    processors = {name: id(p) for name, p in model.attn_processors.items()}
    guided(HeadPerturbationGuidance(heads="L1"), model)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == before
    assert {name: id(p) for name, p in model.attn_processors.items()} == processors


def test_the_config_round_trips(tmp_path):
    guider = HeadPerturbationGuidance(
        heads="L1H0-2, L3", softness=0.25, perturbation="uniform", region="image", guidance_scale=4.0
    )
    guider.save_pretrained(tmp_path)
    again = HeadPerturbationGuidance.from_pretrained(tmp_path)
    public = [{k: v for k, v in g.config.items() if not k.startswith("_")} for g in (guider, again)]
    assert public[0] == public[1]
    assert again.heads == guider.heads and again.perturbation == guider.perturbation
    changed: Any = guider.new(softness=0.5)
    assert changed.softness == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "head 3"}, "heads: expected"),
        ({"head_guidance_scale": float("nan")}, "head_guidance_scale: expected a finite number"),
        ({"head_guidance_start": 0.5, "head_guidance_stop": 0.5}, "expected 0 <= start < stop <= 1"),
        ({"perturbation": "blur"}, "perturbation: expected"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadPerturbationGuidance(**({"heads": "L1"} | options))


@pytest.mark.parametrize(
    ("options", "message"), [({"heads": "L9"}, "L0 to L3"), ({"softness": 2}, "softness")]
)
def test_what_only_the_model_shows_is_refused_at_the_first_step(options, message):
    with pytest.raises(ValueError, match=message):
        guided(HeadPerturbationGuidance(**({"heads": "L1"} | options)), tiny.sd3())


def test_a_pipeline_interrupted_in_its_perturbed_pass_leaves_the_model_exact():
    model = tiny.sd3()
    given = tiny.inputs(2)
    guider = HeadPerturbationGuidance(heads="L1H0, L3H2", guidance_scale=1.0)
    with torch.no_grad():
        plain, expected = model(**given).sample, guided(guider, model)

        def interrupt(*_: Any):
            if perturbed.append(1) or len(perturbed) == 2:  # the second call is the perturbed one
                raise KeyboardInterrupt

        perturbed: list[int] = []
        hook = model.transformer_blocks[2].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            guided(guider, model)
        hook.remove()
        assert torch.equal(model(**given).sample, plain)  # by whoever calls it next
        assert torch.equal(guided(guider, model), expected)
        assert not model._forward_pre_hooks
