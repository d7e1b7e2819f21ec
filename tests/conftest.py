"""Fixtures that every test may use, and the settings that keep runs repeatable."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# One thread per session: the tests share small machines, and the order in which threads add up
# must not decide whether two bit-exact models compare equal.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

# Wall-clock deadlines would make a busy machine fail a correct program. In CI the examples are
# the same on every run; a failure found elsewhere is stored in .hypothesis and tried first.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Folder of the small trained reference models and their samples."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of larger models and data outside of the repository; skips where it is missing."""
    folder = Path(os.environ.get("GRAPHOPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the shared data; set GRAPHOPT_DATA to its folder")
    return folder
