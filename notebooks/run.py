"""Run the notebooks and keep what they show: python notebooks/run.py [NAME.ipynb ...]

Text and pictures are kept, so that they can be read where no kernel runs. Progress bars and times of execution are
not. Needs the extra `notebook`.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE = "image/png"
COLORS = 96
SECONDS = 120  # that a cell may take


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
    )
    done: nbformat.NotebookNode = client.execute()
    return clean(done)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out progress bars, and what differs between machines that show the same."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_bar(output)]
            for output in cell.outputs:
                if PICTURE in output.get("data", {}):
                    output.data[PICTURE] = smaller(output.data[PICTURE])
    return notebook


def smaller(picture: str) -> str:
    """A PNG in base64 with COLORS colors, which makes half of it."""
    made = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


def is_bar(output: Any) -> bool:
    """Whether an output is a progress bar: a widget, or the text of tqdm on stderr."""
    if output.output_type == "stream":
        return bool(output.name == "stderr" and re.search(r"\d+%\|", output.text))
    return WIDGET in output.get("data", {})


def main(names: list[str]) -> None:
    """Run the notebooks with these names, all of them if there are none."""
    for path in [HERE / Path(name).name for name in names] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        nbformat.write(execute(path, HERE), path)


if __name__ == "__main__":
    main(sys.argv[1:])
