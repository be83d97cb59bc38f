"""Sets of images for In-Context LoRA: read from a folder, checked, sorted into buckets, dealt in batches, and
encoded once.

A data set is one of
- sets: a folder each (`set01/1.jpg`, `set01/2.jpg`, in the order of their numbers) with a `caption.txt`, or
  with a line such as `{"set": "set01", "caption": "..."}` in a `captions.jsonl` beside the folders;
- ready composites with captions: `name.jpg` and `name.txt` side by side, as the paper publishes them;
- a Hugging Face image folder: `metadata.jsonl` or `metadata.csv`, whose `file_name` is a ready composite, or
  (JSON lines only) whose `file_names` or, say, `images_file_names` lists the panels of a set; `text` or
  `caption` holds the caption. Parquet is not read.

Pictures (PNG, JPEG, WebP) are turned as their EXIF says and become RGB: transparent parts on white, grey
repeated.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dit_heads.loras.captions import markers_in
from dit_heads.loras.panels import Fit, Layout, check_grid, check_side, cut, join, to_rgb
from dit_heads.pictures import FORMATS, MAX_BYTES, MAX_PIXELS, atomic_file

Cell = tuple[int, int]  # height and width of a panel, in pixels
OnError = Literal["stop", "skip"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MIN_SIDE = 64
_PREPARATION = 1  # a part of every key: raise it when the same files would give other pixels


@dataclass(frozen=True)
class Sample:
    """One set, and how it becomes a composite; nothing is decoded before `composite` is called.

    `files` are the panels row by row, or, if `ready`, one picture of all of them. `source` says where the
    set came from, `digest` is the hash of the files' bytes."""

    files: tuple[Path, ...]
    caption: str
    source: str
    digest: str
    layout: Layout
    fit: Fit = "crop"
    ready: bool = False
    flip: bool = False

    @property
    def key(self) -> str:
        """Names the pixels of `composite` by content: the bytes of the files and all that is done to them."""
        how = [self.layout.heights, self.layout.widths, self.fit, self.ready, self.flip, _PREPARATION]
        return _hash(self.digest, json.dumps(how))

    def composite(self) -> Image.Image:
        """The panels in their cells, each mirrored if `flip`. Raises ValueError if a file has changed since
        it was read first."""
        contents = [path.read_bytes() for path in self.files]
        if _digest(contents) != self.digest:
            raise ValueError(f"data: '{self.source}' has changed since it was read first")
        pictures = [_decode(data) for data in contents]
        if self.ready:
            pictures = cut(pictures[0], len(self.layout.heights), len(self.layout.widths))
        if self.flip:
            pictures = [ImageOps.mirror(picture) for picture in pictures]
        return join(pictures, self.layout, fit=self.fit)


