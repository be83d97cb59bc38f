"""A family that nobody has built, in one file: transformer, pipeline, and what `dit_heads` has to know of it.

It differs from SD3 and FLUX wherever a family can: two lists of blocks with other numbers of heads, one in
wrappers; registers, then image, then text in one stream; lists of pictures in and out; other argument names;
no dictionary of keywords, so that weights travel around the positions; time runs from noise to picture; CFG
is one batch with the conditional half first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from dit_heads.families._family import Arguments, Call, Family, HeadLayout
from dit_heads.families.processors import HEAD_WEIGHTS, HeadProcessor

WIDTH, CHANNELS, REGISTERS, TEXT = 16, 3, 2, 4
EARLY, LATE = (2, 4), (3, 2)  # blocks, heads of each

# --- the model, as its authors would write it ---


class PlaidProcessor:
    def __call__(self, mix: PlaidMix, tokens: Tensor, places: Tensor) -> Tensor:
        q, k, v = mix.projected(tokens, places)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return mix.out(out.transpose(1, 2).flatten(2))


class PlaidMix(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads, self.processor = heads, PlaidProcessor()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def projected(self, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q + places[:, None], k + places[:, None], v

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.processor(self, tokens, places)


class PlaidBlock(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.mix, self.mlp = PlaidMix(heads), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, mood: Tensor, places: Tensor) -> Tensor:
        tokens = tokens + mood[:, None] * self.mix(tokens, places)
        return tokens + self.mlp(tokens).tanh()


class Wrapped(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.inner = PlaidBlock(heads)

    def forward(self, *args: Any) -> Tensor:
        return self.inner(*args)


class PlaidLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, CHANNELS)

    def forward(self, tokens: Tensor, mood: Tensor) -> Tensor:
        return self.project(tokens * mood[:, None])


class PlaidTransformer(ModelMixin, ConfigMixin):
    """x: pictures [C, N] in a list; progress: 0 at noise, 1 at the picture; cap: texts [B, T, W]."""

    @register_to_config
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.time = nn.Linear(CHANNELS, WIDTH), nn.Linear(1, WIDTH)
        self.registers = nn.Parameter(torch.zeros(REGISTERS, WIDTH))
        self.early = nn.ModuleList(Wrapped(EARLY[1]) for _ in range(EARLY[0]))
        self.late = nn.ModuleList(PlaidBlock(LATE[1]) for _ in range(LATE[0]))
        self.last = PlaidLast()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25)

    def forward(self, x: list[Tensor], progress: Tensor, cap: Tensor, places: Any = 0.0) -> list[Tensor]:
        image = self.embed(torch.stack(x).transpose(1, 2))
        tokens = torch.cat([self.registers.expand(len(x), -1, -1), image, cap], 1)
        mood = self.time(progress[:, None])
        for block in [*self.early, *self.late]:
            tokens = block(tokens, mood, places)
        return list(self.last(tokens, mood)[:, REGISTERS:-TEXT].transpose(1, 2))


class PlaidScheduler(SchedulerMixin, ConfigMixin):
    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(self) -> None:
        self.order = 1

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]

    def step(self, velocity: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        return latents - velocity / len(self.timesteps)


class PlaidPipeline(DiffusionPipeline):
    def __init__(self, transformer: PlaidTransformer, scheduler: PlaidScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, cap: Tensor, negative: Tensor, places: Tensor, *, steps: int, cfg: float
    ):
        self.scheduler.set_timesteps(steps)
        self._num_timesteps, self._cfg, doubled = steps, cfg, 2 if cfg else 1
        with self.progress_bar(total=steps) as bar:
            for t in self.scheduler.timesteps:
                progress = (1 - t).expand(doubled * len(latents))
                texts = torch.cat([cap, negative]) if cfg else cap
                found = torch.stack(self.transformer(list(latents) * doubled, progress, texts, places))
                positive = found[: len(latents)]
                if cfg:
                    positive = positive + cfg * (positive - found[len(latents) :])
                latents = self.scheduler.step(positive, t, latents)
                bar.update()
        return latents


# --- what dit_heads has to know of it ---


@dataclass(frozen=True)
class Places:
    """Positions of tokens that carry things of ours along."""

    own: Any
    held: Mapping[str, Any]


class AroundPlaces:
    """Positions go down to the attentions untouched, so that a wrapper of them goes as well."""

    def put(self, call: Call, key: str, value: Any) -> dict[str, Any]:
        places = _wrapped(call)
        return {**call, "places": Places(places.own, {**places.held, key: value})}

    def pop(self, call: Call, key: str) -> tuple[Any, dict[str, Any]]:
        places = _wrapped(call)
        held = {name: value for name, value in places.held.items() if name != key}
        return places.held.get(key), {**call, "places": Places(places.own, held) if held else places.own}

    def mapped(self, call: Call, change: Callable[[Any], Any]) -> dict[str, Any]:
        return {}  # nobody else's things travel so


def _wrapped(call: Call) -> Places:
    places = call.get("places", 0.0)
    return places if isinstance(places, Places) else Places(places, {})


class PlaidHeadProcessor(HeadProcessor):
    replaceable = (PlaidProcessor,)

    def __call__(self, mix: PlaidMix, tokens: Tensor, places: Any) -> Tensor:
        weights, call = PLAID.carrier.pop({"places": places}, HEAD_WEIGHTS)
        u = self._weights(weights)
        if u is None:
            return self.replaced(mix, tokens, call["places"])
        image = slice(REGISTERS, tokens.shape[1] - weights.text_tokens)
        return mix.out(self._perturbed(mix.projected(tokens, call["places"]), u, image))


def _layout(transformer: Any) -> HeadLayout:
    blocks: Sequence[Any] = [*(wrapped.inner for wrapped in transformer.early), *transformer.late]
    return HeadLayout(
        model=type(transformer).__name__,
        family=PLAID,
        blocks=(
            *(f"early.{b}.inner" for b in range(len(transformer.early))),
            *(f"late.{b}" for b in range(len(transformer.late))),
        ),
        heads=tuple(block.mix.num_heads for block in blocks),
        image_only_heads=(0,) * len(blocks),
        final="last",
        joint="mix",
    )


PLAID = Family(
    name="plaid",
    layout=_layout,
    arguments=Arguments(
        latents="x",
        batched=("x", "progress", "cap"),
        block=("tokens", "mood", "places"),
        grown=("tokens", "mood"),
    ),
    carrier=AroundPlaces(),
    processor=PlaidHeadProcessor,
    text_length=lambda call: call["cap"].shape[1],
    conditional_rows=lambda pipe, batch: slice(0, batch // 2 if pipe._cfg else batch),
    noise_level=lambda call: 1 - call["progress"][0].item(),
    prediction=torch.stack,
    with_prediction=lambda output, sample: list(sample),
)
