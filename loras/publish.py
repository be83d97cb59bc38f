"""A finished LoRA's card, and its way to the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dit_heads import __version__
from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.io.atomic import write_text
from dit_heads.loras.config import TrainConfig, as_mapping
from dit_heads.models import EMBEDDED

FILE = "lora.safetensors"
SHARED = (FILE, "README.md", "samples/*")


def write_card(config: TrainConfig, pipe: Any) -> Path:
    """Write `README.md` beside the LoRA: what it is of, how it was trained, how it is used."""
    data, adapter, steps = config.data, config.adapter, config.optimization.steps
    grid = f"{data.rows} x {data.columns} panels" if data.rows * data.columns > 1 else "single pictures"
    samples = sorted((config.out / "samples").glob(f"step-{steps:06}-*.png"))
    shown = "".join(f"![{path.stem}](samples/{path.name})\n" for path in samples)
    trigger = f"\nBegin captions with `{config.trigger}`.\n" if config.trigger else ""
    text = f"""---
{_front_matter(config, pipe)}
---

# {config.out.resolve().name}

A LoRA of rank {adapter.rank} for `{config.model}`: {grid}, trained for {steps} steps on
`{data.root.resolve().name}` by dit-heads {__version__}.
{trigger}
```python
{_code(config, type(pipe).__name__)}
```

{shown}
## Settings

```json
{json.dumps(as_mapping(config), indent=1)}
```
"""
    path = config.out / "README.md"
    write_text(path, text)
    return path


def _front_matter(config: TrainConfig, pipe: Any) -> str:
    """What the hub reads. It refuses a base that is no model of its own."""
    kind = family_of(pipe.transformer).name
    lines = [
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [lora, in-context-lora, {kind}, template:sd-lora]",
    ]
    if config.model.count("/") == 1 and config.model not in EMBEDDED and not Path(config.model).exists():
        lines = [f"base_model: {json.dumps(config.model)}", *lines]
    return "\n".join(lines)


def _code(config: TrainConfig, kind: str) -> str:
    """How the LoRA is used, from the hub or from the folder of the file."""
    if config.model in EMBEDDED:
        start = f"""from dit_heads import load_embedded

pipe = load_embedded({json.dumps(EMBEDDED[config.model])})"""
    else:
        start = f"""from diffusers import {kind}

pipe = {kind}.from_pretrained({json.dumps(config.model)})"""
    where = json.dumps(config.watch.hub_id or ".")
    return f'''{start}
pipe.load_lora_weights({where}, weight_name="{FILE}")'''


def check_hub(hub_id: str | None) -> None:
    """Raise ValueError if a push to the hub is asked for and could not be done, before hours are spent."""
    if hub_id is None:
        return
    if hub_id.count("/") != 1 or not all(hub_id.split("/")):
        raise InputError(f"hub_id: expected owner/name, got '{hub_id}'")
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise InputError("hub_id: the hub is switched off by HF_HUB_OFFLINE=1")
    try:
        HfApi().whoami()
    except Exception as error:
        raise InputError(f"hub_id: log in first (hf auth login): {error}") from error


def push(hub_id: str | None, folder: Path) -> None:
    """Send LoRA, card and samples of a run's folder to the hub, if asked for."""
    if hub_id is None:
        return
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(hub_id, exist_ok=True)
    api.upload_folder(repo_id=hub_id, folder_path=os.fspath(folder), allow_patterns=list(SHARED))
