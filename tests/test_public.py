"""The public names, frozen: one more or one fewer is a decision."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nucleate as nu


def test_the_public_names() -> None:
    assert nu.__all__ == [
        "Collapse",
        "Masks",
        "NeuralCollapse",
        "Pruner",
        "accelerate",
        "cka",
        "collapse",
        "coverage",
        "empirical_ntk",
        "intrinsic_dimension",
        "load_sparse",
        "neighbour_hit",
        "neighbours",
        "ntk",
        "open_run",
        "probe",
        "prune",
        "save_sparse",
        "scores",
        "select",
        "shrink",
        "simplex_etf",
        "tap",
    ]
    assert all(callable(getattr(nu, name)) for name in nu.__all__)
    assert set(nu.__all__) <= set(dir(nu))
    assert callable(nu.collapse), "importing a module of the same name must not hide the function"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colapse'"):
        _ = nu.colapse


def test_importing_nucleate_imports_no_torch() -> None:
    code = "import sys, nucleate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
