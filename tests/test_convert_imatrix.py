"""`imatrix`: sums of squared inputs, held to a pass that is written out with plain float32 products."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf as gguf_py
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, METAL, REFERENCE, Backend
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum import gguf, ops
from mlx_ferrum.convert import activations, chunks, importance
from mlx_ferrum.convert.command import main
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tensor import QTensor

TYPES = ("F16", "Q8_0")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama", "sizes": Sizes(layers=2)},
    "gemma3": {"arch": "gemma3", "tied": True, "sizes": Sizes(layers=2)},
    "qwen3": {"arch": "qwen3", "sizes": Sizes(layers=2, head_dim=32)},
    "qwen3moe": {
        "arch": "qwen3moe",
        "sizes": Sizes(layers=3, experts=16, used=3, dense_layers=(1,)),
    },
    "qwen2moe": {
        "arch": "qwen2moe",
        "biases": random_models.QKV_BIASES,
        "sizes": Sizes(layers=1, experts=5, used=2, shared_ffn=128),
    },
}
TOKENS = [[7, 201, 45, 45, 9, 130], [12, 250, 3, 77]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    for name, case in MODELS.items():
        random_models.write(folder / f"{name}.gguf", seed=5, types=TYPES, **case)
    text = " ".join(f"{n} seats on the train to Trieste," for n in range(40))
    (folder / "text.txt").write_text(text)
    return folder


def weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors, decoded by gguf-py."""
    reader = gguf_py.GGUFReader(path)
    return {
        t.name: gguf_py.dequantize(t.data, t.tensor_type).reshape([*map(int, t.shape[::-1])])
        for t in reader.tensors
    }


