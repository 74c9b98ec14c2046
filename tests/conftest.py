"""Fixtures for all tests."""

from pathlib import Path

import pytest

# Before any test module imports it.
pytest.register_assert_rewrite("engine_contract")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; only the tests that ask for it are skipped without."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path
