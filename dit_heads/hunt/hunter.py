"""HeadHunter: the attention heads that raise an objective (arXiv 2506.10978, algorithm 1), exactly or fast.

The fast search screens all heads by gradients and draws pictures of the most promising alone, most of them of
the best. What it chooses is chosen by real pictures, as in the exhaustive search.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import diffusers
import torch
from PIL import Image
from tqdm import tqdm

from dit_heads import __version__
from dit_heads.errors import InputError
from dit_heads.families import layout_of
from dit_heads.guidance.perturb import Perturbation
from dit_heads.heads import HeadId, HeadSet
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.halving import Rung, cost, rungs
from dit_heads.hunt.plots import draw_curve, draw_head_map
from dit_heads.hunt.screen import Recorder, screened
from dit_heads.hunt.trials import (
    Execute,
    Scorer,
    Trial,
    TrialLog,
    batches_of,
    evaluate,
    fingerprint,
    in_process,
)
from dit_heads.io.atomic import atomic_file
from dit_heads.io.pictures import write_png
from dit_heads.io.sheets import Column, contact_sheet
from dit_heads.objectives import Objective, name_of


@dataclass(frozen=True)
class Round:
    """What a round found: the heads it added, best first, and the scores of candidates, a number for each
    (prompt, seed) pair, of pictures guided by the heads chosen before and the candidate.

    A fast round has `slopes` of every head, and scores of some, some of them for the first pairs only."""

    chosen: tuple[HeadId, ...]
    scores: Mapping[HeadId, Sequence[float]]
    slopes: Mapping[HeadId, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The outcome of a search; `unguided` are the scores without heads, `pictures` what it took."""

    rounds: tuple[Round, ...]
    unguided: Sequence[float]
    pictures: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> tuple[HeadId, ...]:
        """Every chosen head, in the order of choice."""
        return tuple(head for found in self.rounds for head in found.chosen)

    @property
    def heads(self) -> HeadSet:
        return HeadSet(self.chosen)

    def __str__(self) -> str:
        lines = [f"without heads {fmean(self.unguided):.4f}, mean of {len(self.unguided)} pictures"]
        for number, found in enumerate(self.rounds, 1):
            best = ", ".join(f"{head} {fmean(found.scores[head]):.4f}" for head in found.chosen)
            lines.append(f"round {number}: {best}")
        return "\n".join([*lines, f"heads: {self.heads}", f"{self.pictures} pictures in all"])

    def to_json(self) -> dict[str, Any]:
        """`HeadSet.load` reads it, and whoever wants the figures."""
        means = [{str(h): fmean(s) for h, s in found.scores.items()} for found in self.rounds]
        chosen = [[str(h) for h in found.chosen] for found in self.rounds]
        return {
            **self.heads.to_json(),
            "order": chosen,
            "unguided": fmean(self.unguided),
            "scores": means,
            "slopes": [{str(h): slope for h, slope in found.slopes.items()} for found in self.rounds],
            "pictures": self.pictures,
            "provenance": dict(self.provenance),
        }


