"""The wheels that `make wheels` fetches. DSMEMVP_PARTS names their folder, which then must have them all, as in CI."""

import os
from pathlib import Path

import pytest


def wheel(name: str) -> Path:
    """Skips the test that asks, if no folder is named."""
    folder = os.environ.get("DSMEMVP_PARTS", "")
    if not folder:
        pytest.skip("`make wheels`, then DSMEMVP_PARTS=$PWD/data/parts/wheels make test")
    path = Path(folder) / f"{name}-py3-none-any.whl"
    assert path.is_file(), f"{path} is missing: `make wheels`"
    return path
