"""The `train` command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dit_heads.loras.config import TrainConfig, read_config


@dataclass(frozen=True)
class Train:
    """Train a LoRA on sets of images (In-Context LoRA). Flags take precedence over the file."""

    file: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="CONFIG.yaml")]] = None
    """YAML file of settings, in sections. Without one, flags and defaults count."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    @classmethod
    def of_file(cls, file: Path) -> Train:
        """The settings of a file, which flags replace."""
        return cls(file, read_config(file))

    def run(self) -> None:
        """Train, and say where the file is."""
        from dit_heads.io.quiet import quiet_libraries

        with quiet_libraries():  # what `train` imports has something to say already
            from accelerate import PartialState

            from dit_heads.loras.train import train

        path = train(self.config)
        if PartialState().is_main_process:
            print(f"wrote {path}")
