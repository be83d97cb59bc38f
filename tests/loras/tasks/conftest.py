"""Sets, and the loss of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loras.tasks.losses import Fixture, make_sets
from tests.saved import PIPELINES


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"), 6)


@pytest.fixture
def base(sets: Path, tmp_path: Path) -> Fixture:
    return Fixture(tmp_path / "cache", sets)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny pipelines, by the name of their family."""
    root = tmp_path_factory.mktemp("models")
    for kind, make in PIPELINES.items():
        make().save_pretrained(root / kind)
    return {kind: root / kind for kind in PIPELINES}
