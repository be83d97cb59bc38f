"""Guided runs and calls equal those written out with explicit attention maps in float64."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3PAGPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import HeadGuidance
from tests import tiny
from tests.guidance.by_hand import CFG, STEPS, by_hand, run
from tests.saved import tiny_pipeline
from tests.tiny import BLOCKS, HEADS, KINDS, explicit, inputs, pipeline, prompts, sd3, weights


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
def test_a_guided_run_equals_the_loop_by_hand(any_pipe, cfg, trunk):
    chosen = [(1, 0, 0.7), (1, 3, 0.7), (3, 2, 0.7)]
    with HeadGuidance(any_pipe, "L1H0, L1H3, L3H2", scale=2.0, softness=0.7, trunk=trunk) as guide:
        got = run(any_pipe, cfg=cfg)
    assert_close(got, by_hand(any_pipe, weights(2, *chosen), 2.0, cfg=cfg))
    assert guide.report is not None and guide.report.trunk == trunk


def test_heads_of_the_image_only_attention():
    pipe = pipeline(sd3("sd3.5-medium"))
    softness = weights(2, (1, 2, 0.4), name="attn2") | weights(2, (1, 0, 0.4))
    with HeadGuidance(pipe, "L1H2i, L1H0", scale=1.5, softness=0.4):
        got = run(pipe)
    assert_close(got, by_hand(pipe, softness, 1.5))


def test_a_whole_block_is_its_heads(pipe):
    with HeadGuidance(pipe, "L2"):
        whole = run(pipe)
    with HeadGuidance(pipe, f"L2H0-{HEADS - 1}"):
        assert torch.equal(run(pipe), whole)


def test_softness_of_each_head(pipe):
    with HeadGuidance(pipe, "L1H0, L2", scale=1.0, softness={"L1H0": 0.25, "L2": 0.75}):
        got = run(pipe)
    everything = [(1, 0, 0.25), *((2, head, 0.75) for head in range(HEADS))]
    assert_close(got, by_hand(pipe, weights(2, *everything), 1.0))


@settings(max_examples=6)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(
    heads=st.sets(st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, HEADS - 1)), min_size=1, max_size=5),
    u=st.floats(0.05, 1),
    scale=st.floats(-2, 5).filter(lambda w: abs(w) > 0.01),
    model=st.sampled_from(tiny.MODELS),
    trunk=st.sampled_from(["shared", "two_pass"]),
)
@torch.no_grad()
def test_one_call_of_a_bare_transformer_equals_explicit_maps(kind, heads, u, scale, model, trunk):
    transformer, arguments = tiny.transformer(model), inputs(4, model)
    text = ", ".join(f"L{block}H{head}" for block, head in heads)
    clean = explicit(transformer, {}, **arguments)
    perturbed = explicit(transformer, weights(4, *((b, h, u) for b, h in heads)), kind, **arguments)
    difference = scale * (clean - perturbed)[2:]
    options: dict[str, Any] = {
        "perturbation": kind.name,
        "region": kind.region,
        "temperature": kind.temperature,
    }
    options |= {"scale": scale, "softness": u, "trunk": trunk, "conditional": slice(2, 4)}
    with HeadGuidance(transformer, text, **options):
        got = transformer(**arguments).sample
    # FLUX turns by its rotary positions in fp32, whatever its dtype.
    close: Any = {"atol": 1e-5, "rtol": 1e-5} if model == "flux" else {}
    assert_close(got, clean + torch.cat([difference, difference]), **close)


@pytest.mark.parametrize(
    ("start", "stop", "steps"), [(0, 0.5, {0, 1}), (0.25, 0.75, {1, 2}), (0.3, 1, {2, 3})]
)
def test_steps_from_start_to_before_stop_are_guided(pipe, start, stop, steps):
    with HeadGuidance(pipe, "L1H0", scale=2.0, start=start, stop=stop) as guide:
        got = run(pipe)
    assert_close(got, by_hand(pipe, weights(2, (1, 0, 1.0)), 2.0, guided=lambda i: i in steps))
    assert set(guide.report.guided) == steps


def test_img2img_counts_the_steps_that_it_executes(pipe):
    img2img: Any = StableDiffusion3Img2ImgPipeline(**pipe.components)
    img2img.set_progress_bar_config(disable=True)
    given = prompts(1)
    image = given.pop("latents")
    img2img.prepare_latents = lambda *_: image  # without an autoencoder there is no picture to start from
    img2img.image_processor.preprocess = lambda *_, **__: image
    with HeadGuidance(img2img, "L1H0", stop=0.5) as guide:
        img2img(**given, image=image, strength=0.5, num_inference_steps=8, output_type="latent")
    assert (guide.report.steps, guide.report.guided) == (4, [0, 1])


def test_each_picture_may_have_heads_of_its_own(any_pipe):
    sets = ["L1H0", "L0H1-2, L3"]
    with HeadGuidance(any_pipe, sets, scale=2.0, softness=0.5):
        together = run(any_pipe)
    for row, heads in enumerate(sets):
        with HeadGuidance(any_pipe, heads, scale=2.0, softness=0.5):
            assert_close(together[row], run(any_pipe)[row])


def test_several_pictures_a_prompt():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def pictures():
        return pipe(
            ["a cat", "a dog"],
            num_images_per_prompt=2,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    with HeadGuidance(pipe, ["L0H0", "L1H1", "L2H2", "L1H3"], scale=2.0):
        together = pictures()
    with HeadGuidance(pipe, "L2H2", scale=2.0):
        assert_close(together[2], pictures()[2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_skip_layer_guidance_gets_the_same_difference(pipe, trunk):
    """Its own term must not change: clean - (clean without a layer), the difference cancels."""
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda _, __, kwargs, out: seen.append((kwargs.get("skip_layers"), out[0])),
        with_kwargs=True,
        prepend=True,
    )
    options = {"skip_guidance_layers": [2], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.6}
    with HeadGuidance(pipe, "L1H0", scale=2.0, trunk=trunk) as guide:
        last = []
        after = pipe.transformer.register_forward_hook(lambda _, __, out: last.append(out[0]))
        run(pipe, **options)
        after.remove()
    hook.remove()
    skipping = [i for i, (layers, _) in enumerate(seen) if layers]
    assert len(skipping) == 2 and guide.report.guided == [0, 1, 2, 3]
    for i in skipping:
        added = last[i] - seen[i][1]
        assert added.abs().max() > 1e-3
        assert_close(torch.cat([added, added]), last[i - 1] - seen[i - 1][1][:4])


@torch.no_grad()
@pytest.mark.parametrize("residuals", [1, 2, 4])
def test_controlnet_residuals(residuals):
    model, arguments = sd3(), inputs(2)
    g = torch.Generator().manual_seed(5)
    added = [
        torch.randn(2, 16, tiny.HEADS * tiny.DIM, generator=g, dtype=torch.float64) for _ in range(residuals)
    ]
    arguments["block_controlnet_hidden_states"] = added
    clean = explicit(model, {}, **arguments)
    expected = clean + 2.0 * (clean - explicit(model, weights(2, (2, 1, 1.0)), **arguments))
    for trunk in ("shared", "two_pass"):
        with HeadGuidance(model, "L2H1", scale=2.0, trunk=trunk, conditional=slice(None)):
            assert_close(model(**arguments, return_dict=False)[0], expected)
    assert len(added) == residuals


def test_gradients_are_those_of_explicit_maps_also_when_checkpointed():
    model, arguments = sd3(), inputs(2)
    x = arguments["hidden_states"].requires_grad_()
    clean = explicit(model, {}, **arguments)
    (clean + 2.0 * (clean - explicit(model, weights(2, (1, 1, 0.5)), **arguments))).pow(2).sum().backward()
    expected, x.grad = x.grad, None
    for checkpointed in (False, True):
        model.train(checkpointed)
        (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
        with HeadGuidance(model, "L1H1", scale=2.0, softness=0.5, conditional=slice(None)):
            model(**arguments).sample.pow(2).sum().backward()
        assert_close(x.grad, expected)
        x.grad = None


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_gradients_after_detaching_are_an_error_where_blocks_run_again(trunk):
    """And not the gradients of something else."""
    model, arguments = sd3(), inputs(2)
    arguments["hidden_states"].requires_grad_()
    model.train()
    model.enable_gradient_checkpointing()
    with HeadGuidance(model, "L1H1", scale=2.0, conditional=slice(None), trunk=trunk):
        score = model(**arguments).sample.sum()
    with pytest.raises(RuntimeError):
        score.backward()


def test_half_precision_stays_half_precision():
    pipe = pipeline(sd3(dtype=torch.bfloat16))
    given = prompts(1, dtype=torch.bfloat16)
    with HeadGuidance(pipe, "L1H0"):
        images = pipe(**given, num_inference_steps=2, output_type="latent").images
    assert images.dtype == torch.bfloat16 and images.isfinite().all()


@pytest.mark.parametrize("every", [2, 3])
def test_between_evaluations_the_last_difference_serves_again(pipe, every):
    """The rows x blocks of a run say how often the branch ran; the loop by hand with what effect."""
    with HeadGuidance(pipe, "L1H0", scale=2.0, every=every) as guide:
        got = run(pipe, cfg=1.0)
    assert guide.report.guided == [0, 1, 2, 3]
    assert guide.report.extra == len(range(0, STEPS, every)) * 2 * (BLOCKS - 1)
    assert_close(got, by_hand(pipe, weights(2, (1, 0, 1.0)), 2.0, cfg=1.0, every=every))


@torch.no_grad()
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_brings_the_standard_deviation_back(rescale):
    model, arguments = sd3(), inputs(3)
    clean = explicit(model, {}, **arguments)
    guided = clean + 5.0 * (clean - explicit(model, weights(3, (1, 0, 1.0)), **arguments))
    with HeadGuidance(model, "L1H0", scale=5.0, rescale=rescale, conditional=slice(None)):
        got = model(**arguments).sample
    for row in range(3):
        scaled = guided[row] * clean[row].std() / guided[row].std()
        assert_close(got[row], rescale * scaled + (1 - rescale) * guided[row])
        if rescale == 1:
            assert_close(got[row].std(), clean[row].std())


@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
def test_a_whole_block_image_to_image_equals_diffusers_pag(pipe, cfg):
    with HeadGuidance(pipe, "L1", scale=2.0, region="image_to_image"):
        ours = run(pipe, cfg=cfg)
    parts = {k: v for k, v in pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    pag = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])
    assert_close(ours, run(pag, cfg=cfg, pag_scale=2.0))