class HeadHunter:
    """Search the heads of a pipeline for those that raise an objective.

    >>> hunter = HeadHunter(pipe, embedded_clip(), prompts, Path("hunts/night"))   # doctest: +SKIP
    >>> result = hunter.run()                                                      # doctest: +SKIP

    prompts: each is drawn with every seed of the config. folder: where the log is; the same search started
    again goes on where it was, another one is refused. candidates: the heads to choose among, all by default.
    call: further arguments of the pipeline. execute: runs batches, in this process by default.

    Raises ValueError for bad arguments, and for an objective that does not give one finite number a picture.
    """

    def __init__(
        self,
        pipe: Any,
        objective: Objective,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig | None = None,
        *,
        candidates: HeadSet | str | None = None,
        call: Mapping[str, Any] | None = None,
        execute: Execute | None = None,
    ) -> None:
        if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise InputError(f"prompts: expected at least one, and none empty, got {list(prompts)}")
        self.config = config = config or HuntConfig()
        self.pairs = [(prompt, seed) for seed in config.seeds for prompt in prompts]
        self.candidates = _candidates(pipe, candidates)
        if config.rounds * config.per_round > len(self.candidates):
            raise InputError(
                f"rounds, per_round: expected at most {len(self.candidates)} heads in all, the number of "
                f"candidates, got {config.rounds} x {config.per_round}"
            )
        call = {"guidance_scale": config.guidance_scale, **(call or {})}
        scorer = Scorer(pipe, objective, call, perturbation=config.perturbation, region=config.region)
        self.header = _header(pipe, objective, config, call)
        self.folder = Path(folder)
        self.log = TrialLog(self.folder / "trials.jsonl", self.header)
        self.scorer, self.execute = scorer, execute or in_process(scorer)

    def run(self) -> Result:
        """Search until the end, with a progress bar; interrupted, call it again."""
        rounds: list[Round] = []
        chosen: tuple[HeadId, ...] = ()
        search = self._fast_round if self.config.method == "fast" else self._round
        with tqdm(total=self._pictures(), unit="picture", desc="hunting") as bar:
            for _ in range(self.config.rounds):
                rounds.append(search(chosen, bar))
                chosen += rounds[-1].chosen
            unguided = self._score([None], self.pairs, bar)[0]
        return Result(tuple(rounds), unguided, len(self.log), self._provenance())

    def write(self, result: Result) -> list[Path]:
        """Everything that shows a result, into the folder of the search: the head set with its scores
        (`heads.json`, `scores.csv`), maps of each round, the curve of `curve` and the sheet of `sheet`."""
        paths = [self.folder / name for name in ("heads.json", "scores.csv", "curve.png", "sheet.png")]
        for path, text in zip(paths, (_json(result), _table(result, self.pairs)), strict=False):
            with atomic_file(path) as file:
                file.write(text.encode())
        curve = self.curve(result)
        draw_curve([fmean(scores) for scores in curve], paths[2], title=self.header["objective"])
        write_png(self.sheet(result), paths[3], {"heads": str(result.heads), **self.header})
        for number, found in enumerate(result.rounds, 1):
            paths.append(self.folder / f"round-{number}.png")
            gains = {head: fmean(s) - fmean(result.unguided[: len(s)]) for head, s in found.scores.items()}
            title = f"round {number}: gain over no heads"
            draw_head_map(gains, paths[-1], chosen=found.chosen, title=title)
            if found.slopes:
                paths.append(self.folder / f"screen-{number}.png")
                draw_head_map(found.slopes, paths[-1], chosen=found.chosen, title=f"round {number}: slopes")
        return paths

    def curve(self, result: Result) -> list[list[float]]:
        """Scores of the first 0, 1, 2 ... chosen heads, a number for each pair."""
        return self.scores([_set_of(result.chosen[:n]) for n in range(len(result.chosen) + 1)])

    def scores(
        self, sets: Sequence[HeadSet | None], *, scale: float | None = None, softness: float | None = None
    ) -> list[list[float]]:
        """Scores of head sets, a number for each pair, from the log or from pictures that are drawn now;
        `scale` and `softness` are those of the search unless given. None draws without guidance."""
        strength = (
            self.config.scale if scale is None else scale,
            self.config.softness if softness is None else softness,
        )
        with tqdm(total=len(sets) * len(self.pairs), unit="picture", desc="scoring", leave=False) as bar:
            return self._score(sets, self.pairs, bar, strength)

    def sheet(self, result: Result, rows: int = 5) -> Image.Image:
        """Pictures without heads and after each round (columns) of the first pairs (rows)."""
        after = list(itertools.accumulate((found.chosen for found in result.rounds), initial=()))
        pairs = self.pairs[:rows]
        cells = [self.draw(_set_of(heads), pairs) for heads in after]
        labels = [Column("no heads")]
        labels += [
            Column(f"round {number}", f"+ {HeadSet(found.chosen)}")
            for number, found in enumerate(result.rounds, 1)
        ]
        return contact_sheet(
            [list(line) for line in zip(*cells, strict=True)],
            labels,
            [f"{prompt}\nseed {seed}" for prompt, seed in pairs],
            title=f"Heads that raise {self.header['objective']}",
            footer=f"scale {self.config.scale:g}, softness {self.config.softness:g}. AI-generated.",
        )

    def draw(
        self,
        heads: HeadSet | None,
        pairs: Sequence[tuple[str, int]],
        strength: tuple[float, float] | None = None,
    ) -> list[Image.Image]:
        """Pictures of (prompt, seed) pairs with a head set; `strength` is scale and softness."""
        batches = batches_of([self._trial(heads, *pair, strength) for pair in pairs], self.config.batch)
        images = torch.cat([self.scorer.paint(batch) for batch in batches])
        return self.scorer.pipe.image_processor.postprocess(images, do_denormalize=[False] * len(images))

    def _round(self, chosen: tuple[HeadId, ...], bar: Any) -> Round:
        """Every head that is not chosen yet, together with those that are; the best of them."""
        left = self._left(chosen)
        found = self._score([HeadSet((*chosen, head)) for head in left], self.pairs, bar)
        scores = dict(zip(left, found, strict=True))
        return Round(tuple(_ranked(scores)[: self.config.per_round]), scores)

    def _fast_round(self, chosen: tuple[HeadId, ...], bar: Any) -> Round:
        """The heads of the steepest slopes, by successive halving."""
        slopes = self._slopes(chosen, bar)
        left = sorted(self._left(chosen), key=lambda head: (-slopes[head], head))
        scores: dict[HeadId, list[float]] = {head: [] for head in left}
        known = 0
        for rung in self._rungs(len(left)):
            left = left[: rung.candidates]
            sets = [HeadSet((*chosen, head)) for head in left]
            found = self._score(sets, self.pairs[known : rung.pairs], bar)
            for head, of_head in zip(left, found, strict=True):
                scores[head] += of_head
            known, left = rung.pairs, _ranked({head: scores[head] for head in left})
        scores = {head: of_head for head, of_head in scores.items() if of_head}
        return Round(tuple(left[: self.config.per_round]), scores, slopes)

    def _rungs(self, candidates: int) -> list[Rung]:
        """The plan of a fast round: its share of an exhaustive round's pictures, less those of the screen."""
        pairs = len(self.pairs)
        pictures = int(self.config.share * pairs * (candidates + 1)) - pairs
        return rungs(candidates, pairs, self.config.per_round, pictures)

    def _slopes(self, chosen: tuple[HeadId, ...], bar: Any) -> dict[HeadId, float]:
        """The gradient screen of a round on the pictures of its heads so far, or what is stored of it."""
        config, path = self.config, self.folder / f"screen-{len(chosen) // self.config.per_round + 1}.json"
        trials = [self._trial(_set_of(chosen), *pair) for pair in self.pairs]
        asked = json.loads(json.dumps({"scale": config.scale, "of": [asdict(trial) for trial in trials]}))
        if path.exists() and (stored := json.loads(path.read_text()))["asked"] == asked:
            bar.update(len(trials) if chosen else 0)
            return {head: stored["slopes"][str(head)] for head in self._every_head()}
        runs = []
        for batch in batches_of(trials, config.batch):
            with Recorder(self.scorer.pipe) as recorder:
                self.log.add(batch, self.scorer(batch))
            runs.append(([trial.prompt for trial in batch], recorder.calls))
            bar.update(len(batch) if chosen else 0)  # those without heads count when `run` reads their scores
        slopes = screened(
            self.scorer.pipe,
            self.scorer.objective,
            runs,
            scale=config.scale,
            chosen=dict.fromkeys(chosen, config.softness),
            perturbation=Perturbation(config.perturbation, config.region),
        )
        with atomic_file(path) as file:
            named = {str(head): slope for head, slope in slopes.items()}
            file.write(json.dumps({"asked": asked, "slopes": named}).encode())
        return slopes

    def _every_head(self) -> tuple[HeadId, ...]:
        return layout_of(self.scorer.pipe.transformer).every_head()

    def _left(self, chosen: tuple[HeadId, ...]) -> list[HeadId]:
        return [head for head in self.candidates if head not in chosen]

    def _score(
        self,
        sets: Sequence[HeadSet | None],
        pairs: Sequence[tuple[str, int]],
        bar: Any,
        strength: tuple[float, float] | None = None,
    ) -> list[list[float]]:
        trials = [[self._trial(heads, *pair, strength) for pair in pairs] for heads in sets]
        flat = list(itertools.chain.from_iterable(trials))
        found = evaluate(flat, self.log, self.execute, size=self.config.batch, done=bar.update)
        return [[found[trial] for trial in of_set] for of_set in trials]

    def _trial(
        self, heads: HeadSet | None, prompt: str, seed: int, strength: tuple[float, float] | None = None
    ) -> Trial:
        config = self.config
        if heads is None:
            return Trial("", prompt, seed, config.steps, 0.0, 0.0)
        return Trial(str(heads), prompt, seed, config.steps, *(strength or (config.scale, config.softness)))

    def _provenance(self) -> dict[str, Any]:
        versions = {"dit_heads": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        prompts = list(dict.fromkeys(prompt for prompt, _ in self.pairs))
        return {**self.header, **asdict(self.config), "prompts": prompts, "versions": versions}

    def _pictures(self) -> int:
        """How many pictures the search takes."""
        left = [len(self.candidates) - r * self.config.per_round for r in range(self.config.rounds)]
        if self.config.method == "exhaustive":
            return len(self.pairs) * (1 + sum(left))
        return len(self.pairs) * len(left) + sum(cost(self._rungs(n)) for n in left)


def _set_of(heads: Sequence[HeadId]) -> HeadSet | None:
    return HeadSet(heads) if heads else None


def _ranked(scores: Mapping[HeadId, Sequence[float]]) -> list[HeadId]:
    """Best mean first."""
    return sorted(scores, key=lambda head: (-fmean(scores[head]), head))


def _candidates(pipe: Any, heads: HeadSet | str | None) -> tuple[HeadId, ...]:
    layout = layout_of(pipe.transformer)
    if heads is None:
        return layout.every_head()
    return layout.resolve(HeadSet.parse(heads) if isinstance(heads, str) else heads)


def _header(pipe: Any, objective: Objective, config: HuntConfig, call: Mapping[str, Any]) -> dict[str, Any]:
    """What every score depends on; the rest of the settings each trial has itself, so that they may vary."""
    return {
        "pipeline": type(pipe).__name__,
        "weights": fingerprint(pipe.transformer),
        "objective": name_of(objective),
        "call": dict(call),
        "perturbation": config.perturbation,
        "region": config.region,
        "batch": config.batch,
    }


def _json(result: Result) -> str:
    return json.dumps(result.to_json(), indent=1) + "\n"


def _table(result: Result, pairs: Sequence[tuple[str, int]]) -> str:
    """Every score as CSV: a line for each round, head and pair."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("round", "head", "chosen", "prompt", "seed", "score"))
    for number, found in enumerate(result.rounds, 1):
        for head, scores in found.scores.items():
            for (prompt, seed), score in zip(pairs, scores, strict=False):  # fast: the first ones
                writer.writerow((number, head, int(head in found.chosen), prompt, seed, score))
    return text.getvalue()
