import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import dit_heads

ROOT = Path(__file__).parent.parent
PARTS = {
    "dit_heads": "dit_heads",
    "pipelines": "dit_heads.pipelines",
    "loras": "dit_heads.loras",
    "demo": "dit_heads.demo",
}
# Each package may import those in its own row and in the rows that it names; single modules likewise.
BELOW = {
    "_lazy": [],
    "errors": [],
    "compat": [],
    "settings": ["errors"],
    "io": ["errors", "compat"],
    "heads": ["_lazy", "io", "settings"],
    "families": ["io", "heads"],
    "guidance": ["families"],
    "objectives": ["io"],
    "hunt": ["guidance", "objectives", "settings"],
    "training": ["families", "io", "settings"],
    "tasks": ["guidance", "training"],
    "fusion": ["training", "tasks"],
    "embedded": ["guidance", "objectives", "hunt", "fusion"],
    "models": ["embedded"],
    "loras": ["models"],
    "pipelines": ["loras"],
    "cli": ["pipelines"],
    "demo": ["cli"],
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, by the name it is imported under."""
    for folder, name in PARTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([name, *inside]).removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    """The names a file imports, those inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def room(name: str) -> str:
    """The package, or the module of its own, that a name inside dit_heads belongs to."""
    if within(name, "dit_heads.cli.demo"):  # the command that starts the demo stands above it
        return "demo"
    return name.split(".")[1] if name.count(".") else ""


def below(package: str) -> set[str]:
    """All that a package may import."""
    return {package, *(lower for nearest in BELOW[package] for lower in below(nearest))}


def backward(name: str, imported: str) -> bool:
    """Whether this import is an arrow that points back."""
    target = room(imported)
    if not within(imported, "dit_heads") or target not in BELOW:
        return False
    return bool(room(name)) and target not in below(room(name))


def test_imports_run_one_way():
    arrows = [
        f"{name} -> {target}"
        for name, path in modules()
        for target in imports(path)
        if backward(name, target)
    ]
    assert arrows == []


@pytest.mark.parametrize(
    ("name", "imported", "back"),
    [
        ("dit_heads.heads.names", "dit_heads.families.sd3", True),
        ("dit_heads.guidance.branch", "dit_heads.heads.HeadSet", False),
        ("dit_heads.guidance.guidance", "dit_heads.pipelines.guided", True),
        ("dit_heads.training.loop", "dit_heads.loras.sets.dataset", True),
        ("dit_heads.loras.train", "dit_heads.training.loop.fit", False),
        ("dit_heads.embedded.train", "dit_heads.cli.main", True),
    ],
)
def test_an_arrow_that_points_back_is_seen(name, imported, back):
    assert backward(name, imported) is back


def test_every_package_has_its_place():
    rooms = {room(name) for name, _ in modules()} - {""}
    assert rooms <= set(BELOW)


def test_every_export_is_there_and_no_other():
    exports = {"HeadGuidance", "HeadHunter", "HeadId", "HeadSet", "__version__", "load_embedded"}
    assert set(dit_heads.__all__) == exports
    assert exports <= set(dir(dit_heads))
    assert all(getattr(dit_heads, name) is not None for name in exports)
    with pytest.raises(AttributeError, match="'Nothing'"):
        dit_heads.Nothing  # noqa: B018


@pytest.mark.parametrize(
    "line", ["import dit_heads", "from dit_heads import HeadSet", "import dit_heads.cli"]
)
def test_nothing_heavy_is_imported_before_it_is_used(line):
    script = f"import sys; {line}; print(*({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == ""


SETTINGS = """
def settings():
    kernels = ("flash", "math", "mem_efficient")
    allowed = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in kernels]
    return [*allowed, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]
"""


def test_no_module_changes_the_settings_of_torch_or_brings_a_checker_of_shapes_when_it_is_imported():
    names = [name for name, path in modules() if path.name != "__main__.py"]
    script = f"import importlib, sys, diffusers, torch, transformers{SETTINGS}before = settings()\n"
    script += f"for name in {names}: importlib.import_module(name)\n"
    script += "print(before == settings(), 'beartype' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "True False"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names in a wheel built from a copy: setuptools would reuse what lies in build/."""
    work = tmp_path_factory.mktemp("wheel")
    for name in (*PARTS, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / name)
    script = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", script, str(work)]
    built = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True).stdout.split()[-1]
    with zipfile.ZipFile(work / built) as archive:
        return archive.namelist()


def test_a_wheel_holds_one_top_level_name(wheel):
    assert {name.split("/")[0] for name in wheel if ".dist-info" not in name} == {"dit_heads"}


def test_a_wheel_holds_every_module(wheel):
    missing = [
        name
        for name, _ in modules()
        if f"{name.replace('.', '/')}.py" not in wheel
        and f"{name.replace('.', '/')}/__init__.py" not in wheel
    ]
    assert missing == []


def test_a_wheel_holds_the_data(wheel):
    assert "dit_heads/py.typed" in wheel
    folder = "dit_heads/heads/presets"
    presets = {f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.json")}
    weights = ROOT / "dit_heads/embedded/weights"
    files = {str(path.relative_to(ROOT)) for path in weights.rglob("*") if path.is_file()}
    assert presets and files
    assert presets | files <= set(wheel)


def test_the_oldest_diffusers_that_is_tested_is_the_floor_of_setup_cfg():
    requirements = (ROOT / "setup.cfg").read_text().split()
    tested = (ROOT / "tests/oldest.txt").read_text()
    floor = next(r for r in requirements if r.startswith("diffusers>=")).removeprefix("diffusers>=")
    assert f"diffusers=={floor}.0\n" in tested
