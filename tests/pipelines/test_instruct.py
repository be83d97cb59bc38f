"""InstructPipeline against loops written out in float64, and against diffusers' own pipelines."""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from dit_heads import HeadGuidance
from dit_heads.errors import InputError
from dit_heads.families.latents import encoded
from dit_heads.families.velocity import velocity_of
from dit_heads.guidance.perturb import Perturbation
from dit_heads.pipelines.instruct import InstructPipeline
from dit_heads.training.widen import input_of, widen
from tests import tiny
from tests.saved import tiny_flux_pipeline, tiny_pipeline
from tests.tiny import MapProcessor, weights

SIDE, STEPS, TEXT_SCALE, IMAGE_SCALE = 16, 3, 3.0, 1.7
KINDS = [(family, way) for family in ("sd3", "flux") for way in ("channels", "tokens")]


def vae() -> diffusers.AutoencoderKL:
    """16 x 16 pixels <-> 8 x 8 latents; an encoder without any noise."""
    torch.manual_seed(0)
    options: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "shift_factor": 0.1,
        "scaling_factor": 1.5,
    }
    return diffusers.AutoencoderKL(**options).double().eval()


def pipeline(family: str, way: str) -> Any:
    """A stock pipeline of few random weights, in float64, that sees a source in this way."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=family == "flux")
    transformer: Any = tiny.flux() if family == "flux" else tiny.sd3()
    if way == "channels":
        widen(transformer, 4)
        nn.init.normal_(transformer.get_submodule(input_of(transformer).path).weight.data, std=0.3)
    if way == "tokens" and family == "sd3":
        table = torch.randn(1, 256, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        transformer.pos_embed.pos_embed, transformer.pos_embed.pos_embed_max_size = table, 16
        transformer.register_to_config(pos_embed_max_size=16)
    kind = diffusers.FluxPipeline if family == "flux" else diffusers.StableDiffusion3Pipeline
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    texts: Any = dict.fromkeys(parts[: 4 if family == "flux" else 6])
    pipe: Any = kind(transformer=transformer, scheduler=scheduler, vae=vae(), **texts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count: int = 2) -> dict[str, Tensor]:
    """Embeddings of instructions and of negative ones."""
    return {name: t for name, t in tiny.prompts(count).items() if name != "latents"}


def scales(family: str, text: float = TEXT_SCALE) -> dict[str, float]:
    return {"true_cfg_scale": text, "guidance_scale": 2.5} if family == "flux" else {"guidance_scale": text}


def sources(count: int = 2) -> list[Tensor]:
    return list(torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)))


def noise(family: str, count: int = 2) -> Tensor:
    shape = (count, 4, 8, 8)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return pack(drawn) if family == "flux" else drawn


def pack(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._pack_latents(x, *x.shape)


def unpack(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._unpack_latents(x, SIDE, SIDE, 2)


def call(edit: InstructPipeline, family: str, **changed: Any) -> Tensor:
    """Latents by a call with both kinds of guidance."""
    given: dict[str, Any] = {"image": sources(), "image_guidance_scale": IMAGE_SCALE, **prompts()}
    given |= {"num_inference_steps": STEPS, "output_type": "latent", **scales(family)}
    given |= {"latents": noise(family), **changed}
    return edit(**{name: value for name, value in given.items() if value is not None}).images


@torch.no_grad()
def written_out(
    pipe: Any,
    family: str,
    way: str,
    *,
    text: float = TEXT_SCALE,
    image: float = IMAGE_SCALE,
    heads: Any = None,
) -> Tensor:
    """Euler steps of e00 + s_I (e0I - e00) + s_T (eTI - e0I), with head guidance on the conditional one."""
    given, x = prompts(), noise(family)
    source = encoded(pipe.vae, 2 * torch.stack(sources()).double() - 1)
    x = unpack(x) if family == "flux" else x
    own = given["prompt_embeds"], given["pooled_prompt_embeds"]
    null = given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]
    seen = {"channels": "source", "tokens": "reference"}[way]

    def predicted(words: Any, latents: Tensor, sigma: Tensor) -> Tensor:
        shown: Any = {seen: latents}
        return velocity_of(pipe.transformer, *words, **shown, guidance=2.5)(x, sigma)

    for now, then in zip(pipe.scheduler.sigmas[:-1], pipe.scheduler.sigmas[1:], strict=True):
        sigma = now.double().expand(len(x))
        e_ti, e_0i = predicted(own, source, sigma), predicted(null, source, sigma)
        e_00 = predicted(null, torch.zeros_like(source), sigma)
        e = e_00 + image * (e_0i - e_00) + text * (e_ti - e_0i)
        if heads is not None:
            with heads():
                e = e + 2.0 * (e_ti - predicted(own, source, sigma))
        x = x + (then - now).double() * e
    return pack(x) if family == "flux" else x


@contextmanager
def counted(transformer: Any) -> Iterator[Counter]:
    """How many rows each call of the transformer's `forward` has, ours and the pipeline's."""
    found: Counter = Counter()
    hook = transformer.time_text_embed.register_forward_pre_hook(lambda _, args: found.update([len(args[0])]))
    try:
        yield found
    finally:
        hook.remove()


@pytest.mark.parametrize(("family", "way"), KINDS)
def test_three_predictions_are_mixed_as_the_paper_writes_it(family: str, way: str):
    pipe = pipeline(family, way)
    drawn = call(InstructPipeline(pipe, way), family)
    assert_close(drawn, written_out(pipe, family, way), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "way"), KINDS)
@pytest.mark.parametrize(("image", "text"), [(1.0, 1.0), (1.0, 3.0), (2.0, 1.0), (0.0, 3.0)])
def test_any_scales_mix_so(family: str, way: str, image: float, text: float):
    pipe = pipeline(family, way)
    drawn = call(InstructPipeline(pipe, way), family, image_guidance_scale=image, **scales(family, text))
    assert_close(drawn, written_out(pipe, family, way, text=text, image=image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "image", "text", "passes"),
    [
        ("sd3", 1.0, 1.0, {2: 1}),
        ("sd3", 1.0, 3.0, {4: 1}),
        ("sd3", 2.0, 3.0, {4: 1, 2: 1}),
        ("sd3", 2.0, 1.0, {2: 3}),
        ("flux", 1.0, 1.0, {2: 1}),
        ("flux", 1.0, 3.0, {2: 2}),
        ("flux", 2.0, 3.0, {2: 3}),
        ("flux", 2.0, 1.0, {2: 3}),
    ],
)
def test_no_pass_is_made_that_cancels(family: str, image: float, text: float, passes: dict[int, int]):
    """Rows of a pass -> passes a step, for two pictures."""
    pipe = pipeline(family, "channels")
    with counted(pipe.transformer) as found:
        call(InstructPipeline(pipe), family, image_guidance_scale=image, **scales(family, text))
    assert found == {rows: STEPS * count for rows, count in passes.items()}


@pytest.mark.parametrize(("family", "way"), KINDS)
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_head_guidance_adds_to_it(family: str, way: str, trunk: str):
    pipe = pipeline(family, way)
    edit = InstructPipeline(pipe, way)
    with HeadGuidance(edit.pipe, "L1H0, L3H2", scale=2.0, softness=0.7, trunk=trunk) as guidance:
        drawn = call(edit, family)
    assert guidance.report.guided == list(range(STEPS))

    @contextmanager
    def heads() -> Iterator[None]:
        """Attention of the two heads written out."""
        model, chosen = pipe.transformer, weights(2, (1, 0, 0.7), (3, 2, 0.7))
        stock = model.attn_processors
        for b, attn in enumerate(attentions(model)):
            attn.processor = MapProcessor(family == "flux", chosen.get((b, "attn")), Perturbation())
        try:
            yield
        finally:
            model.set_attn_processor(stock)

    assert_close(drawn, written_out(pipe, family, way, heads=heads), rtol=1e-4, atol=1e-4)


def attentions(model: Any) -> list[Any]:
    return [b.attn for b in [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]]


# --- against diffusers' own pipelines ---


def stock(kind: Any, pipe: Any) -> Any:
    """The parts of a FLUX pipeline in another class of diffusers."""
    names = inspect.signature(kind.__init__).parameters
    other = kind(**{name: part for name, part in pipe.components.items() if name in names})
    other.set_progress_bar_config(disable=True)
    return other


def shared_arguments() -> dict[str, Any]:
    given = {name: t for name, t in prompts().items() if not name.startswith("negative")}
    return given | {"num_inference_steps": STEPS, "guidance_scale": 2.5, "output_type": "pt"}


def test_a_control_checkpoint_draws_what_diffusers_draws():
    pipe = pipeline("flux", "channels")
    assert pipe.transformer.config.in_channels == 2 * pipe.transformer.out_channels
    source = pack(encoded(pipe.vae, 2 * torch.stack(sources()).double() - 1))
    control = stock(diffusers.FluxControlPipeline, pipe)  # it would draw from the posterior of pixels
    given = {"latents": noise("flux"), "height": SIDE, "width": SIDE}
    theirs = control(control_image=source, **given, **shared_arguments()).images
    ours = InstructPipeline(pipe)(sources(), latents=noise("flux"), **shared_arguments()).images
    assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_kontext_checkpoint_draws_what_diffusers_draws(scale: float):
    pipe = pipeline("flux", "tokens")
    kontext = stock(diffusers.FluxKontextPipeline, pipe)
    given = {**prompts(), **shared_arguments(), "latents": noise("flux"), "true_cfg_scale": scale}
    size = {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE}
    image = 2 * torch.stack(sources()).double() - 1
    theirs = kontext(image=encoded(pipe.vae, image), **size, **given).images
    ours = InstructPipeline(pipe, "tokens")(sources(), **given).images
    assert_close(ours, theirs)


# --- the pipeline is the user's own ---


@pytest.mark.parametrize(("family", "way"), KINDS)
def test_afterwards_the_pipeline_is_as_it_was(family: str, way: str):
    pipe = pipeline(family, way)
    config, hooks = dict(pipe.transformer.config), dict(pipe.transformer._forward_hooks)
    edit = InstructPipeline(pipe, way)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for changed in ({}, {"callback_on_step_end": stop}):
        try:
            call(edit, family, **changed)
        except KeyboardInterrupt:
            assert changed
        assert dict(pipe.transformer.config) == config
        assert pipe.transformer._forward_hooks == hooks and not pipe.transformer._forward_pre_hooks
        assert "step" not in vars(pipe.scheduler)


def test_callbacks_see_and_change_the_latents():
    pipe = pipeline("sd3", "channels")
    seen: list[int] = []

    def callback(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not call(InstructPipeline(pipe), "sd3", callback_on_step_end=callback).any()
    assert seen == list(range(STEPS))


def test_a_pipeline_that_drops_cfg_midway_keeps_its_null_text():
    """As diffusers' SDCFGCutoffCallback does it, which leaves the conditional half alone from a step on."""
    pipe = pipeline("sd3", "channels")

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 1:
            pipe._guidance_scale = 0.0
            return {name: t[len(t) // 2 :] for name, t in tensors.items()}
        return {}

    names = ["prompt_embeds", "pooled_prompt_embeds"]
    with counted(pipe.transformer) as found:
        call(
            InstructPipeline(pipe),
            "sd3",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
        )
    assert found == {4: 2, 2: 2 + 3}


def test_skipped_layers_are_guided_like_the_rest():
    """SD3.5's skip-layer guidance subtracts a third call of a step, so what is added to all falls out."""
    pipe = pipeline("sd3", "channels")
    edit = InstructPipeline(pipe)
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.5}
    with counted(pipe.transformer) as found:
        guided = call(edit, "sd3", num_inference_steps=3, skip_layer_guidance_scale=2.0, **skip)
    assert found == {4: 3, 2: 3 + 1}
    none = call(edit, "sd3", num_inference_steps=3, skip_layer_guidance_scale=0.0, **skip)
    assert_close(none, call(edit, "sd3"), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(none, guided, atol=1e-3)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_offloading_and_a_generator_a_picture_change_nothing(family: str):
    pipe: Any = tiny_pipeline() if family == "sd3" else tiny_flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    widen(pipe.transformer, 4)
    edit, given = InstructPipeline(pipe), {"num_inference_steps": 2, "output_type": "np"}
    given |= {"image_guidance_scale": 2.0, **scales(family)}

    def drawn(numbers: list[int]) -> np.ndarray:
        pictures = [sources(3)[n] for n in numbers]
        generators = [torch.Generator().manual_seed(n) for n in numbers]
        return edit(pictures, "go", negative_prompt="no", generator=generators, **given).images

    together = drawn([0, 1, 2])
    for number in range(3):
        assert_close(drawn([number])[0], together[number], rtol=1e-4, atol=1e-4)
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(drawn([0, 1, 2]), together, rtol=1e-5, atol=1e-5)
    assert_close(drawn([0, 1, 2]), together, rtol=1e-5, atol=1e-5)


def test_one_picture_serves_all_instructions_and_each_gets_as_many_results():
    pipe: Any = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    edit = InstructPipeline(pipe, "tokens")
    given: Any = {"num_inference_steps": 1, "num_images_per_prompt": 2}
    images = edit(Image.new("RGB", (12, 7), "red"), ["a", "b"], **given).images
    assert [image.size for image in images] == [(12, 7)] * 4
    (images,) = edit([Image.new("L", (16, 16))] * 3, "a", return_dict=False, output_type="np", **given)
    assert images.shape == (6, 16, 16, 3)


# --- what cannot be honoured ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": None}, "image: expected PIL images, arrays, tensors or paths, got None"),
        ({"image": []}, "image: expected a picture or several, got an empty list"),
        ({"image": torch.ones(3, 4, 4, dtype=torch.uint8)}, "image: expected floating tensors"),
        ({"image": 2 * torch.ones(3, 4, 4)}, r"image: expected tensors in \[0, 1\]"),
        ({"image": np.zeros((4, 4, 3), np.uint16)}, "image: expected uint8 or floating"),
        ({"image": Image.new("F", (4, 4))}, "image: is a picture of floating-point numbers"),
        ({"image": [torch.ones(3, 4, 4), torch.ones(3, 4, 5)]}, "pictures of one size, got 4 x 4 and 4 x 5"),
        ({"image": "nowhere.png"}, "image: there is no file 'nowhere.png'"),
        ({"image": torch.ones(3, 66, 8)}, "image: expected at most 64 pixels a side for this model"),
        ({"image": torch.ones(3, 4, 4), "prompt": ["a", 3]}, "prompt: expected an instruction or a list"),
        (
            {"image": [torch.ones(3, 4, 4)] * 2, "prompt": ["a"] * 3},
            "prompt: expected 2, one a picture, got 3",
        ),
        ({"prompt": None}, "prompt: expected an instruction, or prompt_embeds in its place, got neither"),
        ({"height": 16}, "height: expected none, since the picture has the size of the result, got int"),
        ({"promt": "a"}, "promt: InstructPipeline and its .* take no such argument; did you mean prompt"),
        ({"image_guidance_scale": -1}, "image_guidance_scale: expected a number of at least 0, got -1"),
        ({"image_guidance_scale": True}, "image_guidance_scale: expected a number of at least 0, got True"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected a whole number of at least 1, got 0"),
        ({"output_type": "gif"}, "output_type: expected pil, np, pt, latent, got 'gif'"),
    ],
)
def test_what_cannot_be_honoured_is_named(changed: dict[str, Any], message: str):
    pipe: Any = tiny_pipeline()
    widen(pipe.transformer, 4)
    given = {"image": torch.ones(3, 8, 8), "prompt": "a", **changed}
    with pytest.raises(InputError, match=message):
        InstructPipeline(pipe)(**given)


def test_a_pipeline_that_cannot_see_a_source_so_is_refused():
    pipe: Any = tiny_pipeline()
    with pytest.raises(InputError, match=r"reads 4 channels of a source .* got one that reads 0; load"):
        InstructPipeline(pipe)
    with pytest.raises(InputError, match="conditioning: expected channels or tokens, got 'both'"):
        InstructPipeline(pipe, "both")
    widen(pipe.transformer, 4)
    with pytest.raises(InputError, match=r"reads 0 channels .* reads 4; choose 'channels'"):
        InstructPipeline(pipe, "tokens")
    with pytest.raises(InputError, match="pipe: expected one of StableDiffusion3Pipeline, FluxPipeline, got"):
        InstructPipeline(nn.Linear(1, 1))


def test_without_text_encoders_the_null_text_has_to_be_given():
    pipe = pipeline("flux", "channels")
    given = {name: t for name, t in prompts().items() if not name.startswith("negative")}
    with pytest.raises(
        InputError, match="negative_prompt_embeds, negative_pooled_prompt_embeds: expected them"
    ):
        InstructPipeline(pipe)(sources(), image_guidance_scale=2.0, **given)
