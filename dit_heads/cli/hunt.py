"""The `hunt` and `tune` commands. Heavy packages are imported when a command runs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dit_heads.embedded.world.captions import world_prompts
from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.hunt.config import HuntConfig, read_prompts, style_prompts
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import check_writable
from dit_heads.settings import Field, as_mapping, from_json, settings

if TYPE_CHECKING:
    from dit_heads.hunt.hunter import HeadHunter
    from dit_heads.hunt.scorer import Scorer

Flag = tyro.conf.arg


@settings
class Search:
    """The heads to search, and the pictures to judge them by."""

    model: str = "embedded"
    """Model: embedded, embedded/flux, a folder in diffusers' format, or a model id on the hub."""
    objective: str = "clip"
    """Score to raise: clip (the embedded CLIP), clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE or
    MODULE:FUNCTION."""
    prompts: Annotated[Path | None, Flag(metavar="FILE.txt")] = None
    """Text file with one prompt per line. Default: captions of the embedded model's world."""
    num_prompts: Annotated[int, Field(ge=1)] = 5
    """Number of captions to use if there is no file of prompts."""
    style: Annotated[str | None, Flag(metavar="STYLE")] = None
    """Style to search heads for, such as "at night". The prompts then serve as contents."""
    template: str = "{style}, {content}"
    """Template of a prompt, made of a style and a content."""
    candidates: Annotated[str | None, Flag(metavar="HEADS")] = None
    """Heads to choose from, such as "L0-5". Default: all heads."""
    config: Annotated[HuntConfig, Flag(name="")] = field(default_factory=HuntConfig)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and computation."""

    def listed_prompts(self) -> list[str]:
        """The prompts of the search. Raises InputError for a file or a template that yields none."""
        prompts = read_prompts(self.prompts) if self.prompts else world_prompts(self.num_prompts, self.style)
        return style_prompts(self.template, [self.style], prompts) if self.style else prompts

    def hunter(self, folder: Path, workers: Workers) -> HeadHunter:
        """A search with everything loaded, ready to run.

        Args:
            folder: folder of the results.
            workers: the processes that generate pictures.

        Raises:
            InputError: for settings that cannot be honoured, before weights are read where configs show it.
        """
        prompts = self.listed_prompts()
        candidates = None if self.candidates is None else HeadSet.parse(self.candidates)
        # Slow to import, so only now. The configs show a wrong head before the weights are read.
        from dit_heads.hunt.hunter import HeadHunter
        from dit_heads.hunt.plots import require_matplotlib
        from dit_heads.hunt.scorer import InProcess
        from dit_heads.models import head_layout

        require_matplotlib()
        layout = head_layout(self.model)
        if candidates is not None:
            layout.resolve(candidates)
        load = partial(load_scorer, self, workers.device)
        backend = workers.backend(load) if workers.asked_for else InProcess(load())
        return HeadHunter.on(backend, prompts, folder, self.config, candidates=candidates)

    def write(self, path: Path) -> None:
        """Write the settings as `from_json` reads them, wherever it stands then."""
        absolute = replace(self, prompts=self.prompts and self.prompts.absolute())
        write_text(path, json.dumps(as_mapping(absolute), indent=1) + "\n")


def load_scorer(search: Search, device: str) -> Scorer:
    """Load the pipeline and the objective of a search in this process."""
    from dit_heads.embedded.objective import embedded_clip
    from dit_heads.hunt.scorer import Scorer
    from dit_heads.io.quiet import quiet_libraries
    from dit_heads.models import load_pipeline, text_arguments
    from dit_heads.objectives import load_objective

    if os.getcwd() not in sys.path:  # a console script does not search it for MODULE:FUNCTION
        sys.path.append(os.getcwd())
    config = search.config
    with quiet_libraries():
        objective = load_objective(search.objective, {"clip": embedded_clip})
    pipe = load_pipeline(search.model, search.dtype, device)
    pipe.set_progress_bar_config(disable=True)
    return Scorer(
        pipe,
        objective,
        {"guidance_scale": config.guidance_scale, **text_arguments(search.model)},
        perturbation=config.perturbation,
        region=config.region,
        temperature=config.temperature,
    )


@dataclass(frozen=True)
class Workers:
    """The processes that generate pictures."""

    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1, mps, ..."""
    workers: int = 0
    """Number of Ray processes that generate pictures. 0 generates them in this process."""
    cluster: Annotated[str | None, Flag(metavar="ADDRESS")] = None
    """Address of a running Ray cluster, or auto. Default: start a cluster on this machine."""

    @property
    def asked_for(self) -> bool:
        """Whether other processes are to generate the pictures."""
        return bool(self.workers) or self.cluster is not None

    def backend(self, load: Any) -> Any:
        """Worker processes, each with its own model. This process loads none."""
        from dit_heads.hunt.cluster import on_ray

        return on_ray(load, self.workers, address=self.cluster)


@dataclass(frozen=True)
class Hunt:
    """Search for the heads that raise an objective. Results and evidence are written into a folder."""

    out: Annotated[Path, Flag(metavar="FOLDER")] = Path("hunts/general")
    """Folder of the results. Run the same search again to resume it."""
    search: Annotated[Search, Flag(name="")] = field(default_factory=Search)
    where: Annotated[Workers, Flag(name="")] = field(default_factory=Workers)

    def run(self) -> None:
        """Run the search, print and write its result."""
        check_writable(self.out / "heads.json")
        hunter = self.search.hunter(self.out, self.where)
        self.search.write(self.out / "search.json")
        if (cost := hunter.cost()) is not None:
            print(cost)
        found = hunter.run()
        print(found)
        print(f"wrote {', '.join(map(str, hunter.write(found)))}")


@dataclass(frozen=True)
class Tune:
    """Sweep the scale and softness of the heads that a search found, on the prompts of the search."""

    folder: tyro.conf.Positional[Annotated[Path, Flag(metavar="FOLDER")]]
    """Folder of a search that dit-heads hunt has finished."""
    heads: Annotated[str | None, Flag(metavar="HEADS")] = None
    """Heads to use instead of those that the search found."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Head guidance scales w to try."""
    softnesses: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Values of the softness u to try."""
    where: Annotated[Workers, Flag(name="")] = field(default_factory=Workers)

    def run(self) -> None:
        """Generate and score the pictures of the sweep, print and write the result."""
        found, stored = self.folder / "heads.json", self.folder / "search.json"
        if not stored.is_file() or (self.heads is None and not found.is_file()):
            raise InputError(f"folder: expected one that dit-heads hunt has filled, got '{self.folder}'")
        heads = HeadSet.parse(self.heads) if self.heads else HeadSet.load(found)
        search = from_json(Search, stored, "search")
        from dit_heads.hunt.tune import check_grid, tune, write_tuning

        check_grid(self.scales, self.softnesses)
        hunter = search.hunter(self.folder, self.where)
        tuning = tune(hunter, heads, self.scales, self.softnesses)
        print(tuning)
        print(f"wrote {', '.join(map(str, write_tuning(hunter, tuning, self.folder)))}")
