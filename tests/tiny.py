"""Small random transformers of the real architectures, their inputs, and head guidance written out the
plain way."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from dit_heads.guidance.perturb import TARGETS, Perturbation

BLOCKS, HEADS, DIM, TEXT = 4, 4, 8, 5
MODELS = ("sd3", "sd3.5-medium", "sd3.5-large", "flux")
SD3 = {
    "sd3": {},
    "sd3.5-medium": {"dual_attention_layers": (0, 1, 2), "qk_norm": "rms_norm"},
    "sd3.5-large": {"qk_norm": "rms_norm"},
}
# Every perturbation with every region that it has a defined map for.
KINDS = [
    *(
        Perturbation(name, region)
        for name in TARGETS
        if name != "temperature"
        for region in ("joint", "image")
    ),
    *(Perturbation("temperature", region, 2.5) for region in ("joint", "image")),
    Perturbation("identity", "image_to_image"),
]
# attention module, head -> u
Softness = Mapping[tuple[int, str], Tensor]


def sd3(kind: str = "sd3", dtype: torch.dtype = torch.float64, *, channels: int = 4) -> SD3Transformer2DModel:
    """Four blocks of four heads of eight channels; every weight random, none zero."""
    torch.manual_seed(0)
    options: dict[str, Any] = SD3[kind]
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=BLOCKS,
        num_attention_heads=HEADS,
        attention_head_dim=DIM,
        joint_attention_dim=16,
        caption_projection_dim=HEADS * DIM,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
        **options,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval().to(dtype)  # pyright: ignore[reportArgumentType]


def flux(dtype: torch.dtype = torch.float64, *, channels: int = 16) -> FluxTransformer2DModel:
    """Two double-stream and two single-stream blocks of four heads of eight channels."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        num_layers=BLOCKS // 2,
        num_single_layers=BLOCKS // 2,
        num_attention_heads=HEADS,
        attention_head_dim=DIM,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval().to(dtype)  # pyright: ignore[reportArgumentType]


def transformer(kind: str) -> Any:
    """A model of `MODELS`."""
    return flux() if kind == "flux" else sd3(kind)


