"""What a LoRA changes in a transformer, whatever file it is in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dit_heads.errors import InputError
from dit_heads.families import InputProjection, family_of

NEEDS = "peft is missing, which LoRAs need: pip install 'dit-heads[train]'"
PREFIX, PEFT = "transformer.", "base_model.model."  # of names, in files of diffusers and of peft
_SHOWN = 5  # entries of a file that an error lists


@dataclass(frozen=True)
class LowRank:
    """The change `b @ a` of one linear weight [O, I], scale included.

    A weight that is trained whole has the identity for `a`. With a magnitude, the new weight is that of DoRA
    (arXiv 2402.09353, eq. 5): magnitude times the rows of weight + b @ a, each divided by its norm.

    Attributes:
        a: reads the inputs.
        b: makes the outputs.
        magnitude: norm of each row of the new weight, or None without DoRA.
        kernel: channels, height and width of a convolution, whose weight is a matrix with a column for each;
            None for a linear module.
    """

    a: Float[Tensor, "rank inputs"]
    b: Float[Tensor, "outputs rank"]
    magnitude: Float[Tensor, " outputs"] | None = None
    kernel: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return len(self.a)

    @property
    def channels(self) -> int:
        """Inputs of the module."""
        return self.kernel[0] if self.kernel else self.a.shape[1]


@dataclass(frozen=True)
class Lora:
    """What a LoRA changes in a transformer.

    Attributes:
        modules: the change of each linear module, by the module's name.
    """

    modules: Mapping[str, LowRank]

    @property
    def dora(self) -> bool:
        """Whether magnitudes are trained, too."""
        return any(change.magnitude is not None for change in self.modules.values())

    def tensors(self) -> dict[str, Tensor]:
        """By diffusers' keys."""
        found = {}
        for name, change in self.modules.items():
            convolution = change.kernel is not None
            found[f"{PREFIX}{name}.lora_A.weight"] = change.a.unflatten(1, change.kernel or (-1,))
            found[f"{PREFIX}{name}.lora_B.weight"] = change.b[..., None, None] if convolution else change.b
            if change.magnitude is not None:
                found[f"{PREFIX}{name}.lora_magnitude_vector"] = change.magnitude
        return found

    def config(self) -> dict[str, Any]:
        """Arguments of peft's LoraConfig by diffusers' keys: alpha = rank, and names that match whole."""
        rank = Counter(change.rank for change in self.modules.values()).most_common(1)[0][0]
        others = {f"^{re.escape(n)}": c.rank for n, c in self.modules.items() if c.rank != rank}
        config = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": "|".join(map(re.escape, sorted(self.modules))),
            "use_dora": self.dora,
        }
        return {PREFIX + key: value for key, value in config.items()}


def check_fits(lora: Lora, transformer: nn.Module, label: str = "lora: it") -> None:
    """Refuse a LoRA that does not fit a transformer.

    Each module has to be a linear one of the transformer, of its shape, and all have magnitudes or none. The
    input projection may be a convolution, and the LoRA may read more channels than it does.

    Args:
        lora: what to check.
        transformer: the model that it is for.
        label: what the message begins with.

    Raises:
        InputError: naming the first modules that do not fit.
    """
    linear, projection = linear_modules(transformer), input_projection(transformer)
    problems = {}
    for name, change in lora.modules.items():
        if projection and name == projection.path and (change.kernel or _missing(change, transformer, name)):
            if misfit := _input_misfit(change, transformer.get_submodule(name)):
                problems[name] = misfit
        elif name not in linear or change.kernel:
            problems[name] = "no such linear module"
        elif (change.b.shape[0], change.a.shape[1]) != linear[name]:
            got = f"{tuple(change.b.shape)} and {tuple(change.a.shape)}"
            problems[name] = f"expected B and A of a {linear[name]} weight, got {got}"
        elif (change.magnitude is not None) != lora.dora:
            problems[name] = "no magnitudes, which others have"
        elif change.magnitude is not None and change.magnitude.shape != linear[name][:1]:
            problems[name] = f"expected {linear[name][0]} magnitudes, got {tuple(change.magnitude.shape)}"
    raise_for(problems, label, transformer)


def _input_misfit(change: LowRank, module: Any) -> str | None:
    """Why a change is none of the weight of this input projection, widened."""
    outputs, inputs, *kernel = module.weight.shape
    fits = change.b.shape[0] == outputs and change.channels >= inputs and change.magnitude is None
    if fits and list(change.kernel or (0,))[1:] == kernel:
        return None
    got = f"{tuple(change.b.shape)} and {tuple(change.a.shape)}"
    return f"expected B and A of a {tuple(module.weight.shape)} weight or a wider one, got {got}"


def missing_channels(lora: Lora, transformer: nn.Module) -> int:
    """Number of latent channels that a LoRA reads and a transformer does not."""
    projection = input_projection(transformer)
    if projection is None or projection.path not in lora.modules:
        return 0
    change = lora.modules[projection.path]
    return max(0, _missing(change, transformer, projection.path) // projection.inputs)


def _missing(change: LowRank, transformer: nn.Module, path: str) -> int:
    module: Any = transformer.get_submodule(path)
    return change.channels - module.weight.shape[1]


def input_projection(transformer: nn.Module) -> InputProjection | None:
    """What reads the latents of a transformer, None if its family does not say."""
    base: Any = getattr(transformer, "get_base_model", lambda: transformer)()  # of peft's own wrapper
    training = family_of(base).training
    return None if training is None else training.input


def linear_modules(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Shape [O, I] of the weight of each linear module, by the name that it has without adapters."""
    return {
        name.removeprefix(PEFT).removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def raise_for(problems: Mapping[str, str], label: str, transformer: nn.Module) -> None:
    """Raise an `InputError` if there are problems.

    Args:
        problems: what is wrong, by the key of a file or the name of a module.
        label: what the message begins with.
        transformer: the model that does not fit.
    """
    if problems:
        shown = "; ".join(f"'{key}': {why}" for key, why in list(problems.items())[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        kind = type(transformer).__name__
        raise InputError(f"{label} does not fit {kind} in {len(problems)} places: {shown}{more}")


def require_peft() -> Any:
    """The peft library. Raises `InputError` that says how to install it."""
    try:
        import peft
    except ImportError as error:
        raise InputError(NEEDS) from error
    return peft
