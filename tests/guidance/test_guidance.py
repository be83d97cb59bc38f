import threading
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3PAGPipeline, StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dit_heads import HeadGuidance, HeadSet
from tests import tiny
from tests.saved import tiny_pipeline
from tests.tiny import BLOCKS, HEADS, KINDS, explicit, inputs, pipeline, prompts, sd3, weights

STEPS = 4
CFG = 3.5


@pytest.fixture(params=tiny.SD3)
def pipe(request) -> Any:
    return pipeline(sd3(request.param))


@pytest.fixture
def sd3_pipe() -> Any:
    return pipeline(sd3())


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


# --- the maths ---


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
def test_a_guided_run_equals_the_loop_by_hand(pipe, cfg, trunk):
    chosen = [(1, 0, 0.7), (1, 3, 0.7), (3, 2, 0.7)]
    with HeadGuidance(pipe, "L1H0, L1H3, L3H2", scale=2.0, softness=0.7, trunk=trunk) as guide:
        got = run(pipe, cfg=cfg)
    assert_close(got, by_hand(pipe, weights(2, *chosen), 2.0, cfg=cfg))
    assert guide.report is not None and guide.report.trunk == trunk


def test_heads_of_the_image_only_attention():
    pipe = pipeline(sd3("sd3.5-medium"))
    softness = weights(2, (1, 2, 0.4), name="attn2") | weights(2, (1, 0, 0.4))
    with HeadGuidance(pipe, "L1H2i, L1H0", scale=1.5, softness=0.4):
        got = run(pipe)
    assert_close(got, by_hand(pipe, softness, 1.5))


def test_a_whole_block_is_its_heads(sd3_pipe):
    with HeadGuidance(sd3_pipe, "L2"):
        whole = run(sd3_pipe)
    with HeadGuidance(sd3_pipe, f"L2H0-{HEADS - 1}"):
        assert torch.equal(run(sd3_pipe), whole)


def test_softness_of_each_head(sd3_pipe):
    with HeadGuidance(sd3_pipe, "L1H0, L2", scale=1.0, softness={"L1H0": 0.25, "L2": 0.75}):
        got = run(sd3_pipe)
    everything = [(1, 0, 0.25), *((2, head, 0.75) for head in range(HEADS))]
    assert_close(got, by_hand(sd3_pipe, weights(2, *everything), 1.0))


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
def test_steps_from_start_to_before_stop_are_guided(sd3_pipe, start, stop, steps):
    with HeadGuidance(sd3_pipe, "L1H0", scale=2.0, start=start, stop=stop) as guide:
        got = run(sd3_pipe)
    assert_close(got, by_hand(sd3_pipe, weights(2, (1, 0, 1.0)), 2.0, guided=lambda i: i in steps))
    assert set(guide.report.guided) == steps


