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
# Each may import those before it, never those after it.
CORE = ["heads", "layouts", "perturb", "processors", "branch", "checks", "guidance"]
CORE += ["objectives", "trials", "screen", "hunter"]
OUTER = ("dit_heads.pipelines", "dit_heads.loras", "dit_heads.demo")


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


def backward(name: str, imported: str) -> bool:
    """Whether this import is an arrow that points back."""
    core = [f"dit_heads.{part}" for part in CORE]
    if name in core:
        later = core[core.index(name) + 1 :]
        return within(imported, *OUTER, *later, "dit_heads.cli", "dit_heads.embedded", "dit_heads.training")
    if name == "dit_heads.cli":
        return False  # the command is the one place that knows every part
    return not within(name, *OUTER) and within(imported, *OUTER, "dit_heads.cli")


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
        ("dit_heads.heads", "dit_heads.families.layouts.layout_of", True),
        ("dit_heads.guidance", "dit_heads.heads.HeadSet", False),
        ("dit_heads.guidance", "dit_heads.pipelines.guided", True),
        ("dit_heads.training", "dit_heads.loras.dataset", True),
        ("dit_heads.loras.train", "dit_heads.training.fit", False),
        ("dit_heads.embedded.train", "dit_heads.training.fit", False),
        ("dit_heads.embedded.train", "dit_heads.cli.main", True),
    ],
)
def test_an_arrow_that_points_back_is_seen(name, imported, back):
    assert backward(name, imported) is back


def test_the_core_that_exists_is_walked():
    names = {name for name, _ in modules()}
    assert {"dit_heads", "dit_heads.heads", "dit_heads.guidance", *OUTER} <= names


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
