"""The notebooks run, and what is stored with them is what they show."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its outputs
MACHINE = re.compile(
    r"/home/|/root/|/Users/|/tmp/|/work/|/var/|/opt/|/usr/|site-packages|\b[A-Z]:\\"
)

_spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
assert _spec is not None and _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def shown(output: Any) -> tuple[str, ...]:
    """The kind of an output: its type, and the formats that it has."""
    return output.output_type, output.get("name", ""), *sorted(output.get("data", {}))


def test_they_are_there() -> None:
    wanted = ["from_float_to_four_bits", "inside_a_mixture_of_experts", "quickstart"]
    assert [path.stem for path in NOTEBOOKS] == wanted


@by_name
def test_it_runs_and_shows_what_is_stored(path: Path, tmp_path: Path, smollm2_path: Path) -> None:
    """Numbers may differ by machine; nothing is written beside the notebook, nor to stderr (the model is there)."""
    before = sorted(FOLDER.glob("[!_]*"))
    done = run.execute(path, tmp_path)
    stored = nbformat.read(path, as_version=4)
    for cell, kept in zip(done.cells, stored.cells, strict=True):
        if cell.cell_type == "code":
            assert list(map(shown, cell.outputs)) == list(map(shown, kept.outputs)), cell.source
            assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.source
    assert sorted(FOLDER.glob("[!_]*")) == before and list(tmp_path.iterdir()) == []


@by_name
def test_what_is_stored_is_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "stored after a run of the whole notebook"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and not run.is_bar(output)
            data = {k: v for k, v in output.get("data", {}).items() if k != run.PICTURE}
            text = output.get("text", "") + json.dumps(data)
            assert not MACHINE.search(text) and "Traceback" not in text, text


@by_name
def test_pictures_are_stored(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum(run.PICTURE in output.get("data", {}) for output in outputs) >= 5


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "stream", "name": "stderr", "text": "out.gguf: 100%|####| 5/5"},
        {"output_type": "display_data", "metadata": {}, "data": {run.WIDGET: {}, "text/plain": ""}},
    ],
)
def test_bars_are_not_stored(output: dict[str, Any]) -> None:
    kept = {"output_type": "stream", "name": "stdout", "text": "100%| sure"}
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.from_dict(o) for o in (output, kept)]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"authors": ["me"]})
    assert run.clean(notebook).cells[0].outputs == [kept]
    assert "authors" not in notebook.metadata