def test_img2img_counts_the_steps_that_it_executes(sd3_pipe):
    pipe: Any = StableDiffusion3Img2ImgPipeline(**sd3_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    given = prompts(1)
    image = given.pop("latents")
    pipe.prepare_latents = lambda *_: image  # without an autoencoder there is no picture to start from
    pipe.image_processor.preprocess = lambda *_, **__: image
    with HeadGuidance(pipe, "L1H0", stop=0.5) as guide:
        pipe(**given, image=image, strength=0.5, num_inference_steps=8, output_type="latent")
    assert (guide.report.steps, guide.report.guided) == (4, [0, 1])


def test_each_picture_may_have_heads_of_its_own(pipe):
    sets = ["L1H0", "L0H1-2, L3"]
    with HeadGuidance(pipe, sets, scale=2.0, softness=0.5):
        together = run(pipe)
    for row, heads in enumerate(sets):
        with HeadGuidance(pipe, heads, scale=2.0, softness=0.5):
            assert_close(together[row], run(pipe)[row])


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
def test_skip_layer_guidance_gets_the_same_difference(sd3_pipe, trunk):
    """Its own term must not change: clean - (clean without a layer), the difference cancels."""
    seen = []
    hook = sd3_pipe.transformer.register_forward_hook(
        lambda _, __, kwargs, out: seen.append((kwargs.get("skip_layers"), out[0])),
        with_kwargs=True,
        prepend=True,
    )
    options = {"skip_guidance_layers": [2], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.6}
    with HeadGuidance(sd3_pipe, "L1H0", scale=2.0, trunk=trunk) as guide:
        last = []
        after = sd3_pipe.transformer.register_forward_hook(lambda _, __, out: last.append(out[0]))
        run(sd3_pipe, **options)
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


def test_half_precision_stays_half_precision():
    pipe = pipeline(sd3(dtype=torch.bfloat16))
    given = prompts(1, dtype=torch.bfloat16)
    with HeadGuidance(pipe, "L1H0"):
        images = pipe(**given, num_inference_steps=2, output_type="latent").images
    assert images.dtype == torch.bfloat16 and images.isfinite().all()


# --- the cost ---


@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
@pytest.mark.parametrize("fork", range(BLOCKS))
def test_blocks_evaluated(sd3_pipe, fork, cfg):
    """One prediction of R rows and L blocks costs R (L - f) more with a fork at block f, R L more with two
    passes."""
    rows, own = 2, STEPS * BLOCKS * (4 if cfg > 1 else 2)
    for trunk, blocks in (("shared", BLOCKS - fork), ("two_pass", BLOCKS)):
        guide = HeadGuidance(sd3_pipe, f"L{fork}H1, L3", stop=0.5, trunk=trunk)
        with guide:
            counted = evaluations(sd3_pipe.transformer, lambda: run(sd3_pipe, cfg=cfg))
        extra = 2 * rows * blocks  # two of four steps are guided
        assert counted == own + extra
        assert (guide.report.evaluations, guide.report.extra) == (counted, extra)


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"softness": 0.0}, {"softness": {"L1H0": 0.0}}])
def test_switched_off_it_is_the_unguided_run_bit_for_bit(pipe, off):
    plain = run(pipe)
    own = evaluations(pipe.transformer, lambda: run(pipe))
    with HeadGuidance(pipe, "L1H0", **off) as guide:
        assert torch.equal(run(pipe), plain)
        assert evaluations(pipe.transformer, lambda: run(pipe)) == own
    assert guide.report.trunk == "none"


def test_steps_that_are_not_guided_are_the_unguided_ones_bit_for_bit(sd3_pipe):
    seen = {}
    for name in ("plain", "guided"):
        latents = seen[name] = []
        with HeadGuidance(sd3_pipe, "L1H0", start=0.5) if name == "guided" else ExitStack():
            run(
                sd3_pipe,
                callback_on_step_end=lambda _, __, ___, d, latents=latents: latents.append(d["latents"]) or d,
            )
    same = [torch.equal(a, b) for a, b in zip(seen["plain"], seen["guided"], strict=True)]
    assert same == [True, True, False, False]


# --- coming and going ---


