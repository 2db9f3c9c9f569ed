"""bench/upcycle.py: mixtures of experts made of dense files compute what those do."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU
from divergence import kl, log_softmax
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum import blocks

sys.path.append(str(Path(__file__).parent.parent / "bench"))
upcycle = import_module("upcycle")

QUESTION = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n"
PARTS = ("gate", "up", "down")


@pytest.fixture(params=["llama", "qwen3"])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random dense file of mixed block types, its feed-forward networks 1,024 wide."""
    seed = int(np.random.default_rng().integers(1 << 30))
    sizes = Sizes(ffn=1024, layers=2)
    types = ("Q4_K", "Q6_K", "Q8_0", "Q4_1", "F16", "BF16", "F32", "Q5_K", "Q2_K")
    path = tmp_path / "dense.gguf"
    return random_models.write(path, request.param, seed, sizes=sizes, types=types)


def make(dense: Path, *flags: str) -> Path:
    """The file that the command line makes of `dense`."""
    path = dense.with_name("moe.gguf")
    sys.argv = ["upcycle.py", str(dense), str(path), *flags]
    assert upcycle.main() == 0
    return path


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def weights(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def log_probs(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities (length, vocab), by the reference backend."""
    model, _ = mlx_ferrum.load(path)
    return log_softmax(np.array(model(mx.array(tokens)[None])[0]))


def greedy(path: Path, prompt: str, count: int) -> list[int]:
    """The most likely tokens after `prompt`."""
    model, tokenizer = mlx_ferrum.load(path)
    found = mlx_ferrum.stream_generate(model, tokenizer, prompt, max_tokens=count)
    return [response.token for response in found]


@pytest.mark.parametrize(
    "flags",
    [
        ("--copy", "--experts", "5", "--used", "2"),
        ("--copy", "--experts", "3", "--used", "3", "--seed", "7"),
        ("--split", "--experts", "4"),
        ("--split", "--experts", "2", "--seed", "7"),
    ],
    ids=" ".join,
)
def test_the_output_is_the_dense_one(reference, dense: Path, flags: tuple[str, ...]) -> None:
    tokens = np.random.default_rng().integers(0, 300, 24)
    found, wanted = log_probs(make(dense, *flags), tokens), log_probs(dense, tokens)
    assert kl(wanted, found).max() < 1e-6  # sums in another order


@pytest.mark.parametrize("flags", [("--copy",), ("--split",)], ids=" ".join)
def test_smollm2_writes_the_same_text(smollm2_path: Path, tmp_path: Path, flags: Any) -> None:
    dense = tmp_path / "dense.gguf"
    dense.symlink_to(smollm2_path)
    with CPU.in_use():
        found, wanted = (greedy(path, QUESTION, 48) for path in (make(dense, *flags), dense))
    assert found == wanted and len(found) == 48


def test_copies_are_the_same_bytes(dense: Path) -> None:
    before, after = tensors(dense), tensors(make(dense, "--copy", "--experts", "3"))
    for part in PARTS:
        stack = after[f"blk.1.ffn_{part}_exps.weight"].data
        assert len(stack) == 3
        for expert in stack:
            assert np.array_equal(expert, before[f"blk.1.ffn_{part}.weight"].data)
    assert weights(after["blk.0.ffn_gate_inp.weight"]).std() > 0


def test_parts_are_all_columns_in_another_order(dense: Path) -> None:
    before, after = tensors(dense), tensors(make(dense, "--split", "--experts", "4"))
    gate, up, down = (weights(before[f"blk.1.ffn_{part}.weight"]) for part in PARTS)
    gates, ups, downs = (weights(after[f"blk.1.ffn_{part}_exps.weight"]) for part in PARTS)
    downs = np.concatenate(list(downs / 4), axis=1)
    place = {row.tobytes(): i for i, row in enumerate(gate)}
    order = [place[row.tobytes()] for row in gates.reshape(1024, -1)]
    assert sorted(order) == list(range(1024)) and order != sorted(order)
    assert np.array_equal(ups.reshape(1024, -1), up[order])
    assert np.array_equal(downs, down[:, order])
    assert not weights(after["blk.0.ffn_gate_inp.weight"]).any()


def test_all_else_stays(dense: Path) -> None:
    before, after = (gguf.GGUFReader(path) for path in (dense, make(dense, "--copy")))
    old, new = tensors(dense), tensors(dense.with_name("moe.gguf"))
    for name, tensor in old.items():
        if not upcycle.FFN.fullmatch(name):
            assert tensor.tensor_type == new[name].tensor_type
            assert np.array_equal(tensor.data, new[name].data)
    arch = before.fields["general.architecture"].contents()
    for name, field in before.fields.items():
        if name.startswith(("GGUF.", "general.architecture", f"{arch}.feed_forward_length")):
            continue
        copied = after.fields[name.replace(f"{arch}.", f"{upcycle.ARCHITECTURES[arch]}.")]
        assert (copied.contents(), copied.types) == (field.contents(), field.types)


@pytest.mark.parametrize(
    "name", [b.name for b in blocks.SUPPORTED if b.name not in ("MXFP4", "Q8_K")]
)
def test_weights_times_a_power_of_two_are_exact(name: str) -> None:
    block, kind = blocks.by_name(name), gguf.GGMLQuantizationType[name]
    raw = random_models.random_blocks.matrix(np.random.default_rng(), name, 3, 512).data
    found = gguf.quants.dequantize(upcycle.times(raw, block, 8), kind)
    assert np.array_equal(found, 8 * gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize(
    ("arch", "flags", "told"),
    [
        ("qwen2", ("--copy",), "expected a dense file of llama or qwen3, found qwen2"),
        ("llama", ("--copy", "--experts", "2", "--used", "3"), "--used: expected 1 to 2, found 3"),
        ("llama", ("--split", "--experts", "3"), "powers of two only, found 3"),
        (
            "llama",
            ("--split", "--experts", "4"),
            "512 columns in blocks of 256 cannot be dealt to 4",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, flags: tuple[str, ...], told: str
) -> None:
    dense = random_models.write(tmp_path / "dense.gguf", arch, 0, types=("Q4_K",))
    sys.argv = ["upcycle.py", str(dense), str(tmp_path / "moe.gguf"), *flags]
    assert mlx_ferrum.cli.guarded(upcycle.main) == 1
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [dense]


def test_experts_are_not_made_of_experts(tmp_path: Path) -> None:
    dense = random_models.write(tmp_path / "dense.gguf", "llama", 0, types=("Q8_0",))
    with pytest.raises(ValueError, match="found llama with experts"):
        upcycle.architecture(gguf.GGUFReader(make(dense, "--copy")))


def test_scales_that_are_too_large_are_refused() -> None:
    raw = blocks.Q8_0.quantize(np.full((1, 32), 60000 * 127, np.float32))
    with pytest.raises(ValueError, match="too large to be multiplied by 2"):
        upcycle.times(raw, blocks.Q8_0, 2)
    with pytest.raises(ValueError, match="MXFP4 has no scales"):
        upcycle.times(np.zeros((1, 17), np.uint8), blocks.MXFP4, 2)
