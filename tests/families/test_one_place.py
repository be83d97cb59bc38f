"""Nothing outside of `families` (and of the embedded models, which are of two families) knows a family."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dit_heads.families import FAMILIES

ROOT = Path(__file__).parents[2]
NAMES = {family.name for family in FAMILIES.values()}
CLASSES = ("Flux", "StableDiffusion3", "SD3")  # what the names of their classes begin with
ARGUMENTS = {name for family in FAMILIES.values() for name in family.arguments.block}


def elsewhere() -> list[Path]:
    """Modules that are to ask a family, not to know one."""
    found = [
        path for part in ("dit_heads", "loras", "pipelines", "demo") for path in (ROOT / part).rglob("*.py")
    ]
    own = (ROOT / "dit_heads/families", ROOT / "dit_heads/embedded")
    return sorted(path for path in found if not any(path.is_relative_to(folder) for folder in own))


def known(source: str) -> list[str]:
    """Where a module knows a family."""
    tree = ast.parse(source)
    return [*compared(tree), *classes(tree), *arguments(tree)]


def compared(tree: ast.AST) -> Iterator[str]:
    """A family's name, or a part of a class's, in a comparison or as a key."""
    for node in ast.walk(tree):
        keys: list[Any] = []
        if isinstance(node, ast.Compare | ast.MatchValue):
            keys = list(ast.walk(node))
        elif isinstance(node, ast.Dict):
            keys = node.keys
        for text in (key.value for key in keys if isinstance(key, ast.Constant)):
            if isinstance(text, str) and (text in NAMES or text.startswith(CLASSES)):
                yield f"line {keys[0].lineno}: {text!r}"


def classes(tree: ast.AST) -> Iterator[str]:
    """A class of a family, other than as the base of a class."""
    bases = {id(base) for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for base in kind.bases}
    for node in ast.walk(tree):
        name = getattr(node, "id", "") or getattr(node, "attr", "")
        if name.startswith(CLASSES) and id(node) not in bases:
            yield f"line {node.lineno}: {name}"  # pyright: ignore[reportAttributeAccessIssue]


def arguments(tree: ast.AST) -> Iterator[str]:
    """The name of an argument of a family's blocks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in ARGUMENTS:
            yield f"line {node.lineno}: {node.value!r}"


@pytest.mark.parametrize("path", elsewhere(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_knows_a_family(path: Path):
    assert known(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "if layout.family.name == 'flux': pass",
        "match family:\n    case 'sd3': pass",
        "kind = 'flux' if 'Flux' in type(pipe).__name__ else 'sd3'",
        "isinstance(pipe, FluxPipeline)",
        "isinstance(pipe, (diffusers.StableDiffusion3Pipeline,))",
        "PIPELINES = (StableDiffusion3Pipeline, FluxPipeline)",
        "TOKENS = {'sd3': 256, 'flux': 512}",
        "batch = len(call['hidden_states'])",
    ],
)
def test_what_knows_a_family_is_seen(source: str):
    assert known(source)


@pytest.mark.parametrize(
    "source",
    [
        "class Mine(Mixin, FluxPipeline):\n    'A FluxPipeline.'",
        "family_of(transformer).conditional_rows(pipe, batch)",
        "EMBEDDED = {'embedded/flux': 'flux'}",
    ],
)
def test_what_asks_a_family_is_let_be(source: str):
    assert known(source) == []