class ByHand:
    """The layers of qwen3 and qwen3moe over one chunk, in NumPy, with the input of each matrix."""

    def __init__(self, path: Path, model: LanguageModel) -> None:
        self.w, self.args = weights(path), model.args
        self.squares: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.args.norm_eps)
        return x / scale * self.w[f"{name}.weight"]

    def product(self, x: np.ndarray, name: str, expert: int | None = None) -> np.ndarray:
        """x: (n, k) -> (n, rows); x is counted."""
        w = self.w[f"{name}.weight"]
        matrices = 1 if expert is None else len(w)
        shape = (matrices, x.shape[-1])
        squares = self.squares.setdefault(f"{name}.weight", np.zeros(shape))
        counts = self.counts.setdefault(f"{name}.weight", np.zeros(matrices))
        squares[expert or 0] += (x.astype(np.float64) ** 2).sum(0)
        counts[expert or 0] += len(x)
        return x @ (w if expert is None else w[expert]).T

    def rotated(self, x: np.ndarray) -> np.ndarray:
        """x: (n, heads, d), pairs (i, i + d / 2)"""
        half = x.shape[-1] // 2
        turns = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half)
        cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        x, d, n = self.norm(x, f"{layer}.attn_norm"), self.args.head_dim, len(x)
        q, k, v = (self.product(x, f"{layer}.attn_{m}").reshape(n, -1, d) for m in "qkv")
        q = self.rotated(self.norm(q, f"{layer}.attn_q_norm"))
        k = self.rotated(self.norm(k, f"{layer}.attn_k_norm"))
        shared = q.shape[1] // k.shape[1]
        k, v = (np.repeat(m, shared, axis=1) for m in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        shares = softmax(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        heads = np.einsum("hqk,khd->qhd", shares, v).reshape(n, -1)
        return self.product(heads, f"{layer}.attn_output")

    def gated(self, x: np.ndarray, layer: str, end: str, expert: int | None) -> np.ndarray:
        gate = self.product(x, f"{layer}.ffn_gate{end}", expert)
        up = self.product(x, f"{layer}.ffn_up{end}", expert)
        return self.product(gate / (1 + np.exp(-gate)) * up, f"{layer}.ffn_down{end}", expert)

    def mlp(self, x: np.ndarray, layer: str) -> np.ndarray:
        x = self.norm(x, f"{layer}.ffn_norm")
        if f"{layer}.ffn_gate_inp.weight" not in self.w:
            return self.gated(x, layer, "", None)
        assert self.args.experts is not None
        shares = softmax(self.product(x, f"{layer}.ffn_gate_inp"))
        out = np.zeros_like(x)
        for token, share in enumerate(shares):
            chosen = np.argsort(-share)[: self.args.experts.routing.used]
            for e in chosen:
                said = self.gated(x[[token]], layer, "_exps", int(e))[0]
                out[token] += said * share[e] / share[chosen].sum()
        return out

    def read(self, tokens: Sequence[int]) -> None:
        x = self.w["token_embd.weight"][list(tokens)].astype(np.float64)
        for i in range(self.args.num_layers):
            x = x + self.attention(x, f"blk.{i}")
            x = x + self.mlp(x, f"blk.{i}")


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("qwen3", REFERENCE), ("qwen3moe", REFERENCE), ("qwen3moe", CPU), ("qwen3moe", METAL)],
    ids=str,
)
def test_sums_equal_a_pass_in_numpy(folder: Path, name: str, backend: Backend) -> None:
    path = folder / f"{name}.gguf"
    with backend.in_use():
        model = mlx_ferrum.load(path)[0]
        found = activations.collect(model, TOKENS)
        assert ops.backend_name() == backend.name
    hand = ByHand(path, model)
    for tokens in TOKENS:
        hand.read(tokens)
    # attention has 4 matrices, an MLP 3, a mixture 3 stacks and a router
    assert len(found) == (2 * 7 if name == "qwen3" else 2 * 8 + 7)
    assert set(found) == set(hand.squares)
    for tensor, sums in found.items():
        expected, is_stack = hand.squares[tensor], "_exps" in tensor
        np.testing.assert_array_equal(sums.counts, hand.counts[tensor], err_msg=tensor)
        assert sums.counts.sum() == sum(map(len, TOKENS)) * (3 if is_stack else 1), tensor
        assert ((sums.squares > 0).all(axis=1) == (sums.counts > 0)).all(), tensor
        # inputs differ by the rounding of the products that they come from; a row more or less differs by 10 %
        error = np.abs(sums.squares - expected).sum() / expected.sum()
        assert error < (1e-5 if backend is REFERENCE else 5e-3), (tensor, error)
    if name == "qwen3moe":
        assert found["blk.0.ffn_up_exps.weight"].unused  # 10 tokens do not choose all 16


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_the_layers(folder: Path, name: str, reference: object) -> None:
    path = folder / f"{name}.gguf"
    found = activations.collect(mlx_ferrum.load(path)[0], TOKENS, head=True)
    shapes = {n: w.shape for n, w in weights(path).items() if w.ndim > 1 or "inp_shexp" in n}
    tied = MODELS[name].get("tied", False)
    shapes.pop("output.weight" if tied else "token_embd.weight", None)
    assert set(found) == set(shapes)
    for tensor, sums in found.items():
        shape = shapes[tensor]
        assert sums.squares.shape == (shape[0] if len(shape) == 3 else 1, shape[-1])
        assert sums.squares.min() >= 0 and sums.squares.max() > 0


def test_parts_of_one_tensor_count_once(reference: object) -> None:
    rng = np.random.default_rng(0)
    raw = np.frombuffer(rng.normal(size=(6, 32)).astype(np.float32).tobytes(), np.uint8)
    whole = QTensor(mlx_ferrum.blocks.F32, (6, 32), raw, name="blk.0.attn_qkv.weight")
    x = rng.normal(size=(2, 5, 32)).astype(np.float32)
    weight = rng.uniform(0.5, 2, 32).astype(np.float32)
    collector = activations.Collector()
    with ops.observed(collector.see):
        parts = [whole.part(0, 4), whole.part(4, 6)]
        ops.matmuls(mx.array(x), parts, norm=(mx.array(weight), 1e-5))
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
    (sums,) = collector.tensors.values()
    assert sums.counts.tolist() == [10] and list(collector.tensors) == [whole.name]
    np.testing.assert_allclose(sums.squares[0], (normed**2).sum((0, 1)), rtol=1e-5)


