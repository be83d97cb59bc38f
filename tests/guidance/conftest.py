"""Small SD3 pipelines."""

from typing import Any

import pytest

from tests import tiny
from tests.tiny import pipeline, sd3


@pytest.fixture
def pipe() -> Any:
    return pipeline(sd3())


@pytest.fixture(params=tiny.SD3)
def any_pipe(request: pytest.FixtureRequest) -> Any:
    """SD3, SD3.5-medium and SD3.5-large."""
    return pipeline(sd3(request.param))
