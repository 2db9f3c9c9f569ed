"""What a user of the installed package relies on: names, scripts, light imports."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources

import pytest

import mlx_ferrum

SCRIPTS = ["ferrum-chat", "ferrum-doctor", "ferrum-generate", "ferrum-gguf"]


def test_type_hints_ship() -> None:
    assert (resources.files("mlx_ferrum") / "py.typed").is_file()


@pytest.mark.parametrize("name", SCRIPTS)
def test_console_script_can_be_loaded(name: str) -> None:
    (script,) = metadata.entry_points(group="console_scripts", name=name)
    assert callable(script.load())


@pytest.mark.parametrize("name", sorted(mlx_ferrum.__all__))
def test_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(mlx_ferrum, name).__doc__


def test_import_is_light() -> None:
    """Libraries that only some uses need are not imported by `import mlx_ferrum`."""
    code = "import sys, mlx_ferrum; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "prompt_toolkit", "torch"} & set(done.stdout.split())
