"""Nothing grows beyond what can be read in one sitting: limits on lines of modules, classes and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ("dit_heads", "loras", "pipelines", "demo", "benchmarks")
MODULE, CLASS, FUNCTION = 350, 150, 60
# File, or file and name -> why it is longer.
EXCEPTIONS: dict[str, str] = {}


def too_long(path: Path) -> Iterator[tuple[str, int]]:
    """What is beyond its limit in a file, with its number of lines."""
    name, text = str(path.relative_to(ROOT)), path.read_text("utf-8")
    lines = len(text.splitlines())
    if lines > MODULE:
        yield name, lines
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > (CLASS if isinstance(node, ast.ClassDef) else FUNCTION):
                yield f"{name}::{node.name}", lines


def files() -> list[Path]:
    return [path for folder in (*SOURCE, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_modules_classes_and_functions_keep_within_their_limits():
    found = {name: lines for path in files() for name, lines in too_long(path) if name not in EXCEPTIONS}
    assert not found, f"limits: {MODULE} lines a module, {CLASS} a class, {FUNCTION} a function; got {found}"


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_still_one(name):
    """Whoever splits a file takes it off the list."""
    path = ROOT / name.split("::")[0]
    assert path.exists() and name in dict(too_long(path)), f"{name} keeps within the limits: remove its entry"
