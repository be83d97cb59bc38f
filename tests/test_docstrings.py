"""Docstrings of what is public: every parameter is documented, and so is an InputError that is raised.

Public are the names that packages export, and of a class its methods without an underscore, `__init__` and
`__call__`. The source is read and nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from docstring_parser import DocstringStyle, parse

from tests.test_package import PARTS, ROOT

PACKAGES = [
    "dit_heads",
    "dit_heads.embedded",
    "dit_heads.families",
    "dit_heads.guidance",
    "dit_heads.heads",
    "dit_heads.hunt",
    "dit_heads.loras",
    "dit_heads.objectives",
    "dit_heads.pipelines",
    "dit_heads.tasks.metrics",
    "dit_heads.training",
]
# Modules whose functions are public, though their package exports nothing.
MODULES = ["dit_heads.io.atomic", "dit_heads.io.fingerprints", "dit_heads.io.pictures", "dit_heads.io.sheets"]

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Export:
    """A public function or class."""

    name: str
    node: Definition


@cache
def module(name: str) -> ast.Module:
    folders = {dotted: folder for folder, dotted in PARTS.items()}
    top = max((each for each in folders if name == each or name.startswith(f"{each}.")), key=len)
    path = ROOT.joinpath(folders[top], *name.removeprefix(top).strip(".").split("."))
    file = path / "__init__.py" if path.is_dir() else Path(f"{path}.py")
    return ast.parse(file.read_text())


def definition(name: str, of: str) -> Definition | None:
    """Where a name of a module is defined, in that module or in the one that it imports it from."""
    tree = module(of)
    own = [
        each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == name
    ]
    if own:
        return own[-1]  # after its overloads
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = node.module or ""
        if source.startswith("dit_heads") and any(alias.name == name for alias in node.names):
            return definition(name, source)
    return None


def exported(package: str) -> list[str]:
    for node in module(package).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def exports() -> Iterator[Export]:
    for package in PACKAGES:
        for name in exported(package):
            if node := definition(name, package):
                yield Export(f"{package}.{name}", node)
    for name in MODULES:
        for node in module(name).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield Export(f"{name}.{node.name}", node)


def faults(node: Definition, of: str = "") -> Iterator[str]:
    """What a docstring, and those of a class's public methods, leave out."""
    if isinstance(node, ast.FunctionDef):
        yield from faults_of_function(node, f"{of}{node.name}", documented(node))
        return
    own = documented(node)
    if not ast.get_docstring(node):
        yield f"{node.name}: has no docstring"
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and is_public(part.name) and not overrides(part, node):
            known = own | documented(part) if part.name == "__init__" else documented(part)
            doc = node if part.name == "__init__" and not ast.get_docstring(part) else part
            yield from faults_of_function(part, f"{node.name}.{part.name}", known, doc)
    yield from (f"{node.name}: does not document {name}" for name in fields(node) if name not in own)


def faults_of_function(
    node: ast.FunctionDef, name: str, known: set[str], doc: Definition | None = None
) -> Iterator[str]:
    lacking = [each for each in parameters(node) if each not in known]
    if lacking:
        yield f"{name}: does not document {', '.join(lacking)}"
    if raises_input_error(node) and not has_raises(doc or node):
        yield f"{name}: raises InputError without `Raises:`"


def overrides(part: ast.FunctionDef, of: ast.ClassDef) -> bool:
    """Whether a method leaves its description to the class that it is inherited from."""
    inherits = any(ast.unparse(base) != "Protocol" for base in of.bases)
    return inherits and part.name != "__init__" and not ast.get_docstring(part)


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def parameters(node: ast.FunctionDef) -> list[str]:
    """Names of parameters, without the receiver."""
    receiver = ("self", "cls")
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    every += [each for each in (args.vararg, args.kwarg) if each]
    return [each.arg for each in every if each.arg not in receiver and not each.arg.startswith("_")]


def documented(node: Definition) -> set[str]:
    """Names under `Args:` and `Attributes:`; several may share a line."""
    found = parse(ast.get_docstring(node) or "", DocstringStyle.GOOGLE).params
    return {name.strip().lstrip("*") for each in found for name in each.arg_name.split(",")}


def has_raises(node: Definition) -> bool:
    return bool(parse(ast.get_docstring(node) or "", DocstringStyle.GOOGLE).raises)


def raises_input_error(node: ast.FunctionDef) -> bool:
    """Whether a function raises one itself, and not by a function inside of it."""
    inner = {
        id(each)
        for part in ast.walk(node)
        if part is not node and isinstance(part, ast.FunctionDef)
        for each in ast.walk(part)
    }
    return any(
        isinstance(each, ast.Raise) and each.exc is not None and "InputError" in ast.unparse(each.exc)
        for each in ast.walk(node)
        if id(each) not in inner
    )


def fields(node: ast.ClassDef) -> list[str]:
    """Fields of a dataclass that have no docstring of their own."""
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    if "dataclass" not in decorators and "settings" not in decorators:
        return []
    return [
        part.target.id
        for part, following in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and not part.target.id.startswith("_")
        and not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]


EXPORTS = {each.name: each.node for each in exports()}


def test_the_exports_are_found():
    assert len(EXPORTS) > 60
    assert {"dit_heads.HeadGuidance", "dit_heads.loras.join", "dit_heads.io.pictures.decode"} <= set(EXPORTS)


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_every_parameter_and_every_input_error_is_documented(name):
    assert list(faults(EXPORTS[name])) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(x): ...", "f: does not document x"),
        ("def f(x):\n  '''F.\n\n  Args:\n    x: a number.'''\n  raise InputError('x')", "without `Raises:`"),
        ("@dataclass\nclass C:\n  '''C.'''\n  x: int", "C: does not document x"),
        ("class C:\n  '''C.'''\n  def __call__(self, x): ...", "C.__call__: does not document x"),
    ],
)
def test_what_is_left_out_is_seen(source, fault):
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert any(fault in each for each in faults(node))