class SetDataset:
    """The sets under `root` as samples of `rows` x `columns` panels, in an order that names and numbers fix.

    `buckets` are the cell sizes (height, width) that a panel may get: a set goes to the one whose aspect
    ratio is nearest to the mean of its panels'; the attribute of that name says which samples went where, by
    number. `fit` as in `join`. With `flip`, half of the draws mirror each panel of their set, in its place. A
    set with a bad file, a panel side under `min_side` pixels, no caption or a wrong number of panels is an
    error that lists every problem (`on_error="stop"`), or left out with a warning that lists them ("skip").
    Raises ValueError also if nothing is left."""

    def __init__(
        self,
        root: str | Path,
        *,
        rows: int,
        columns: int,
        buckets: Sequence[Cell],
        fit: Fit = "crop",
        flip: bool = False,
        seed: int = 0,
        on_error: OnError = "stop",
        min_side: int = MIN_SIDE,
    ) -> None:
        check_grid(rows, columns)
        _check_options(buckets, fit, seed, on_error, min_side)
        self.flip, self.seed = flip, seed
        samples: list[Sample] = []
        problems: list[str] = []
        for found in read_sets(Path(root)):
            shapes, digest, wrong = _examine(found, rows, columns, min_side)
            if wrong:
                problems += [f"{found.source}: {problem}" for problem in wrong]
                continue
            height, width = nearest_bucket(shapes, buckets)
            layout = Layout.grid(rows, columns, height=height, width=width)
            caption = found.caption.strip()
            samples.append(Sample(found.files, caption, found.source, digest, layout, fit, found.ready))
        _report(Path(root), problems, len(samples), on_error)
        self.samples = tuple(samples)
        cells = [(sample.layout.heights[0], sample.layout.widths[0]) for sample in samples]
        self.buckets = {
            cell: tuple(i for i, c in enumerate(cells) if c == cell) for cell in sorted(set(cells))
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """A sample, not mirrored."""
        return self.samples[index]

    def views(self) -> Iterator[Sample]:
        """Every sample as it can be drawn: as it is, and mirrored if that may happen."""
        for sample in self.samples:
            yield sample
            if self.flip:
                yield replace(sample, flip=True)

    def batch_at(self, step: int, batch_size: int) -> list[Sample]:
        """The samples of batch `step`, all of one size: a function of the arguments and the seed alone.

        `batch_size` counts all processes; process r of w takes `[r::w]`. See `draws_at` for the order."""
        draws = draws_at(step, batch_size, tuple(self.buckets.values()), self.seed)
        return [self._drawn(index, epoch) for index, epoch in draws]

    def _drawn(self, index: int, epoch: int) -> Sample:
        flip = self.flip and bool(np.random.default_rng((3, self.seed, epoch, index)).integers(2))
        return replace(self.samples[index], flip=flip)


def _check_options(
    buckets: Sequence[Cell], fit: object, seed: object, on_error: object, min_side: object
) -> None:
    if not buckets:
        raise ValueError("buckets: expected at least one (height, width) of a panel, got none")
    for side in (side for cell in buckets for side in cell):
        check_side("buckets", side)
    for name, value, choices in (("fit", fit, get_args(Fit)), ("on_error", on_error, get_args(OnError))):
        if value not in choices:
            raise ValueError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
    _check_count("seed", seed, 0)
    _check_count("min_side", min_side, 1)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _report(root: Path, problems: Sequence[str], good: int, on_error: OnError) -> None:
    listed = "".join(f"\n  {problem}" for problem in problems)
    if problems and on_error == "stop":
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ValueError(f"data: {count} in '{root}':{listed}")
    if not good:
        raise ValueError(f"data: no set is left in '{root}'{':' + listed if listed else ''}")
    if problems:
        warnings.warn(f"data: sets left out of '{root}' for these problems:{listed}", stacklevel=3)


# --- what a folder holds ---


@dataclass(frozen=True)
class Found:
    """A set as a folder names it, not yet looked at. `problem` is what kept it from being read."""

    source: str
    files: tuple[Path, ...] = ()
    caption: str = ""
    ready: bool = False
    problem: str = ""


def read_sets(root: Path) -> list[Found]:
    """Every set under `root`, in one of the three forms above. Raises ValueError if it is no folder, holds
    nothing, or holds both sets and ready composites."""
    if not root.is_dir():
        raise ValueError(f"data: expected a folder, got '{root}'")
    for name in ("metadata.jsonl", "metadata.csv"):
        if (root / name).is_file():
            return list(_listed_sets(root, name))
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not _hidden(p)), key=_natural)
    pictures = _pictures(root)
    if bool(folders) == bool(pictures):
        what = "both" if folders else "neither"
        raise ValueError(
            f"data: expected folders with a set each, or pictures with captions, in '{root}', got {what}"
        )
    return list(_foldered_sets(root, folders)) if folders else [_ready(path) for path in pictures]


def _foldered_sets(root: Path, folders: Sequence[Path]) -> Iterator[Found]:
    captions: dict[str, str] = {}
    for source, row in _rows(root / "captions.jsonl") if (root / "captions.jsonl").is_file() else ():
        name = row.get("set")
        if not isinstance(name, str) or name in captions or name not in {f.name for f in folders}:
            yield Found(source, problem=f'expected {{"set": a folder, once, "caption": ...}}, got {row}')
        else:
            captions[name] = _caption(row)
    for folder in folders:
        caption = captions.get(folder.name) or _text(folder / "caption.txt")
        yield Found(folder.name, _pictures(folder), caption)