def inputs(
    batch: int, kind: str = "sd3", seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Arguments of one call of a model of `MODELS`."""
    g = torch.Generator().manual_seed(seed)
    shape = (16, 16) if kind == "flux" else (4, 8, 8)
    given = {
        "hidden_states": torch.randn(batch, *shape, generator=g, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, TEXT, 16, generator=g, dtype=dtype),
        "pooled_projections": torch.randn(batch, 12, generator=g, dtype=dtype),
        "timestep": torch.full((batch,), 0.5 if kind == "flux" else 500.0, dtype=dtype),
    }
    if kind == "flux":
        place = torch.arange(16)
        given["img_ids"] = torch.stack([torch.zeros(16), place // 4, place % 4], -1).to(dtype)
        given["txt_ids"] = torch.zeros(TEXT, 3, dtype=dtype)
        given["guidance"] = torch.full((batch,), 3.5, dtype=dtype)
    return given


def pipeline(transformer: SD3Transformer2DModel) -> Any:
    """A stock pipeline around a transformer; prompts come as embeddings, pictures leave as latents."""
    nothing: Any = dict.fromkeys(
        ["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **nothing
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Embeddings of `count` prompts, negative ones, and latents to start from."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(count, *shape, generator=g, dtype=dtype)  # noqa: E731
    return {
        "prompt_embeds": draw(TEXT, 16),
        "negative_prompt_embeds": draw(TEXT, 16),
        "pooled_prompt_embeds": draw(12),
        "negative_pooled_prompt_embeds": draw(12),
        "latents": draw(4, 8, 8),
    }


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """A [B, H, N, N], written out."""
    a = (torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5).exp()
    return a / a.sum(-1, keepdim=True)


def perturbed_map(kind: Perturbation, q: Tensor, k: Tensor, image: slice) -> Tensor:
    """P [B, H, N, N] as arXiv 2506.10978 writes it; rows outside the region are those of A."""
    a, n = attention_map(q, k), q.shape[2]
    is_image = torch.zeros(n, dtype=torch.bool)
    is_image[image] = True
    eye = torch.eye(n, dtype=a.dtype)
    rows = is_image if kind.region != "joint" else torch.ones(n, dtype=torch.bool)
    if kind.region == "image_to_image":
        p = a * (eye + (~is_image).to(a.dtype)).clamp(max=1)
        p = p / p.sum(-1, keepdim=True)
    elif kind.name == "identity":
        p = eye.expand_as(a)
    elif kind.name == "uniform":
        p = torch.full_like(a, 1 / n)
    elif kind.name == "mean_query":
        p = attention_map(q[:, :, rows].mean(2, keepdim=True), k).expand_as(a)
    elif kind.name == "arg_max":
        p = F.one_hot(a.argmax(-1), n).to(a.dtype)
    else:
        p = torch.softmax(a.log() / (kind.temperature or 1), -1)
    return torch.where(rows[:, None], p, a)


class MapProcessor:
    """Attention of SD3 and FLUX with its map written out and blended row by row: (1 - u) A + u P."""

    def __init__(self, text_first: bool, u: Tensor | None, kind: Perturbation) -> None:
        self.text_first, self.u, self.kind = text_first, u, kind  # u [B, H]

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
    ):
        streams = [(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is not None:
            added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            text = (encoder_hidden_states, *added, attn.norm_added_q, attn.norm_added_k)
            streams = [text, *streams] if self.text_first else [*streams, text]
        qs, ks, vs = [], [], []
        for x, to_q, to_k, to_v, norm_q, norm_k in streams:
            split = x.shape[0], x.shape[1], attn.heads, -1
            q, k, v = (to(x).reshape(split).transpose(1, 2) for to in (to_q, to_k, to_v))
            qs.append(norm_q(q) if norm_q else q)
            ks.append(norm_k(k) if norm_k else k)
            vs.append(v)
        q, k, v = torch.cat(qs, 2), torch.cat(ks, 2), torch.cat(vs, 2)  # [B, H, N, D]
        if image_rotary_emb is not None:
            q, k = rotated(q, *image_rotary_emb), rotated(k, *image_rotary_emb)
        a, tokens = attention_map(q, k), hidden_states.shape[1]
        image = slice(TEXT, None) if self.text_first else slice(0, tokens)
        if self.u is not None:
            u = self.u[:, :, None, None]
            a = (1 - u) * a + u * perturbed_map(self.kind, q, k, image)
        out = torch.einsum("bhij,bhjd->bihd", a, v).flatten(2)
        if encoder_hidden_states is None:
            return attn.to_out[0](out) if hasattr(attn, "to_out") and not self.text_first else out
        rest = out[:, :TEXT] if self.text_first else out[:, tokens:]
        return attn.to_out[0](out[:, image]), rest if attn.context_pre_only else attn.to_add_out(rest)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as a product of complex numbers: neighbouring channels are real and imaginary part."""
    turn = torch.complex(cos[:, ::2].double(), sin[:, ::2].double())
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def explicit(model: Any, softness: Softness, kind: Perturbation | None = None, **arguments: Any) -> Tensor:
    """The model's prediction with attention maps written out; `softness[block, "attn"]` is U [B, H]."""
    stock = model.attn_processors
    text_first = isinstance(model, FluxTransformer2DModel)
    blocks = [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]
    for b, block in enumerate(blocks):
        for name in ("attn", "attn2"):
            if (attn := getattr(block, name, None)) is not None:
                attn.processor = MapProcessor(text_first, softness.get((b, name)), kind or Perturbation())
    try:
        return model(**arguments, return_dict=False)[0]
    finally:
        model.set_attn_processor(stock)


def weights(batch: int, *heads: tuple[int, int, float], name: str = "attn") -> dict[tuple[int, str], Tensor]:
    """(block, head, u) for every row of a batch."""
    found: dict[tuple[int, str], Tensor] = {}
    for block, head, u in heads:
        found.setdefault((block, name), torch.zeros(batch, HEADS, dtype=torch.float64))[:, head] = u
    return found


def vae(latent_channels: int) -> AutoencoderKL:
    """16 x 16 pixels <-> 8 x 8 latents, in float64; an encoder without any noise."""
    torch.manual_seed(0)
    options: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": 4,
        "shift_factor": 0.1,
        "scaling_factor": 1.5,
    }
    return AutoencoderKL(**options).double().eval()
