"""Mixtures of a folder that are larger than --model-memory: experts are read from disk, and count for what is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from servers import served_folder

from mlx_ferrum import catalog, gguf, sizes


def test_a_mixture_that_is_too_large_reads_its_experts_from_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = catalog.resolve("tiny-moe")
    shutil.copy(path, tmp_path / "moe.gguf")
    found = sizes.of_file(gguf.read(path))
    assert found is not None
    whole = path.stat().st_size + found.pool(512)
    texts = []
    for memory in (whole, whole - found.experts // 2):
        options = ("--model-memory", str(memory), "--pool", "512")
        with served_folder(tmp_path, *options) as server:
            asked = {"model": "moe", "prompt": "one", "max_tokens": 8, "temperature": 0}
            texts.append(server.http.post("/v1/completions", json=asked).json()["choices"])
            reads = "ferrum_expert_reads_total{" in server.http.get("/metrics").text
            assert reads == (memory < whole)
    assert texts[0] == texts[1]
    assert "of --model-memory, the others are read" in caplog.text
    least = whole - found.experts + found.a_token
    for memory, status in ((least, 200), (least - 1, 503)):
        options = ("--model-memory", str(memory), "--pool", "512")
        with served_folder(tmp_path, *options) as server:
            asked = {"model": "moe", "prompt": "x", "max_tokens": 2}
            assert server.http.post("/v1/completions", json=asked).status_code == status