def test_inputs_that_are_not_finite(reference: object) -> None:
    raw = np.zeros(2 * 32 * 4, np.uint8)
    w = QTensor(mlx_ferrum.blocks.F32, (2, 32), raw, name="blk.1.ffn_up.weight")
    for bad in (np.nan, np.inf, 1e30):
        x = mx.array(np.full((1, 32), bad, np.float32))
        with (
            ops.observed(activations.Collector().see),
            pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight'.*finite"),
        ):
            ops.matmul(x, w)


def test_only_products_inside_are_observed(folder: Path, reference: object) -> None:
    model = mlx_ferrum.load(folder / "llama.gguf")[0]
    seen: list[str] = []
    with pytest.raises(KeyError), ops.observed(lambda x, ws, ids: seen.extend(w.name for w in ws)):
        step, cache = ops.repeated(model.body), model.make_cache()
        for token in (3, 4, 5):
            step(cache.batch(np.array([[token]])))
        raise KeyError
    assert len(seen) == 3 * 2 * 7 and seen.count("blk.1.ffn_down.weight") == 3
    model(mx.array([[3, 4]]))
    assert len(seen) == 3 * 2 * 7


def run(*args: object) -> None:
    assert main(["imatrix", *map(str, args), "--backend", "reference"]) == 0


def test_file(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, text, out = folder / "qwen3moe.gguf", folder / "text.txt", tmp_path / "imatrix.gguf"
    run(path, text, out, "--chunks", 2, "--chunk-size", 8)
    model, tokenizer = mlx_ferrum.load(path)
    pieces = chunks.read(text, tokenizer, 8, 2)
    assert b"".join(tokenizer.decode([i]).encode() for p in pieces for i in p) in text.read_bytes()
    found = activations.collect(model, pieces)
    file, read = gguf.read(out), importance.read(out)
    assert file.metadata["general.type"] == "imatrix"
    assert file.metadata["imatrix.chunk_size"] == 8 and read.chunks == 2
    assert read.dataset == str(text) and set(read.columns) == set(found)
    assert len(file.tensors) == 2 * len(found) and "output.weight.counts" not in file.tensors
    for name, sums in found.items():
        assert file.tensors[f"{name}.in_sum2"].shape == sums.squares.shape
        assert file.tensors[f"{name}.counts"].shape == (len(sums.counts), 1)
        means = sums.squares / np.maximum(sums.counts, 1)[:, None]
        means[sums.counts == 0] = 1
        np.testing.assert_allclose(read.columns[name], means.reshape(-1), rtol=1e-6)
        assert read.unused.get(name, []) == sums.unused
    (line,) = [r.getMessage() for r in caplog.records if "blk.0:" in r.getMessage()]
    unused = found["blk.0.ffn_up_exps.weight"].unused
    assert unused and f"({', '.join(map(str, unused))})" in line
    assert (
        main(
            [
                "quantize",
                str(path),
                str(tmp_path / "q.gguf"),
                "--type",
                "q4_0",
                "--imatrix",
                str(out),
            ]
        )
        == 0
    )


def test_dry_run_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "imatrix.gguf"
    run(folder / "llama.gguf", folder / "text.txt", out, "--dry-run", "--process-output")
    said = capsys.readouterr().out
    assert "blk.1.ffn_down.weight.in_sum2" in said and "output.weight.counts" in said
    assert not list(tmp_path.iterdir())


def test_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, short, out = folder / "llama.gguf", tmp_path / "short.txt", tmp_path / "o.gguf"
    short.write_text("too short")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Tromsø".encode("latin-1"))
    for text, options, message in (
        (short, [], "expected at least one chunk of 128"),
        (folder / "text.txt", ["--chunk-size", "129"], "expected 4 to 128"),
        (tmp_path / "none.txt", [], "none.txt"),
        (latin, [], "latin.txt: is not UTF-8: invalid start byte at byte 5"),
    ):
        assert main(["imatrix", str(model), str(text), str(out), *options]) == 1
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latin.txt", "short.txt"]
    out.write_text("kept")
    assert main(["imatrix", str(model), str(folder / "text.txt"), str(out)]) == 1
    assert "--force" in capsys.readouterr().err and out.read_text() == "kept"
