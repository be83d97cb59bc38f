"""Small random transformers of the real architectures, their inputs, and head guidance written out the
plain way."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

BLOCKS, HEADS, DIM, TEXT = 4, 4, 8, 5
SD3 = {
    "sd3": {},
    "sd3.5-medium": {"dual_attention_layers": (0, 1, 2), "qk_norm": "rms_norm"},
    "sd3.5-large": {"qk_norm": "rms_norm"},
}
# attention module, head -> u
Softness = Mapping[tuple[int, str], Tensor]


def sd3(kind: str = "sd3", dtype: torch.dtype = torch.float64) -> SD3Transformer2DModel:
    """Four blocks of four heads of eight channels; every weight random, none zero."""
    torch.manual_seed(0)
    options: dict[str, Any] = SD3[kind]
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
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
    return model.to(dtype).eval()


def inputs(batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arguments of one call of `sd3()`."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, TEXT, 16, generator=g, dtype=dtype),
        "pooled_projections": torch.randn(batch, 12, generator=g, dtype=dtype),
        "timestep": torch.full((batch,), 500.0, dtype=dtype),
    }


def pipeline(transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """A stock pipeline around a transformer; prompts come as embeddings, pictures leave as latents."""
    nothing = dict.fromkeys(
        ["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **nothing
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
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


class MapProcessor:
    """Attention with its map written out, perturbed row by row: (1 - u) A + u I (arXiv 2506.10978 eq. 7)."""

    def __init__(self, u: Tensor | None = None) -> None:
        self.u = u  # [B, H]

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        streams = [(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is not None:
            added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            streams.append((encoder_hidden_states, *added, attn.norm_added_q, attn.norm_added_k))
        qs, ks, vs = [], [], []
        for x, to_q, to_k, to_v, norm_q, norm_k in streams:
            split = x.shape[0], x.shape[1], attn.heads, -1
            q, k, v = to_q(x).reshape(split), to_k(x).reshape(split), to_v(x).reshape(split)
            qs.append(norm_q(q) if norm_q else q)
            ks.append(norm_k(k) if norm_k else k)
            vs.append(v)
        q, k, v = torch.cat(qs, 1), torch.cat(ks, 1), torch.cat(vs, 1)  # [B, N, H, D]
        a = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        a = a.exp() / a.exp().sum(-1, keepdim=True)
        if self.u is not None:
            u = self.u[:, :, None, None]
            a = (1 - u) * a + u * torch.eye(a.shape[-1], dtype=a.dtype)
        out = torch.einsum("bhij,bjhd->bihd", a, v).flatten(2)
        image = attn.to_out[0](out[:, : hidden_states.shape[1]])
        if encoder_hidden_states is None:
            return image
        text = out[:, hidden_states.shape[1] :]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def explicit(model: SD3Transformer2DModel, softness: Softness, **arguments: Any) -> Tensor:
    """The model's prediction with attention maps written out; `softness[block, "attn"]` is U [B, H]."""
    stock = model.attn_processors
    for b, block in enumerate(model.transformer_blocks):
        for name in ("attn", "attn2"):
            if (attn := getattr(block, name)) is not None:
                attn.processor = MapProcessor(softness.get((b, name)))
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
