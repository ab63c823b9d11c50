"""The same tests with the kernel and without it."""

from __future__ import annotations

import pytest

from nucleate.compact import native
from nucleate.machine.extension import DISABLE


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the kernel, and with plain torch in its place."""
    if request.param == "torch":
        monkeypatch.setenv(DISABLE, "1")
    elif not native.available():
        pytest.skip(native.status())
    return str(request.param)
