"""Every pipeline class, guided, against its own loop over a transformer whose guidance is written out."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

from dit_heads import HeadGuidance
from tests import tiny
from tests.tiny import explicit, vae, weights

ROWS, STEPS, SCALE, U = 2, 3, 2.0, 0.7
HEADS = ((1, 0, U), (3, 2, U))
CHOSEN = "L1H0, L3H2"


def texts(count: int) -> dict[str, None]:
    names = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")[:count]]
    return dict.fromkeys(names)


def randomised(model: Any) -> Any:
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


def sd3(name: str, **extra: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = {"transformer": tiny.sd3("sd3.5-medium", channels=16), "vae": vae(16), "scheduler": scheduler}
    return quiet(getattr(diffusers, name)(**parts, **texts(3), **extra))


def flux(name: str, channels: int = 16, **extra: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"transformer": tiny.flux(channels=channels), "vae": vae(4), "scheduler": scheduler}
    return quiet(getattr(diffusers, name)(**parts, **texts(2), **extra))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_controlnet() -> Any:
    config = dict(tiny.sd3(channels=16).config) | {"num_layers": 2}
    kept: Any = {k: v for k, v in config.items() if not k.startswith("_") and k != "qk_norm"}
    return randomised(diffusers.SD3ControlNetModel(**kept))


def flux_controlnet() -> Any:
    config = dict(tiny.flux().config) | {"num_layers": 1, "num_single_layers": 1}
    kept: Any = {k: v for k, v in config.items() if not k.startswith("_") and k != "out_channels"}
    return randomised(diffusers.FluxControlNetModel(**kept))


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


IMAGE = {"image": drawn(ROWS, 3, 16, 16)}
MASK = {"mask_image": (drawn(ROWS, 1, 16, 16) > 0.5).double()}
CONTROL = {"control_image": drawn(ROWS, 3, 16, 16)}
PART = {"strength": 0.7}
SD3_CFG, FLUX_CFG = {"guidance_scale": 3.5}, {"true_cfg_scale": 3.5}
AREA = {"max_area": 256, "_auto_resize": False}
Case = tuple[Callable[[], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "sd3": (lambda: sd3("StableDiffusion3Pipeline"), {"guidance_scale": 1.0}),
    "sd3 CFG": (lambda: sd3("StableDiffusion3Pipeline"), SD3_CFG),
    "sd3 img2img": (lambda: sd3("StableDiffusion3Img2ImgPipeline"), SD3_CFG | IMAGE | PART),
    "sd3 inpaint": (lambda: sd3("StableDiffusion3InpaintPipeline"), SD3_CFG | IMAGE | MASK | PART),
    "sd3 ControlNet": (
        lambda: sd3("StableDiffusion3ControlNetPipeline", controlnet=sd3_controlnet()),
        SD3_CFG | CONTROL,
    ),
    "flux": (lambda: flux("FluxPipeline"), {}),
    "flux CFG": (lambda: flux("FluxPipeline"), FLUX_CFG),
    "flux img2img": (lambda: flux("FluxImg2ImgPipeline"), IMAGE | PART),
    "flux img2img CFG": (lambda: flux("FluxImg2ImgPipeline"), FLUX_CFG | IMAGE | PART),
    "flux inpaint CFG": (lambda: flux("FluxInpaintPipeline"), FLUX_CFG | IMAGE | MASK | PART),
    "flux Fill": (lambda: flux("FluxFillPipeline", 48), IMAGE | MASK),
    "flux Control": (lambda: flux("FluxControlPipeline", 32), CONTROL),
    "flux ControlNet": (
        lambda: flux("FluxControlNetPipeline", controlnet=flux_controlnet()),
        CONTROL,
    ),
    "flux ControlNet CFG": (
        lambda: flux("FluxControlNetPipeline", controlnet=flux_controlnet()),
        CONTROL | FLUX_CFG,
    ),
    "flux Kontext": (lambda: flux("FluxKontextPipeline"), IMAGE | AREA),
    "flux Kontext CFG": (lambda: flux("FluxKontextPipeline"), IMAGE | AREA | FLUX_CFG),
    "flux Kontext inpaint": (
        lambda: flux("FluxKontextInpaintPipeline"),
        IMAGE | MASK | AREA | FLUX_CFG | {"strength": 1.0},
    ),
}


def call(pipe: Any, options: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)  # ControlNet pipelines encode their picture without the generator
    given = {k: v for k, v in tiny.prompts(ROWS).items() if k != "latents"}
    if not (options.keys() & {"true_cfg_scale"} or "StableDiffusion3" in type(pipe).__name__):
        given = {k: v for k, v in given.items() if not k.startswith("negative")}
    return pipe(
        **given,
        **({"height": 16, "width": 16} | options),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


@contextmanager
def written_out(pipe: Any, calls_a_step: int) -> Iterator[list[int]]:
    """Replace the transformer's forward by predictions with explicit maps and explicit guidance."""
    transformer, stock = pipe.transformer, pipe.transformer.forward
    rows_seen: list[int] = []
    difference = torch.empty(0)

    @functools.wraps(stock)
    def forward(**arguments: Any) -> Any:
        nonlocal difference
        arguments.pop("return_dict", None)
        transformer.forward = stock
        batch = len(arguments["hidden_states"])
        clean = explicit(transformer, {}, **arguments)
        if len(rows_seen) % calls_a_step == 0:
            perturbed = explicit(transformer, weights(batch, *HEADS), **arguments)
            difference = SCALE * (clean - perturbed)[-ROWS:]
        rows_seen.append(batch)
        transformer.forward = forward
        return (clean + difference.repeat(batch // ROWS, *[1] * (clean.ndim - 1)),)

    transformer.forward = forward
    try:
        yield rows_seen
    finally:
        transformer.forward = stock


@torch.no_grad()
@pytest.mark.filterwarnings(
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning"
)  # by diffusers' own ControlNet
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
@pytest.mark.parametrize("case", CASES)
def test_a_guided_pipeline_equals_its_own_loop_over_written_out_guidance(case, trunk):
    make, options = CASES[case]
    pipe = make()
    with HeadGuidance(pipe, CHOSEN, scale=SCALE, softness=U, trunk=trunk) as guide:
        got = call(pipe, options)
    with written_out(pipe, 2 if "true_cfg_scale" in options else 1) as calls:
        expected = call(pipe, options)
    # FLUX turns by its rotary positions in fp32, whatever its dtype.
    close: Any = {"atol": 2e-4, "rtol": 2e-4} if case.startswith("flux") else {"atol": 1e-8, "rtol": 1e-6}
    assert_close(got, expected, **close)
    assert len(guide.report.guided) == guide.report.steps == len(calls) / (1 + ("true_cfg_scale" in options))
    assert not torch.allclose(got, call(pipe, options), atol=1e-2)