def state(pipe):
    """All that guidance could have left behind."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in pipe.transformer.named_modules()
    ]
    return hooks, {k: id(p) for k, p in pipe.transformer.attn_processors.items()}, set(vars(pipe))


class Stop(Exception):
    pass


def test_everything_is_put_back(pipe):
    plain, before = run(pipe), state(pipe)
    with HeadGuidance(pipe, "L0H1, L2") as guide:
        assert state(pipe) != before
        assert not torch.equal(run(pipe), plain)
    assert state(pipe) == before and torch.equal(run(pipe), plain)
    guide.detach()
    assert state(pipe) == before


def test_everything_is_put_back_after_an_exception_in_the_middle_of_a_run(pipe):
    plain, before = run(pipe), state(pipe)

    def interrupt(*_):
        raise Stop

    with pytest.raises(Stop), HeadGuidance(pipe, "L0H1"):
        run(pipe, callback_on_step_end=interrupt)
    assert state(pipe) == before and torch.equal(run(pipe), plain)


def test_a_run_after_an_interrupted_one_starts_anew(sd3_pipe):
    def interrupt(*_):
        raise Stop

    with HeadGuidance(sd3_pipe, "L1H0", stop=0.5) as guide:
        with pytest.raises(Stop):
            run(sd3_pipe, callback_on_step_end=interrupt)
        again = run(sd3_pipe)
        assert guide.report.guided == [0, 1]
        assert torch.equal(run(sd3_pipe), again)


def test_attach_and_detach_by_hand(sd3_pipe):
    guide = HeadGuidance(sd3_pipe, "L1H0")
    plain = run(sd3_pipe)
    guided = run(guide.attach().pipe)
    guide.detach()
    assert torch.equal(run(sd3_pipe), plain)
    with guide:
        assert torch.equal(run(sd3_pipe), guided)


def test_a_shadowed_progress_bar_is_put_back(sd3_pipe):
    own = sd3_pipe.progress_bar
    vars(sd3_pipe)["progress_bar"] = own
    with HeadGuidance(sd3_pipe, "L1H0"):
        run(sd3_pipe)
    assert vars(sd3_pipe)["progress_bar"] is own


@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_cpu_offload_before_and_after_attaching(sd3_pipe, trunk):
    with HeadGuidance(sd3_pipe, "L1H0", trunk=trunk):
        guided = run(sd3_pipe)
        sd3_pipe.enable_model_cpu_offload(device="cpu")
        assert_close(run(sd3_pipe), guided)
        assert_close(run(sd3_pipe), guided)
    unguided = run(sd3_pipe)
    assert not torch.allclose(unguided, guided)
    with HeadGuidance(sd3_pipe, "L1H0", trunk=trunk):
        assert_close(run(sd3_pipe), guided)
        assert_close(run(sd3_pipe), guided)
    assert_close(run(sd3_pipe), unguided)


def test_the_caller_keeps_his_arguments(sd3_pipe):
    mine = {"scale": 0.5}
    with HeadGuidance(sd3_pipe, "L1H0"):
        run(sd3_pipe, joint_attention_kwargs=mine)
    assert mine == {"scale": 0.5}


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "L9H0"}, "blocks L0 to L3, got L9H0"),
        ({"heads": "L0H7"}, "heads up to L0H3, got L0H7"),
        ({"heads": "L0H0i"}, "no block of the model has an image-only attention"),
        ({"heads": ""}, "expected at least one"),
        ({"heads": "head 3"}, "got 'head'"),
        ({"heads": 3}, "heads: expected"),
        ({"heads": []}, "heads: expected"),
        ({"heads": ["L0", 3]}, "heads: expected"),
        ({"softness": 1.2}, "softness: expected a number from 0 to 1, got 1.2"),
        ({"softness": float("nan")}, "got nan"),
        ({"softness": True}, "got True"),
        ({"softness": "soft"}, "got 'soft'"),
        ({"softness": {"L0H1": 0.5}}, "differ: L0H0, L0H1"),
        ({"softness": {"L0H0": 2}}, "from 0 to 1, got 2"),
        ({"scale": float("inf")}, "scale: expected a finite number, got inf"),
        ({"scale": "3"}, "scale: expected a finite number, got '3'"),
        ({"start": 0.5, "stop": 0.5}, "expected 0 <= start < stop <= 1"),
        ({"stop": 1.5}, "expected 0 <= start < stop <= 1"),
        ({"rescale": 1.5}, "rescale: expected a number from 0 to 1, got 1.5"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"every": 1.5}, "every: expected a whole number of at least 1, got 1.5"),
        ({"perturbation": "blur"}, "perturbation: expected identity"),
        ({"region": "sky"}, "region: expected joint"),
        ({"temperature": 2.0}, "temperature: expected a number for 'temperature'"),
        ({"trunk": "none"}, "trunk: expected auto, shared, two_pass, got 'none'"),
        ({"conditional": slice(None)}, "only for a bare transformer"),
        ({"pipe": "SD3"}, "expected a diffusers pipeline or its transformer, got str"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_changed(sd3_pipe, options, message):
    before = state(sd3_pipe)
    arguments = {"pipe": sd3_pipe, "heads": "L0H0"} | options
    with pytest.raises(ValueError, match=message):
        HeadGuidance(arguments.pop("pipe"), arguments.pop("heads"), **arguments)
    assert state(sd3_pipe) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a bare transformer needs a slice"),
        ({"conditional": 3}, "got 3"),
        ({"conditional": slice(None), "start": 0.5}, "has no steps"),
        ({"conditional": slice(None), "every": 2}, "has no steps"),
    ],
)
def test_a_bare_transformer_needs_to_know_its_conditional_rows(options, message):
    with pytest.raises(ValueError, match=message):
        HeadGuidance(sd3(), "L0H0", **options)


@pytest.mark.parametrize("rows", [slice(4, 8), slice(1, 4), slice(0, 0)])
def test_conditional_rows_that_do_not_tile_the_batch_are_refused(rows):
    model = sd3()
    with (
        HeadGuidance(model, "L0H0", conditional=rows),
        pytest.raises(ValueError, match="conditional: expected rows"),
    ):
        model(**inputs(4))


@torch.no_grad()
def test_conditional_rows_may_depend_on_the_batch():
    model = sd3()
    with HeadGuidance(model, "L1H0", conditional=lambda batch: slice(batch // 2, batch)) as guide:
        assert len(model(**inputs(6)).sample) == 6
        assert len(model(**inputs(2)).sample) == 2
    assert guide.report.steps == 2


def test_a_range_of_steps_that_holds_none_is_refused(sd3_pipe):
    with HeadGuidance(sd3_pipe, "L1H0", start=0.3, stop=0.4), pytest.raises(ValueError, match="no step of 4"):
        run(sd3_pipe)


def test_head_sets_for_another_number_of_pictures_are_refused(sd3_pipe):
    with HeadGuidance(sd3_pipe, ["L1H0"] * 3), pytest.raises(ValueError, match="each of 2 pictures, got 3"):
        run(sd3_pipe)


def test_nesting_is_refused(sd3_pipe):
    other = StableDiffusion3Pipeline(**sd3_pipe.components)
    with HeadGuidance(sd3_pipe, "L1H0"):
        for pipe in (sd3_pipe, other):
            with pytest.raises(ValueError, match="under head guidance already"):
                HeadGuidance(pipe, "L2").attach()
        run(sd3_pipe)


def test_calls_that_are_not_a_run_of_the_attached_pipeline_are_refused(sd3_pipe):
    other = StableDiffusion3Pipeline(**sd3_pipe.components)
    with HeadGuidance(sd3_pipe, "L1H0"):
        for call in (lambda: run(other), lambda: sd3_pipe.transformer(**inputs(2))):
            with pytest.raises(ValueError, match="something other than a run"):
                call()
        run(sd3_pipe)
    run(other)


def test_changes_made_while_attached_are_noticed(sd3_pipe):
    with HeadGuidance(sd3_pipe, "L1H0"):
        sd3_pipe.transformer.fuse_qkv_projections()
        with pytest.raises(ValueError, match="was replaced by FusedJointAttnProcessor2_0"):
            run(sd3_pipe)
    kinds = {type(p).__name__ for p in sd3_pipe.transformer.attn_processors.values()}
    assert kinds == {"FusedJointAttnProcessor2_0"}
    with HeadGuidance(sd3_pipe, "L1H0"):
        sd3_pipe.transformer = sd3()
        with pytest.raises(ValueError, match="its transformer was replaced"):
            run(sd3_pipe)


def test_a_lora_loaded_while_attached_is_noticed(sd3_pipe):
    from peft import LoraConfig

    with HeadGuidance(sd3_pipe, "L1H0"):
        sd3_pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(ValueError, match="its modules were changed"):
            run(sd3_pipe)
    plain = run(sd3_pipe)
    with HeadGuidance(sd3_pipe, "L1H0"):
        assert not torch.equal(run(sd3_pipe), plain)
    assert torch.equal(run(sd3_pipe), plain)


def test_a_lora_loaded_before_is_guided_with(sd3_pipe):
    from peft import LoraConfig

    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    sd3_pipe.transformer.add_adapter(adapter)
    sd3_pipe.transformer.double()
    with HeadGuidance(sd3_pipe, "L1H0, L1H3, L3H2", scale=2.0, softness=0.7):
        got = run(sd3_pipe)
    assert_close(got, by_hand(sd3_pipe, weights(2, (1, 0, 0.7), (1, 3, 0.7), (3, 2, 0.7)), 2.0))


def test_a_run_inside_a_run_is_refused(sd3_pipe):
    with HeadGuidance(sd3_pipe, "L1H0"), pytest.raises(ValueError, match="a guided run of it is under way"):
        run(sd3_pipe, callback_on_step_end=lambda *_: run(sd3_pipe))


def test_a_second_thread_is_refused_and_the_first_run_goes_on(sd3_pipe):
    refused = []

    def elsewhere(pipe, step, time, given):
        def calls():
            for call in (lambda: run(pipe), lambda: pipe.transformer(**inputs(4))):
                with pytest.raises(
                    ValueError, match=r"a guided run of it is under way|something other than a run"
                ) as error:
                    call()
                refused.append(error)

        # The scheduler is the pipeline's, which diffusers does not guard; keep what the first run needs.
        kept, vars_before = pipe.scheduler, dict(vars(pipe.scheduler))
        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()
        vars(kept).update(vars_before)
        return given

    with HeadGuidance(sd3_pipe, "L1H0"):
        alone = run(sd3_pipe)
        assert torch.equal(run(sd3_pipe, callback_on_step_end=elsewhere), alone)
    assert len(refused) == 2 * STEPS


def test_two_guided_pipelines_in_turn_keep_their_heads(sd3_pipe):
    other = pipeline(sd3("sd3.5-large"))
    alone = []
    for pipe, heads in ((sd3_pipe, "L1H0"), (other, "L2H1")):
        with HeadGuidance(pipe, heads):
            alone.append(run(pipe))
    with HeadGuidance(sd3_pipe, "L1H0"), HeadGuidance(other, "L2H1"):
        for _ in range(2):
            assert torch.equal(run(sd3_pipe), alone[0])
            assert torch.equal(run(other), alone[1])


@pytest.mark.parametrize("every", [2, 3])
def test_between_evaluations_the_last_difference_serves_again(sd3_pipe, every):
    """The rows x blocks of a run say how often the branch ran; the loop by hand with what effect."""
    with HeadGuidance(sd3_pipe, "L1H0", scale=2.0, every=every) as guide:
        got = run(sd3_pipe, cfg=1.0)
    assert guide.report.guided == [0, 1, 2, 3]
    assert guide.report.extra == len(range(0, STEPS, every)) * 2 * (BLOCKS - 1)
    assert_close(got, by_hand(sd3_pipe, weights(2, (1, 0, 1.0)), 2.0, cfg=1.0, every=every))


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


def test_pag_pipelines_are_refused(sd3_pipe):
    pag = StableDiffusion3PAGPipeline.from_pipe(sd3_pipe, pag_applied_layers=["blocks.1"])
    with pytest.raises(ValueError, match="adds rows of its own"):
        HeadGuidance(pag, "L1H0")


@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["no CFG", "CFG"])
def test_a_whole_block_image_to_image_equals_diffusers_pag(sd3_pipe, cfg):
    with HeadGuidance(sd3_pipe, "L1", scale=2.0, region="image_to_image"):
        ours = run(sd3_pipe, cfg=cfg)
    parts = {k: v for k, v in sd3_pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    pag = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])
    assert_close(ours, run(pag, cfg=cfg, pag_scale=2.0))


@pytest.mark.parametrize(
    "compile",
    [lambda t: t.compile(backend="eager"), lambda t: t.transformer_blocks[2].compile(backend="eager")],
)
def test_compiled_transformers_are_refused_also_while_attached(sd3_pipe, compile):
    with HeadGuidance(sd3_pipe, "L1H0"):
        compile(sd3_pipe.transformer)
        with pytest.raises(ValueError, match="compiled"):
            run(sd3_pipe)
    with pytest.raises(ValueError, match="compiled"):
        HeadGuidance(sd3_pipe, "L1H0").attach()


def test_a_compiled_module_is_refused(sd3_pipe):
    with pytest.raises(ValueError, match="compiled"):
        HeadGuidance(torch.compile(sd3_pipe.transformer, backend="eager"), "L1H0", conditional=slice(None))


def test_block_caches_are_refused(sd3_pipe):
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    apply_first_block_cache(sd3_pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="a block cache"):
        HeadGuidance(sd3_pipe, "L1H0").attach()


def test_a_head_set_object_is_as_good_as_its_text(sd3_pipe):
    with HeadGuidance(sd3_pipe, HeadSet.parse("L1H0") | HeadSet.parse("L2H1")):
        joined = run(sd3_pipe)
    with HeadGuidance(sd3_pipe, "L2H1 L1H0"):
        assert torch.equal(run(sd3_pipe), joined)