def _ready(path: Path) -> Found:
    return Found(path.name, (path,), _text(path.with_suffix(".txt")), ready=True)


def _listed_sets(root: Path, name: str) -> Iterator[Found]:
    for source, row in _rows(root / name):
        ready = "file_name" in row
        lists = [value for key, value in row.items() if f"_{key}".endswith("_file_names")]
        names = [row["file_name"]] if ready else next(iter(lists), None)
        if not isinstance(names, list) or not all(_inside(each) for each in names):
            yield Found(source, problem=f"expected file_name or file_names, inside the folder, got {row}")
        else:
            files = tuple(root / each for each in names)
            yield Found(source, files, _caption(row), ready)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL or CSV file, as dictionaries, with their places; {} for one that is none."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text), restkey=""))
        else:
            rows = [_json(line) for line in text.split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data: cannot read '{path}': {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path.name}, entry {number}", row if isinstance(row, dict) else {}


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _caption(row: Mapping[str, Any]) -> str:
    caption = row.get("text") or row.get("caption")
    return caption if isinstance(caption, str) else ""


def _text(path: Path) -> str:
    """The text of a file; "" if there is none, or none that is UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _pictures(folder: Path) -> tuple[Path, ...]:
    paths = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not _hidden(path))
    return tuple(sorted(paths, key=_natural))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _inside(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


# --- what is wrong with it ---


def _examine(found: Found, rows: int, columns: int, min_side: int) -> tuple[list[Cell], str, list[str]]:
    """Height and width of every panel, the digest of the files, and the problems, all of them."""
    problems = [found.problem] if found.problem else _wrong_caption(found, rows * columns)
    if not found.problem and not found.ready and len(found.files) != rows * columns:
        problems.append(f"expected {rows * columns} pictures ({rows} x {columns}), got {len(found.files)}")
    shapes: list[Cell] = []
    contents: list[bytes] = []
    for path in found.files:
        try:
            contents.append(_bounded(path))
            picture = _decode(contents[-1])
            parts = cut(picture, rows, columns) if found.ready else [picture]
            shapes += [(part.height, part.width) for part in parts]
            if min(shapes[-1]) < min_side:
                size = f"{shapes[-1][1]} x {shapes[-1][0]}"
                raise ValueError(f"a panel is {size} pixels, expected sides of at least {min_side}")
        except ValueError as error:
            problems.append(str(error) if found.source == path.name else f"{path.name}: {error}")
    return shapes, _digest(contents), problems


def _wrong_caption(found: Found, panels: int) -> list[str]:
    if not found.caption.strip():
        return ["no caption, or an empty one, or one that is not UTF-8"]
    marked = len(set(markers_in(found.caption)))
    if panels > 1 and marked not in (0, panels):
        return [f"the caption has markers of {marked} panels, expected {panels}"]
    return []


def _bounded(path: Path) -> bytes:
    """The bytes of a file, unless there are too many."""
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes, expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _decode(data: bytes) -> Image.Image:
    """A picture as RGB, the right way up; its size is known to be within the limits before it is decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what the pixel limit refuses a moment later.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise ValueError(f"is not a picture that can be read: {error}") from error
    raise ValueError(f"is {image.width} x {image.height}, expected at most {MAX_PIXELS} pixels")


# --- buckets ---


def aspect_buckets(area: int, *, step: int = 64, max_aspect: float = 2.0) -> tuple[Cell, ...]:
    """Cell sizes (height, width) of at most `area` pixels whose sides are multiples of `step`, itself a
    multiple of 16: for every width the largest height, as long as neither side is more than `max_aspect`
    times the other. Raises ValueError if there is none."""
    check_side("step", step)
    widths = range(step, area // step + 1, step)
    cells = ((area // width // step * step, width) for width in widths)
    found = tuple((h, w) for h, w in cells if h and max(h / w, w / h) <= max_aspect)
    if not found:
        raise ValueError(f"area: expected at least {step * step} pixels for steps of {step}, got {area}")
    return found


def nearest_bucket(shapes: Sequence[Cell], buckets: Sequence[Cell]) -> Cell:
    """The bucket whose aspect ratio is nearest to the (geometric) mean of some pictures' ratios; of two that
    are equally near the larger one, then the higher one."""
    mean = sum(math.log(height / width) for height, width in shapes) / len(shapes)

    def distance(cell: Cell) -> tuple[float, int, int]:
        height, width = cell
        return round(abs(math.log(height / width) - mean), 9), -height * width, -height

    return min(buckets, key=distance)


# --- order ---


def draws_at(
    step: int, batch_size: int, buckets: Sequence[Sequence[int]], seed: int
) -> list[tuple[int, int]]:
    """Batch `step`, counted from 0, as (sample, epoch of this draw).

    Each bucket deals its samples like a deck that is shuffled anew when it is used up: every sample comes
    once an epoch, and every batch is full, because what an epoch leaves over begins the next one's first
    batch. Each epoch the full batches of all buckets are shuffled among each other."""
    _check_count("step", step, 0)
    _check_count("batch_size", batch_size, 1)

    def batches_before(epoch: int) -> list[int]:
        return [epoch * len(bucket) // batch_size for bucket in buckets]

    epoch = step * batch_size // sum(map(len, buckets))  # left-over samples can only make it later
    while sum(batches_before(epoch + 1)) <= step:
        epoch += 1
    first, end = batches_before(epoch), batches_before(epoch + 1)
    batches = [(b, k) for b in range(len(buckets)) for k in range(first[b], end[b])]
    order = np.random.default_rng((1, seed, epoch)).permutation(len(batches))
    bucket, batch = batches[order[step - sum(first)]]
    return [_dealt(buckets[bucket], bucket, batch * batch_size + k, seed) for k in range(batch_size)]


def _dealt(samples: Sequence[int], bucket: int, place: int, seed: int) -> tuple[int, int]:
    epoch, k = divmod(place, len(samples))
    deck = np.random.default_rng((2, seed, epoch, bucket)).permutation(len(samples))
    return samples[deck[k]], epoch


# --- caches ---


class CachedEncoder:
    """`encode(item)` -> tensors by name, kept on disk under the content of the item and the settings.

    An item is a Sample or a caption. `settings` (anything that JSON can hold) must tell apart whatever
    changes the result: a fingerprint of the autoencoder, or of text encoders and tokenizers with the maximum
    length, and the precision. A file that is damaged is made again, with a warning. Tensors come back on the
    CPU, equal bit by bit whether they were stored before or not. Raises ValueError if a result is not finite.
    """

    def __init__(
        self,
        encode: Callable[[Any], Mapping[str, Tensor]],
        folder: str | Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.encode, self.folder = encode, Path(folder)
        self._settings = json.dumps(dict(settings), sort_keys=True, allow_nan=False)

    def __call__(self, item: Sample | str) -> dict[str, Tensor]:
        content = ["caption", item] if isinstance(item, str) else ["sample", item.key]
        key = _hash(self._settings, *content)
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            try:
                return _load(path, key)
            except (SafetensorError, OSError, ValueError) as error:
                warnings.warn(f"cache: '{path}' is damaged ({error}); it is made again", stacklevel=2)
        whole = torch.contiguous_format
        tensors = {n: t.detach().cpu().clone(memory_format=whole) for n, t in self.encode(item).items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                source = repr(item) if isinstance(item, str) else item.source
                raise ValueError(f"encode: expected finite numbers, got others in '{name}' of {source}")
        metadata = {"key": key, "checksum": _checksum(tensors)}
        with atomic_file(path) as file:
            file.write(safetensors.torch.save(tensors, metadata))
        return tensors


def _load(path: Path, key: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    if metadata.get("key") != key or metadata.get("checksum") != _checksum(tensors):
        raise ValueError("it holds something else")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    parts: list[str | bytes] = []
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}"]
        parts += [tensor.flatten().view(torch.uint8).numpy().tobytes()]
    return _hash(*parts)


def _digest(contents: Sequence[bytes]) -> str:
    return _hash(*contents)


def _hash(*parts: str | bytes) -> str:
    """SHA-256 of parts, which cannot run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return whole.hexdigest()
