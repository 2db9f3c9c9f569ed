"""The native code under sanitizers: every function over odd shapes, called from two threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from backends import LEVELS

from mlx_ferrum.kernels.cpu import build

DRIVER = Path(__file__).parent / "cpu" / "driver.cpp"


@pytest.mark.parametrize(
    "sanitizers, level",
    [*(("address,undefined", level) for level in LEVELS), ("thread", "native")],
)
def test_sanitizers_are_content(sanitizers: str, level: str, tmp_path: Path) -> None:
    checks = ("-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    library = build.library(level, extra=checks)
    driver = tmp_path / "driver"
    command = [*build.find_compiler(), *build.flags(level), *checks]
    command += ["-I", str(build.HERE), str(DRIVER), str(library), "-o", str(driver)]
    subprocess.run(command, check=True)
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",  # the pool is never destroyed: see pool.cpp
        "DYLD_LIBRARY_PATH": str(library.parent),  # macOS: the library was renamed after linking
    }
    done = subprocess.run(
        [driver], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (done.stdout.strip() == "portable") >= (level == "portable")
