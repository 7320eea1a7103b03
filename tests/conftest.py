"""Fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("DSMEMVP_SHARED") or Path(__file__).parent.parent.parent / "shared")
    if not folder.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{folder} with the reference recording is not here")
    return folder
