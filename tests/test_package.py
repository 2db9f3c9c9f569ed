"""What a user of the installed package relies on: names, scripts, light imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import mlx_ferrum

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
SCRIPTS = dict(re.findall(r'^ferrum-(\w+) = "(.+)"$', PYPROJECT.read_text(), re.MULTILINE))


def test_type_hints_ship() -> None:
    assert (resources.files("mlx_ferrum") / "py.typed").is_file()


def test_every_command_has_a_console_script() -> None:
    folders = (Path(folder) for folder in mlx_ferrum.__path__)
    commands = {path.parent.name for folder in folders for path in folder.glob("*/__main__.py")}
    assert sorted(SCRIPTS) == sorted(commands)


@pytest.mark.parametrize("name", SCRIPTS)
def test_console_script(name: str, tmp_path: Path) -> None:
    """It does what `python -m` does, and calls itself by its own name."""
    module, function = SCRIPTS[name].split(":")
    script = tmp_path / f"ferrum-{name}"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"usage: ferrum-{name} ")
    assert "python -m" not in done.stdout


@pytest.mark.parametrize("name", sorted(mlx_ferrum.__all__))
def test_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(mlx_ferrum, name).__doc__


def test_import_is_light() -> None:
    """Libraries that only some uses need are not imported by `import mlx_ferrum`, nor for a model."""
    assert not {"mlx.core", "numpy", "argparse"} & imported("import mlx_ferrum")
    needed = imported("import mlx_ferrum; mlx_ferrum.load('tiny-moe')")
    assert not {"huggingface_hub", "prompt_toolkit", "torch", "tqdm"} & needed


@pytest.mark.parametrize(
    "command", ["generate", "chat", "convert", "gguf", "experts", "catalog", "doctor"]
)
def test_help_is_light(command: str) -> None:
    code = f"from mlx_ferrum.{command}.__main__ import main; sys.argv[1:] = ['--help']; main()"
    heavy = {"mlx.core", "numpy", "jinja2", "prompt_toolkit", "tqdm", "filelock"}
    assert not heavy & imported(code)


def imported(code: str) -> set[str]:
    """The modules that a program imports."""
    report = "import atexit, sys; atexit.register(lambda: print(*sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", report + code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "before",
    [
        "import mlx_ferrum",
        "import mlx_ferrum.generate, mlx_ferrum.load",
        "import mlx_ferrum.generate.command, mlx_ferrum.load as module",
        "from mlx_ferrum.generate import stream_generate; import mlx_ferrum",
        "from mlx_ferrum import generate, load; import mlx_ferrum.generate.stream, mlx_ferrum.load",
        "import importlib, mlx_ferrum; importlib.import_module('mlx_ferrum.load')",
        "import mlx_ferrum; mlx_ferrum.load; import mlx_ferrum.load, mlx_ferrum.generate",
    ],
)
def test_functions_are_not_hidden_by_modules_of_the_same_name(before: str) -> None:
    after = "from types import FunctionType as F; f = mlx_ferrum.generate, mlx_ferrum.load"
    check = "assert all(type(x) is F for x in f), f; import mlx_ferrum.load; assert f[1] is mlx_ferrum.load"
    subprocess.run([sys.executable, "-c", f"{before}\n{after}\n{check}"], check=True)


def test_a_function_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(mlx_ferrum, "load", len)
        assert vars(mlx_ferrum)["load"] is len
    assert mlx_ferrum.load.__name__ == "load"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'mlx_ferrum' has no attribute 'lod'"):
        mlx_ferrum.lod  # type: ignore[attr-defined] # noqa: B018
