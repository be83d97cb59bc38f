"""HeadHunter: the attention heads that raise an objective (arXiv 2506.10978, algorithm 1), exactly or fast.

The fast search screens all heads by gradients. It draws pictures only for the most promising heads, and more
pictures the better a head does. It chooses by real pictures, as the exhaustive search does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import diffusers
import torch
from PIL import Image
from tqdm import tqdm

from dit_heads import __version__
from dit_heads.errors import InputError
from dit_heads.heads import HeadId, HeadSet
from dit_heads.heads.names import every_head
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.cost import ScreenCost
from dit_heads.hunt.halving import Rung, cost, rungs
from dit_heads.hunt.log import TrialLog
from dit_heads.hunt.report import Pair, Result, Round, check_folder, pictures, result_sheet, write_result
from dit_heads.hunt.scorer import Backend, HeadCounts, InProcess, Scorer
from dit_heads.hunt.screen import Screening
from dit_heads.hunt.stored import read_slopes, write_slopes
from dit_heads.hunt.trials import Execute, Strength, Trial, TrialBatch, batches_of, evaluate
from dit_heads.objectives import Objective


class HeadHunter:
    """Search the heads of a pipeline for those that raise an objective.

    >>> hunter = HeadHunter(pipe, embedded_clip(), prompts, Path("hunts/night"))   # doctest: +SKIP
    >>> result = hunter.run()                                                      # doctest: +SKIP

    Args:
        pipe: a text-to-image pipeline.
        objective: what scores its pictures.
        prompts: each is drawn with every seed of the config.
        folder: where the log is. The same search resumes there; another one is refused.
        config: the settings.
        candidates: the heads to choose among. Default: all.
        call: further arguments of the pipeline.
        execute: scores batches. Default: in this process.

    Raises:
        InputError: for bad arguments, and for an objective that does not give one finite number a picture.
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
        config = config or HuntConfig()
        given = {"guidance_scale": config.guidance_scale, **(call or {})}
        kind = {name: getattr(config, name) for name in ("perturbation", "region", "temperature")}
        scorer = Scorer(pipe, objective, given, **kind)
        _check_prompts(prompts)
        self._start(InProcess(scorer, execute), prompts, folder, config, candidates)

    @classmethod
    def on(
        cls,
        backend: Backend,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig,
        *,
        candidates: HeadSet | str | None = None,
    ) -> HeadHunter:
        """A search whose pipeline and objective only the workers of `backend` hold."""
        hunter = cls.__new__(cls)
        _check_prompts(prompts)
        hunter._start(backend, prompts, folder, config, candidates)
        return hunter

    def _start(
        self,
        backend: Backend,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig,
        candidates: HeadSet | str | None,
    ) -> None:
        self.backend, self.config, self.folder = backend, config, Path(folder)
        self.pairs: list[Pair] = [(prompt, seed) for seed in config.seeds for prompt in prompts]
        self.candidates = _candidates(backend.head_counts, candidates)
        if config.rounds * config.per_round > len(self.candidates):
            raise InputError(
                f"rounds, per_round: expected at most {len(self.candidates)} heads in all, the number of "
                f"candidates, got {config.rounds} x {config.per_round}"
            )
        # All that scores depend on; the rest of the settings each trial has itself, so that they may vary.
        self.header = {**backend.identity, "batch": config.batch}
        self.provenance = self._provenance(prompts)
        self.log = TrialLog(self.folder / "trials.jsonl", self.header)
        check_folder(self.folder, self.provenance)
        self._drawn: set[Trial] = set()

    def run(self) -> Result:
        """Search until the end, with a progress bar. Interrupted, call it again."""
        rounds: list[Round] = []
        chosen: tuple[HeadId, ...] = ()
        self._drawn.clear()
        search = self._fast_round if self.config.method == "fast" else self._round
        with tqdm(total=self._pictures(), unit="picture", desc="hunting") as bar:
            for _ in range(self.config.rounds):
                rounds.append(search(chosen, bar))
                chosen += rounds[-1].chosen
            unguided = self._score([None], self.pairs, bar)[0]
        return Result(tuple(rounds), unguided, len(self._drawn), self.provenance)

    def write(self, result: Result) -> list[Path]:
        """Write everything that shows a result into the folder of the search; see `report.write_result`."""
        return write_result(self.folder, result, self.pairs, self.curve(result), self.sheet(result))

    def cost(self) -> ScreenCost | None:
        """What the gradient screen of a round takes; None for an exhaustive search, which has none."""
        if self.config.method != "fast":
            return None
        return self.backend.cost(self.pairs[0][0], len(self.pairs), self.config.micro_batch)

    def curve(self, result: Result) -> list[list[float]]:
        """Scores of the first 0, 1, 2 ... chosen heads, a number for each pair."""
        return self.scores([_set_of(result.chosen[:n]) for n in range(len(result.chosen) + 1)])

    def scores(
        self, sets: Sequence[HeadSet | None], *, scale: float | None = None, softness: float | None = None
    ) -> list[list[float]]:
        """Scores of head sets, a number for each pair, from the log or from pictures that are drawn now.

        Args:
            sets: None stands for no guidance.
            scale, softness: of the pictures. Default: those of the search.
        """
        strength = Strength(
            self.config.scale if scale is None else scale,
            self.config.softness if softness is None else softness,
        )
        with tqdm(total=len(sets) * len(self.pairs), unit="picture", desc="scoring", leave=False) as bar:
            return self._score(sets, self.pairs, bar, strength)

    def sheet(self, result: Result, rows: int = 5) -> Image.Image:
        """Pictures without heads and after each round (columns) of the first pairs (rows)."""
        after = itertools.accumulate((found.chosen for found in result.rounds), initial=())
        pairs = self.pairs[:rows]
        cells = [self.draw(_set_of(heads), pairs) for heads in after]
        footer = f"scale {self.config.scale:g}, softness {self.config.softness:g}"
        return result_sheet(result, pairs, cells, footer)

    def draw(
        self, heads: HeadSet | None, pairs: Sequence[Pair], strength: Strength | None = None
    ) -> list[Image.Image]:
        """Pictures of (prompt, seed) pairs with a head set; the strength is that of the search by default."""
        batches = batches_of([self._trial(heads, *pair, strength) for pair in pairs], self.config.batch)
        found = dict(self.backend.paint(batches))
        return pictures(torch.cat([found[batch] for batch in batches]))

    # --- rounds ---

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
        path = self.folder / f"screen-{len(chosen) // self.config.per_round + 1}.json"
        trials = [self._trial(_set_of(chosen), *pair) for pair in self.pairs]
        self._drawn.update(trials)
        asked = {"header": self.header, "scale": self.config.scale, "of": [asdict(trial) for trial in trials]}
        every = every_head(*self.backend.head_counts)
        if (stored := read_slopes(path, asked, every)) is not None:
            bar.update(len(trials) if chosen else 0)
            return stored
        slopes = self._screened(trials, chosen, bar)
        write_slopes(path, asked, slopes)
        return slopes

    def _screened(self, trials: Sequence[Trial], chosen: tuple[HeadId, ...], bar: Any) -> dict[HeadId, float]:
        """The mean of slopes over all pictures, added up in one order whoever was first."""
        config, found = self.config, dict[TrialBatch, dict[HeadId, float]]()
        screening = Screening(config.scale, dict.fromkeys(chosen, config.softness), config.micro_batch)
        batches = batches_of(trials, config.batch)
        for batch, (scores, slopes) in self.backend.screen(batches, screening):
            self.log.add(batch, scores)
            found[batch] = slopes
            bar.update(len(batch) if chosen else 0)  # those without heads count when `run` reads their scores
        every = found[batches[0]]
        return {h: sum(found[b][h] * len(b) for b in batches) / len(trials) for h in every}

    def _left(self, chosen: tuple[HeadId, ...]) -> list[HeadId]:
        return [head for head in self.candidates if head not in chosen]

    # --- pictures ---

    def _score(
        self,
        sets: Sequence[HeadSet | None],
        pairs: Sequence[Pair],
        bar: Any,
        strength: Strength | None = None,
    ) -> list[list[float]]:
        trials = [[self._trial(heads, *pair, strength) for pair in pairs] for heads in sets]
        flat = list(itertools.chain.from_iterable(trials))
        self._drawn.update(flat)
        found = evaluate(flat, self.log, self.backend.score, size=self.config.batch, done=bar.update)
        return [[found[trial] for trial in of_set] for of_set in trials]

    def _trial(
        self, heads: HeadSet | None, prompt: str, seed: int, strength: Strength | None = None
    ) -> Trial:
        if heads is None:
            return Trial("", prompt, seed, self.config.steps, 0.0, 0.0)
        scale, softness = strength or (self.config.scale, self.config.softness)
        return Trial(str(heads), prompt, seed, self.config.steps, scale, softness)

    def _pictures(self) -> int:
        """The number of pictures that the search takes."""
        left = [len(self.candidates) - r * self.config.per_round for r in range(self.config.rounds)]
        if self.config.method == "exhaustive":
            return len(self.pairs) * (1 + sum(left))
        return len(self.pairs) * len(left) + sum(cost(self._rungs(n)) for n in left)

    def _provenance(self, prompts: Sequence[str]) -> dict[str, Any]:
        versions = {"dit_heads": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        return {
            **self.header,
            **asdict(self.config),
            "prompts": list(prompts),
            "candidates": str(HeadSet(self.candidates)),
            "versions": versions,
        }


def _check_prompts(prompts: Sequence[str]) -> None:
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise InputError(f"prompts: expected at least one, and none empty, got {list(prompts)}")


def _set_of(heads: Sequence[HeadId]) -> HeadSet | None:
    return HeadSet(heads) if heads else None


def _ranked(scores: Mapping[HeadId, Sequence[float]]) -> list[HeadId]:
    """Best mean first."""
    return sorted(scores, key=lambda head: (-fmean(scores[head]), head))


def _candidates(counts: HeadCounts, heads: HeadSet | str | None) -> tuple[HeadId, ...]:
    if heads is None:
        return every_head(*counts)
    return (HeadSet.parse(heads) if isinstance(heads, str) else heads).resolve(*counts)
