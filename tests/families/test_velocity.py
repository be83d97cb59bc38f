"""One velocity for SD3 and FLUX, against the pipelines' own packing and a direct call of the transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from dit_heads.families.flux import pack, positions, unpack
from dit_heads.families.velocity import velocity_of
from dit_heads.training.batch import Batch
from tests import tiny


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_packing_is_the_pipelines_and_has_an_inverse():
    latents = drawn(2, 5, 6, 10)
    theirs = FluxPipeline._pack_latents(latents, 2, 5, 6, 10)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 6, 10), latents)
    assert torch.equal(FluxPipeline._unpack_latents(theirs, 48, 80, 8), latents)


def test_positions_are_the_pipelines():
    theirs = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(positions(3, 5), theirs)


def given() -> dict[str, Any]:
    """Latents, embeddings and noise levels."""
    return {
        "x": drawn(2, 4, 4, 6),
        "text": drawn(2, tiny.TEXT, 16, seed=1),
        "pooled": drawn(2, 12, seed=2),
        "sigmas": torch.tensor([0.25, 0.75], dtype=torch.float64),
    }


def direct(model: Any, x: Tensor, text: Tensor, pooled: Tensor, sigmas: Tensor, guidance: float) -> Tensor:
    """A call as the pipelines make it, timesteps from 0 to 1000 in SD3 and from 0 to 1 in FLUX."""
    shared = {"encoder_hidden_states": text, "pooled_projections": pooled, "return_dict": False}
    if isinstance(model, SD3Transformer2DModel):
        return model(hidden_states=x, timestep=1000 * sigmas, **shared)[0]
    b, c, h, w = x.shape
    tokens = model(
        hidden_states=FluxPipeline._pack_latents(x, b, c, h, w),
        timestep=sigmas,
        guidance=torch.full((b,), guidance, dtype=x.dtype),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
        txt_ids=torch.zeros(text.shape[1], 3, dtype=x.dtype),
        **shared,
    )[0]
    return FluxPipeline._unpack_latents(tokens, 8 * h, 8 * w, 8)


@pytest.mark.parametrize("kind", tiny.MODELS)
@torch.no_grad()
def test_velocity_is_the_transformers(kind: str):
    model, call = tiny.transformer(kind), given()
    velocity = velocity_of(model, call["text"], call["pooled"], guidance=3.5)(call["x"], call["sigmas"])
    expected = direct(model, **call, guidance=3.5)
    assert velocity.shape == (2, 4, 4, 6)
    torch.testing.assert_close(velocity, expected)
    swapped = direct(model, **{**call, "sigmas": call["sigmas"].flip(0)}, guidance=3.5)
    assert not torch.allclose(velocity, swapped)


@torch.no_grad()
def test_guidance_is_a_number_or_one_a_sample_and_only_flux_reads_it():
    model, call = tiny.flux(), given()
    x, sigmas = call["x"], call["sigmas"]

    def at(guidance: float | Tensor) -> Tensor:
        return velocity_of(model, call["text"], call["pooled"], guidance=guidance)(x, sigmas)

    both = at(torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(both, torch.stack([at(1.0)[0], at(4.0)[1]]))
    assert not torch.allclose(at(1.0), at(4.0))
    torch.testing.assert_close(velocity_of(model, call["text"], call["pooled"])(x, sigmas), at(1.0))
    schnell: Any = FluxTransformer2DModel.from_config({**model.config, "guidance_embeds": False})
    velocity_of(schnell.double(), call["text"], call["pooled"])(x, sigmas)  # it would take no guidance


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@torch.no_grad()
def test_a_source_is_read_beside_the_noisy_latents(kind: str):
    """As the pipelines do that have a widened input: after the noisy channels of each token."""
    call, source = given(), drawn(2, 4, 4, 6, seed=3)
    if kind == "flux":
        model: Any = tiny.flux(channels=32)
        packed = [FluxPipeline._pack_latents(part, 2, 4, 4, 6) for part in (call["x"], source)]
        wide = FluxPipeline._unpack_latents(torch.cat(packed, 2), 32, 48, 8)
    else:
        model = tiny.sd3(channels=8)
        wide = torch.cat([call["x"], source], 1)
    velocity = velocity_of(model, call["text"], call["pooled"], source=source)(call["x"], call["sigmas"])
    torch.testing.assert_close(velocity, direct(model, **{**call, "x": wide}, guidance=1.0))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_batchs_loss_and_gradients_are_those_by_hand(kind: str):
    model, call, noise = tiny.transformer(kind), given(), drawn(2, 4, 4, 6, seed=4)
    weight = drawn(2, 1, 4, 6, seed=5).square()
    batch = Batch(call["x"], call["text"], call["pooled"], call["sigmas"], noise, weight=weight)
    batch.loss(model).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    mixed = torch.stack([0.75 * call["x"][0] + 0.25 * noise[0], 0.25 * call["x"][1] + 0.75 * noise[1]])
    errors = (direct(model, **{**call, "x": mixed}, guidance=1.0).float() - (noise - call["x"])) ** 2
    loss = (errors * weight).sum() / errors.numel()
    torch.testing.assert_close(batch.loss(model), loss)
    loss.backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_another_transformer_is_refused():
    with pytest.raises(ValueError, match="transformer: expected one of SD3Transformer2DModel"):
        velocity_of(nn.Linear(2, 2), drawn(1, 2, 3), drawn(1, 2))
