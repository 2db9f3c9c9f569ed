"""Gate and up of the experts in one stack: the same bits as from two, however the experts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import gguf as gguf_py
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, CPU_PORTABLE, METAL, REFERENCE, Backend
from fused_experts import fused
from msl import metal_on_cpu
from streamed_models import logits, read_some, reading

import mlx_ferrum
from mlx_ferrum import blocks, gguf, ops, sizes
from mlx_ferrum.backends.metal import experts, thresholds
from mlx_ferrum.convert import source
from mlx_ferrum.convert.command import main
from mlx_ferrum.nn import Experts
from mlx_ferrum.tensor import QTensor

ARCHITECTURES = ("qwen3moe", "mixtral", "qwen2moe", "qwen3next", "qwen35moe-predictor")
TYPES = ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "F16")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def pair(folder: Path, case: str = "qwen3moe", type: str = "Q4_K", seed: int = 1) -> list[Path]:
    """A random model with two stacks, and the same with one."""
    options = {**random_models.CASES[case], "types": (type,)}
    separate = random_models.write(folder / "separate.gguf", seed=seed, **options)
    return [separate, fused(separate, folder / "fused.gguf")]


def loaded(path: Path, **options: Any) -> Any:
    return mlx_ferrum.load(path, **options)[0]


def check(ours: Any, other: Any, seed: int) -> None:
    """Both give the same logits of a prompt and of single tokens after it."""
    ids = np.random.default_rng(seed).integers(0, other.args.vocab_size, 45)
    np.testing.assert_array_equal(logits(ours, ids, 4), logits(other, ids, 4))


@pytest.mark.parametrize("backend", [CPU, CPU_PORTABLE, REFERENCE], ids=str)
@pytest.mark.parametrize("type", TYPES)
def test_logits_are_those_of_two_stacks(backend: Backend, type: str, tmp_path: Path) -> None:
    separate, joined = pair(tmp_path, type=type)
    with backend.in_use():
        model = loaded(joined)
        assert model.body.layers[0].mlp.gate.name == "blk.0.ffn_gate_up_exps.weight"
        check(model, loaded(separate), 2)


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_all_architectures(cpu: Backend, case: str, tmp_path: Path) -> None:
    type = "Q4_K" if case != "qwen2moe" else "Q8_0"
    separate, joined = pair(tmp_path, case, type)
    check(loaded(joined), loaded(separate), 3)
    names = gguf_py.GGUFReader(joined).tensors
    both = [tensor for tensor in names if "ffn_gate_up_exps" in tensor.name]
    assert both and not any("ffn_gate_exps" in tensor.name for tensor in names)


def test_the_metal_text(tmp_path: Path) -> None:
    separate, joined = pair(tmp_path, type="Q8_0")
    ids = np.random.default_rng(4).integers(0, 300, 6)
    with METAL.in_use():
        found, wanted = (logits(loaded(path), ids, 1) for path in (joined, separate))
    np.testing.assert_array_equal(found, wanted)


def test_the_metal_kernels() -> None:
    """Matrices by vectors, and tiles, where nothing outside the arrays may be read; an id that is no expert is NaN."""
    rng, block = np.random.default_rng(7), blocks.Q8_0
    tokens, count, rows, k = 20, 5, 6, 64
    plain = rng.normal(size=(count * 2 * rows, k)).astype(np.float32)
    whole = QTensor(block, (count, 2 * rows, k), block.quantize(plain).reshape(-1))
    parts = [whole.part(0, rows), whole.part(rows, 2 * rows)]
    copies = [QTensor(block, p.shape, np.ascontiguousarray(p.data).reshape(-1)) for p in parts]
    x = mx.array(rng.normal(size=(tokens, k)).astype(np.float32))
    ids = mx.array(rng.integers(0, count, (tokens, 2)).astype(np.int32))
    ids[0, 1] = count
    weights, h = mx.ones((tokens, 2)), mx.array(rng.normal(size=(tokens, 2, k)).astype(np.float32))
    for few in (8, 0):  # pairs an expert
        table = mock.patch.object(thresholds.here, "pairs_an_expert", few)
        with metal_on_cpu(checked=True) as host, table:
            for ours, theirs in (
                [experts.gather_gate_up(x, gate, up, ids, "silu") for gate, up in (parts, copies)],
                [experts.gather_matmul(x, ws[1], ids) for ws in (parts, copies)],
                [experts.gather_down(h, ws[1], ids, weights) for ws in (parts, copies)],
            ):
                np.testing.assert_array_equal(np.array(ours), np.array(theirs))
                assert np.isnan(np.array(ours)).any() and np.isfinite(np.array(ours)).any()
        assert not host.findings


@pytest.mark.parametrize("each", [1, 2.5, 8])
def test_from_disk_in_one_read(cpu: Backend, each: float, tmp_path: Path) -> None:
    separate, joined = pair(tmp_path)
    mapped = loaded(separate)
    layers = [layer.mlp for layer in mapped.body.layers]
    one = sum(w.nbytes // mlp.count + 8192 for mlp in layers for w in (mlp.gate, mlp.up, mlp.down))
    model = loaded(joined, expert_memory=int(each * one))
    reads: list[tuple[int, int]] = []

    def noted(file: int, to: int, size: int, at: int) -> int:
        reads.append((at, size))
        return read_some(file, to, size, at)

    with reading(noted):
        check(model, mapped, 5)
    assert len(reads) == sum(
        count.read for layer in model.streams.layers for count in layer.counts()
    )


def test_sizes_are_those_of_two_stacks(cpu: Backend, tmp_path: Path) -> None:
    separate, joined = (sizes.of_file(gguf.read(path)) for path in pair(tmp_path))
    assert separate is not None and joined is not None
    assert joined.layers == separate.layers and joined.experts == separate.experts > 0
    assert joined.dense == separate.dense


def test_packed_files_are_the_same(tmp_path: Path) -> None:
    separate, joined = pair(tmp_path)
    run("pack", separate, tmp_path / "a.gguf")
    run("pack", joined, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    separate, joined = pair(tmp_path, type="F16")
    for path in (separate, joined):
        run("quantize", path, path.with_suffix(".q"), "--type", "q4_0")
    again = fused(tmp_path / "separate.q", tmp_path / "again.gguf")
    for name, info in gguf.read(again).tensors.items():
        other = gguf.read(tmp_path / "fused.q")
        assert other.tensors[name].type == info.type
        np.testing.assert_array_equal(other.data(name), gguf.read(again).data(name))
    run("split", joined, tmp_path / "part", "--max-tensors", 9)
    run("compare", joined, min(tmp_path.glob("part-*")))
    assert "all are equal" in capsys.readouterr().out


def test_importance_has_the_names_of_the_file(tmp_path: Path) -> None:
    separate, joined = pair(tmp_path)
    text = tmp_path / "text"
    text.write_text("The boat lay on the sand. " * 80)
    found = []
    for path in (separate, joined):
        out = tmp_path / f"{path.stem}.imatrix"
        run("imatrix", path, text, out, "--chunks", 1, "--chunk-size", 64)
        file = source.read(out)
        found.append({name: file.data(name) for name in file.tensors})
    for name, data in found[1].items():
        wanted = found[0][name.replace("ffn_gate_up_exps", "ffn_gate_exps")]
        np.testing.assert_array_equal(data, wanted)
    assert any("ffn_gate_up_exps" in name for name in found[1])


def test_parts_of_a_stack() -> None:
    """Rows of each matrix; the matrices of such parts; others that stand in for them."""
    rng = np.random.default_rng(6)
    whole = QTensor(blocks.Q8_0, (3, 8, 64), rng.integers(0, 99, 3 * 8 * 68 + 32, np.uint8), 32)
    other = QTensor(blocks.Q4_0, (3, 8, 64), rng.integers(0, 99, 3 * 8 * 36, np.uint8))
    for start, stop, every in ((0, 4, 2), (4, 8, 2), (2, 4, 4), (1, 4, 1), (0, 8, 1)):
        part = whole.part(start, stop)
        assert (part.layout.every, part.step) == (every, whole.step)
        np.testing.assert_array_equal(part.data, whole.data[:, start:stop])
        words = np.asarray(part.array).view(np.uint8)[::every]
        np.testing.assert_array_equal(words, part.data)
        again = part.substitute(other)
        np.testing.assert_array_equal(again.data, other.data[:, start:stop])
        assert again.layout.every == every
        np.testing.assert_array_equal(part.substitute(None).data, part.data)
        matrix = part.matrix(2)
        np.testing.assert_array_equal(matrix.data, whole.data[2, start:stop])
        np.testing.assert_array_equal(matrix.substitute(other).data, other.data[2, start:stop])
        for backend in (REFERENCE, CPU, METAL):
            with backend.in_use():
                found = np.asarray(ops.to_mlx(ops.dequantize(part)))
                whole_found = np.asarray(ops.to_mlx(ops.dequantize(whole)))
                np.testing.assert_array_equal(found, whole_found[:, start:stop])
    for start, stop in ((4, 9), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match=f"has no rows {start} to {stop}"):
            whole.part(start, stop)


def test_another_shape_is_refused(cpu: Backend, tmp_path: Path) -> None:
    separate, joined = pair(tmp_path)
    file = gguf.read(joined)
    key = "qwen3moe.expert_feed_forward_length"
    run("edit", joined, tmp_path / "other.gguf", "--set", f"{key}:u32=128", "--force")
    assert file.metadata[key] == 256
    message = (
        r"'blk.0.ffn_gate_up_exps.weight': expected shape \(8, 256, 256\), found \(8, 512, 256\)"
    )
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path / "other.gguf")
    assert all(isinstance(layer.mlp, Experts) for layer in loaded(separate).body.layers)
