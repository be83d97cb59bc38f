"""Pictures of the untrained model, which a run learns to keep (DreamBooth's prior, arXiv 2208.12242)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import write_png
from dit_heads.loras.base import Encoders
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.tasks.drawing import sampling_arguments
from dit_heads.training.processes import wait_for_all


def draw_prior(encoders: Encoders, prompt: str, folder: Path, config: TrainConfig) -> None:
    """Draw the pictures of a prompt that a folder lacks. Each process draws its share.

    Args:
        encoders: with the pipeline, not trained yet.
        prompt: of every picture. Picture k has the seed k.
        folder: gets `prior-0000.png` with the prompt in `prior-0000.txt`, and so on.
        config: size, sampling and number of the pictures.
    """
    pipe, state = encoders.pipe, encoders.state
    (height, width), *_ = config.data.sizes
    tokens = config.data.text_tokens
    text = {} if tokens is None else {"max_sequence_length": tokens}
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(config.loss.prior_count)[state.process_index :: state.num_processes]
    for number in tqdm(numbers, desc="drawing prior", leave=False, disable=not state.is_main_process):
        path = folder / f"prior-{number:04}.png"
        if path.exists():
            continue
        with _in_its_format(pipe.transformer):
            call = sampling_arguments(config.watch, height, width, number)
            image = pipe(prompt, **text, **call).images[0]
        write_text(path.with_suffix(".txt"), prompt)
        write_png(image, path, {"prompt": prompt, "seed": number})
    wait_for_all(state)


def _in_its_format(transformer: Any) -> Any:
    """A transformer in half precision reads the float32 that other components of a pipeline put out."""
    kind = transformer.dtype
    return torch.autocast(transformer.device.type, kind, enabled=kind != torch.float32)
