"""The `demo` command."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dit_heads.errors import InputError

Flag = tyro.conf.arg


@dataclass(frozen=True)
class Demo:
    """Open the demo: a page in the browser on the embedded models, offline."""

    model: tuple[str, ...] = ("embedded", "embedded/flux")
    """Models of the page: embedded, embedded/flux, folders in diffusers' format, or model ids of the hub."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port to listen at; 0 takes a free one."""
    auth: Annotated[str | None, Flag(metavar="NAME:PASSWORD")] = None
    """Name and password that visitors need, joined by a colon."""
    share: bool = False
    """Also give the page a public address, through Gradio's tunnel."""
    queue: int = 32
    """Number of requests that may wait for one model."""
    instruct_lora: Annotated[Path | None, Flag(metavar="FILE.safetensors")] = None
    """LoRA of the task instruct with which the first model answers questions in See. Default: the one that
    ships for it."""
    soft_tokens: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Weights of soft tokens with which the first model answers questions in See too. Default: those that
    ship for it."""
    edit_lora: Annotated[Path | None, Flag(metavar="FILE.safetensors")] = None
    """LoRA of the task multimodal, with `references.safetensors` beside it, with which the first model edits
    in Edit. Default: the one that ships for it."""

    def run(self) -> None:
        auth = credentials(self.auth)
        if not 0 <= self.port <= 65535:
            raise InputError(f"port: expected a number from 0 to 65535, got {self.port}")
        if not self.model:
            raise InputError("model: expected at least one, got none")
        from dit_heads.demo.limits import Limits
        from dit_heads.demo.log import private_log
        from dit_heads.demo.serve import running

        limits = Limits(queue=self.queue)
        where: dict[str, Any] = {"host": self.host, "port": self.port, "share": self.share}
        where |= {"instruct_lora": self.instruct_lora, "edit_lora": self.edit_lora}
        where |= {"soft_tokens": self.soft_tokens}
        with private_log(), running(self.model, auth=auth, limits=limits, **where) as address:
            print(f"the demo is at {address} (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)


def credentials(text: str | None) -> tuple[str, str] | None:
    """Name and password. Raises InputError unless both are there."""
    if text is None:
        return None
    name, _, password = text.partition(":")
    if not name or not password:
        raise InputError("auth: expected NAME:PASSWORD, got something else")
    return name, password
