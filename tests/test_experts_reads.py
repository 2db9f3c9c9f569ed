"""`python -m mlx_ferrum.experts` where experts are read from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from backends import Backend

import mlx_ferrum
from mlx_ferrum.experts import main
from mlx_ferrum.experts.reads import Reads, as_text, bars
from mlx_ferrum.traffic import Traffic, traffic

TEXT = "In the beginning God created the heaven and the earth."
OPTIONS = ["tiny-moe", "--prompt", TEXT, "--backend", "cpu"]


def report(capsys: Any, *options: str) -> dict[str, Any]:
    assert main([*OPTIONS, *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("step", [1, 4])
def test_reads_are_those_of_the_model(cpu: Backend, capsys: Any, step: int) -> None:
    """One token a pass, unless --step says otherwise."""
    options = [] if step == 1 else ["--step", str(step)]
    found = report(capsys, "--expert-memory", "1MB", *options)
    model, tokenizer = mlx_ferrum.load("tiny-moe", expert_memory=10**6)
    ids, cache = tokenizer.encode(TEXT), model.make_cache()
    for start in range(0, len(ids), step):
        mx.eval(model(mx.array([ids[start : start + step]]), cache))
    assert found["tokens"] == found["reads"]["tokens"] == len(ids)
    wanted = traffic(model.streams)
    for layer, each in zip(found["reads"]["layers"], wanted, strict=True):
        assert [layer[name] for name in Traffic._fields[:5]] == list(each[:5])
    assert found["reads"]["nbytes"] == sum(each.nbytes for each in wanted)


def test_choices_are_those_of_the_mapped_model(cpu: Backend, capsys: Any) -> None:
    mapped = report(capsys, "--tokens", "5")
    streamed = report(capsys, "--tokens", "5", "--expert-memory", "1MB")
    assert "reads" not in mapped
    assert mapped["layers"] == streamed["layers"]


READS = Reads(
    [Traffic(1, 4, 100, 25, 8_000_000, 0.5), Traffic(3, 5, 60, 15, 2_000_000, 0.25, 40, 30)],
    count=8, tokens=10, seconds=0.5,
)  # fmt: skip


def test_the_table() -> None:
    head, first, second, _, summary = as_text(READS)
    assert first.split() == ["1", "4/8", "75.0%", "-", "0.80", "50.00"]
    assert second.split() == ["3", "5/8", "75.0%", "75.0%", "0.20", "25.00"]
    assert len(head) == len(first)
    assert summary == (
        "75.0% of the uses found their expert in memory; 1.0 MB a token were read, 20 MB/s; "
        "1.50 threads waited on average"
    )


def test_the_picture_shows_each_layer() -> None:
    figure: Any = bars(READS, "a $title")
    hits, read, waited = figure.axes
    for axes, wanted in ((hits, [75, 75]), (read, [0.8, 0.2]), (waited, [50, 25])):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(wanted)
    assert list(hits.lines[0].get_xdata()) == [50, 62.5]  # even use finds what is in memory
    assert [label.get_text() for label in hits.get_yticklabels()] == ["1", "3"]


def test_the_picture_is_written(cpu: Backend, capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "reads.png"
    assert main([*OPTIONS, "--expert-memory", "1MB", "--reads", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "threads waited on average" in capsys.readouterr().out
    assert main([*OPTIONS, "--reads", str(tmp_path / "none.png")]) == 1
    assert "--reads: nothing is read from disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out]
