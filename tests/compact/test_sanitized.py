"""The kernel under AddressSanitizer and UndefinedBehaviorSanitizer, on buffers of the exact size."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import nucleate.compact.native as native


@pytest.mark.slow
def test_no_access_outside_the_buffers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    here, sources, program = Path(__file__).parent, Path(native.__file__).parent, tmp_path / "sanitized"
    flags = [
        "-O1",
        "-g",
        "-pthread",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-DWORTH_WAKING=0",
        f"-I{sources}",
    ]
    built = subprocess.run(
        [compiler, *flags, str(here / "sanitized.c"), "-o", str(program), "-lm"], capture_output=True, text=True
    )
    if built.returncode and "asan" in built.stderr:
        pytest.skip("no AddressSanitizer here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baseline: 0 failed" in done.stdout
