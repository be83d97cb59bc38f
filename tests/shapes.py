"""Shape annotations are executed: while tests run, modules of the package are compiled with a check around
every function and dataclass that has a jaxtyping annotation. All other annotations are left to the type
checker."""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

HOOKED: list[str] = []  # the names of functions that are checked, in the order in which they were defined
_SHAPE = re.compile(r"\b(?:BFloat|Float|Int|UInt|Bool|Shaped|Num|Real)\d*\[")
_beartype: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is expected
_DECORATOR = "__check_shapes__"
_on = True


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """The package as its users have it, for tests of the checks that it makes itself."""
    global _on
    _on = False
    try:
        yield
    finally:
        _on = True


def checked(defined: Any) -> Any:
    """A function, or a dataclass, that raises jaxtyping's TypeCheckError for a tensor whose shape is not the
    annotated one. Other functions and classes are returned as they are."""
    if isinstance(defined, type):
        if is_dataclass(defined):
            defined.__init__ = checked(defined.__init__)
        return defined
    shapes = {name: hint for name, hint in defined.__annotations__.items() if _SHAPE.search(str(hint))}
    return _with_checks(defined, shapes) if shapes else defined


def _with_checks(function: Any, shapes: dict[str, Any]) -> Callable[..., Any]:
    import torch

    made_of = (function.__code__, function.__globals__, function.__name__)
    annotated: Any = FunctionType(*made_of, function.__defaults__, function.__closure__)
    annotated.__kwdefaults__, annotated.__module__ = function.__kwdefaults__, function.__module__
    annotated.__qualname__, annotated.__annotations__ = function.__qualname__, shapes
    hooked = jaxtyped(annotated, typechecker=_beartype)
    HOOKED.append(f"{function.__module__}.{function.__qualname__}")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = hooked if _on and not torch.compiler.is_compiling() else function
        return run(*args, **kwargs)

    return call


class _Decorate(ast.NodeTransformer):
    """Functions are decorated innermost, before `@contextmanager` or `@property`; classes outermost."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if not any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.decorator_list.append(self._decorator(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        if node.decorator_list:
            node.decorator_list.insert(0, self._decorator(node))
        return node

    def _decorator(self, node: ast.AST) -> ast.expr:
        return ast.copy_location(ast.Name(_DECORATOR, ast.Load()), node)


def _may_have_shapes(source: bytes) -> bool:
    """Aliases of shapes can be imported, but what has them handles tensors."""
    return b"jaxtyping" in source or b"Tensor" in source


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        """The compiled module, never from nor into the cache of bytecode that other runs share."""
        source = self.get_data(self.path)
        if not _may_have_shapes(source):
            return super().get_code(fullname)
        return self.source_to_code(source, self.path)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        if not _may_have_shapes(data):
            return super().source_to_code(data, path, _optimize=_optimize)
        decorated = _Decorate().visit(ast.parse(data))
        return compile(decorated, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _DECORATOR, checked)
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds what the other finders find, for modules of one package, and gives it a loader that decorates."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != self.package:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes_in(package: str) -> None:
    """Check the modules of a package that are imported from now on."""
    imported = [name for name in sys.modules if name.split(".")[0] == package]
    assert not imported, f"expected to come before the first import of {package}, got {imported}"
    sys.meta_path.insert(0, _Finder(package))
