"""A finished LoRA's card, and its way to the hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from dit_heads import __version__
from dit_heads.errors import InputError
from dit_heads.families import family_of
from dit_heads.io.atomic import write_text
from dit_heads.loras.config import TrainConfig, model_name, shared
from dit_heads.models import EMBEDDED

LORA, CARD = "lora.safetensors", "README.md"
SHARED = (LORA, CARD, "samples/*")
_CHECKSUM = "\n<!-- written by dit-heads, checksum {} -->\n"
_OLD_CARD = re.compile(r"^A LoRA of rank \d+ for .*\bby dit-heads \d", re.M | re.S)

DORA_NOTE = "This is a DoRA. ComfyUI ignores its magnitudes and draws other pictures than diffusers does."

logger = logging.getLogger(__name__)


def write_card(config: TrainConfig, pipe: Any) -> Path:
    """Write `README.md` beside the LoRA: what it is of, how it was trained, how it is used.

    No path of this machine is in it. A README.md that somebody else wrote, or changed, stays; the card then
    gets another name.

    Args:
        config: settings of the run.
        pipe: the pipeline that was trained.

    Returns:
        The card's path.
    """
    text = _card(config, pipe)
    path = config.out / CARD
    if path.exists() and not is_card(path.read_text("utf-8", "replace")):
        path = config.out / "README-lora.md"
        logger.warning("out: '%s' is not this run's, so its card is '%s'", config.out / CARD, path)
    write_text(path, text + _CHECKSUM.format(_checksum(text)))
    return path


def is_card(text: str) -> bool:
    """Whether `write_card` wrote all of this text."""
    body, mark, _ = text.rpartition("\n<!-- written by dit-heads")
    return text == body + _CHECKSUM.format(_checksum(body)) if mark else bool(_OLD_CARD.search(text))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _card(config: TrainConfig, pipe: Any) -> str:
    data, adapter, steps = config.data, config.adapter, config.optimization.steps
    grid = f"{data.rows} x {data.columns} panels" if data.rows * data.columns > 1 else "single pictures"
    learned = f"{grid}, trained for {steps} steps on\n`{data.root.resolve().name}`"
    if config.task != "in_context":
        learned = f"the task {config.task}, trained for {steps} steps"
    samples = sorted((config.out / "samples").glob(f"step-{steps:06}-*.png"))
    shown = "".join(f"![{path.stem}](samples/{path.name})\n" for path in samples)
    notes = f"\nBegin captions with `{config.trigger}`.\n" if config.trigger else ""
    notes += f"\n{DORA_NOTE}\n" if adapter.dora else ""
    return f"""---
{_front_matter(config, pipe)}
---

# {config.out.resolve().name}

A LoRA of rank {adapter.rank} for `{model_name(config.model)}`: {learned} by dit-heads {__version__}.
{notes}
```python
{_code(config, type(pipe).__name__)}
```

{shown}
## Settings

```json
{json.dumps(shared(config), indent=1)}
```
"""


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

pipe = {kind}.from_pretrained({json.dumps(model_name(config.model))})"""
    where = json.dumps(config.watch.hub_id or ".")
    return f'''{start}
pipe.load_lora_weights({where}, weight_name="{LORA}")'''


def check_hub(hub_id: str | None) -> None:
    """Refuse a push to the hub that could not be done, before hours are spent.

    Args:
        hub_id: "owner/name", None for no push.

    Raises:
        InputError: the name is not of this form, the hub is switched off, or nobody is logged in.
    """
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
    """Send LoRA, card and samples of a run to the hub.

    Args:
        hub_id: "owner/name", None for no push.
        folder: of the run.
    """
    if hub_id is None:
        return
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(hub_id, exist_ok=True)
    api.upload_folder(repo_id=hub_id, folder_path=os.fspath(folder), allow_patterns=list(SHARED))
