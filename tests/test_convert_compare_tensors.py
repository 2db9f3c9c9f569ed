"""The errors of tensors, held to gguf-py's decoding in float64, and the pictures of a comparison."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import random_blocks
import random_models
from gguf.quants import dequantize
from random_models import Sizes

from mlx_ferrum.convert import comparison_report, pictures, tensor_errors
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.comparing import compare, open_model
from mlx_ferrum.convert.comparison import (
    Comparison,
    Divergence,
    Model,
    Other,
    TensorError,
    TensorErrors,
    Text,
)

TYPES = (*random_blocks.SCALES, "F16", "F32")


def decoded(path: Path) -> dict[str, np.ndarray]:
    return {
        t.name: dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("chunk", [1 << 23, 700])
def test_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("mlx_ferrum.convert.quantizing.CHUNK", chunk)
    monkeypatch.setattr(tensor_errors, "PIECE", chunk // 3)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    sizes = Sizes(layers=3, experts=3, used=2)
    for seed, path in ((1, a), (2, b)):
        random_models.write(path, "qwen3moe", seed, sizes=sizes, types=TYPES)
    found = tensor_errors.measure(open_model(a), open_model(b))
    xs, ys = decoded(a), decoded(b)
    assert [e.name for e in found.errors] == list(xs)
    assert len({e.type for e in found.errors}) >= len(TYPES) - 2
    for e in found.errors:
        x, y = xs[e.name].reshape(-1), ys[e.name].reshape(-1)
        relative = math.sqrt(((y - x) ** 2).mean() / (x**2).mean())
        assert e.relative == pytest.approx(relative, rel=1e-9)
        assert e.largest == np.abs(y - x).max()
        cosine = (x @ y) / math.sqrt((x @ x) * (y @ y))
        assert e.cosine == pytest.approx(cosine, rel=1e-9, abs=1e-12)
        file = open_model(b)
        assert (e.shape, e.nbytes) == (file.tensors[e.name].shape, file.tensors[e.name].nbytes)
    worst = [e.relative for e in found.worst()]
    assert worst == sorted(worst, reverse=True)
    assert sum(map(found.share, found.errors)) == pytest.approx(1)
    first, second = found.worst()[:2]
    assert first.relative and second.relative
    ratio = (first.relative / second.relative) ** 2
    assert found.share(first) / found.share(second) == pytest.approx(ratio)


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """float32 tensors; of uint8, IQ2_XXS, which the package does not decode."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, data in tensors.items():
        kind = gguf.GGMLQuantizationType.IQ2_XXS if data.dtype == np.uint8 else None
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_without_a_counterpart_and_odd_numbers(tmp_path: Path, capsys: Any) -> None:
    one, iq = np.ones((2, 32), np.float32), np.zeros((2, 66), np.uint8)
    nan = one.copy()
    nan[1, 3] = np.nan
    both: dict[str, np.ndarray] = {"same": one, "zeros": 0 * one, "iq": iq, "nan": one, "off": one}
    a = write(tmp_path / "a.gguf", {**both, "reshaped": one, "output.weight": one})
    changed = {"zeros": one, "nan": nan, "off": 1.5 * one, "reshaped": np.ones((3, 32), np.float32)}
    b = write(tmp_path / "b.gguf", {**both, **changed, "more": one})
    (other,) = compare(a, b).others
    assert other.tensors is not None and other.divergence is None
    assert (other.tensors.only_base, other.tensors.only_other) == (["output.weight"], ["more"])
    assert other.tensors.reshaped == {"reshaped": ((2, 32), (3, 32))}
    errors = {e.name: e for e in other.tensors.errors}
    assert errors["same"].relative == 0 and errors["same"].cosine == 1
    assert errors["zeros"].relative == math.inf and errors["zeros"].largest == 1
    assert errors["iq"].relative is None and errors["iq"].cosine is None
    assert math.isnan(errors["nan"].relative or 0) and math.isnan(errors["nan"].largest)
    assert errors["off"].relative == pytest.approx(0.5) and errors["off"].cosine == 1
    assert {e.name for e in other.tensors.worst()[:3]} == {"nan", "iq", "zeros"}
    assert other.tensors.share(errors["off"]) == 1
    assert repr(other.tensors) == "TensorErrors(5 tensors, worst zeros with inf%)"
    assert repr(TensorErrors([])) == "TensorErrors(0 tensors)"
    assert main(["compare", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert "only in the base: output.weight\n" in said and "only in it: more\n" in said
    assert "another shape: reshaped is 2 x 32 in the base, 3 x 32 here" in said
    assert "cannot be decoded" in said
    (line,) = (line for line in said.splitlines() if line.startswith("  nan "))
    assert line.endswith("not finite")
    (line,) = (line for line in said.splitlines() if line.startswith("  F32 "))
    assert "1 not finite;" in line and "nan" not in line
    assert "NaN" not in str(comparison_report.as_json(compare(a, b)))


@pytest.mark.parametrize("swapped", [False, True])
def test_weights_that_are_not_finite_in_one_model(
    tmp_path: Path, capsys: Any, swapped: bool
) -> None:
    one = np.ones((2, 32), np.float32)
    nan = one.copy()
    nan[1, 3] = np.nan
    paths = [write(tmp_path / f"{n}.gguf", {"t": x}) for n, x in (("one", one), ("nan", nan))]
    assert main(["compare", *map(str, reversed(paths) if swapped else paths)]) == 0
    said = capsys.readouterr().out
    assert "inf" not in said.replace("not finite", "") and "nan%" not in said
    assert sum(line.endswith("not finite") for line in said.splitlines()) == 2


def test_models_without_a_common_tensor_are_not_equal(tmp_path: Path, capsys: Any) -> None:
    shapes = {"a": {"t": (2, 32)}, "b": {"t": (3, 32)}, "c": {"u": (2, 32)}}
    for name, tensors in shapes.items():
        write(tmp_path / f"{name}.gguf", {n: np.ones(s, np.float32) for n, s in tensors.items()})
    assert main(["compare", *(str(tmp_path / f"{name}.gguf") for name in shapes)]) == 0
    said = capsys.readouterr().out
    assert said.count("no tensor has the name and shape of one in the base") == 2
    assert "equal" not in said


# -- pictures ------------------------------------------------------------------------------------


def error(name: str, relative: float) -> TensorError:
    return TensorError(name, (1, 32), "F16", "Q4_0", 64, 18, relative**2, 1.0, 1.0, 1.0, 0.1)


def a_comparison(kls: list[float]) -> Comparison:
    rng, others = np.random.default_rng(1), []
    for i, kl in enumerate(kls):
        d = Divergence(*rng.gamma(2, 2, (2, 300)), kl * rng.gamma(1, 1, 300), rng.random(300) < 0.9)
        others.append(Other(Model(f"m$_{i}.gguf", (i + 3) * 10**6, 10**7), d, None))
    return Comparison(Model("base.gguf", 2 * 10**7, 10**7), others, Text("t", 2, 302, 2))


@pytest.mark.parametrize("kls", [[0.1, 0.01], [0.0], [0.0, 0.2], [0.1] * 9])
def test_pictures_of_kl(kls: list[float]) -> None:
    comparison = a_comparison(kls)
    axes = pictures.kl_over_size(comparison).axes[0]
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    for (x, y), other in zip(points, comparison.others, strict=True):
        assert other.divergence is not None
        assert x == other.model.nbytes / 1e6
        assert y == other.divergence.kl.value or (y > 0 and other.divergence.kl.value == 0)
    lines = pictures.kl_over_tokens(comparison).axes[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(lines) == len(looks) == len(kls)
    for line, other in zip(lines, comparison.others, strict=True):
        assert other.divergence is not None
        x, y = (np.asarray(v, np.float64) for v in (line.get_xdata(), line.get_ydata()))
        for at in (0, 100, 299):
            share = (other.divergence.kls >= x[at]).mean()
            assert y[at] == pytest.approx(share) or other.divergence.kl.value == 0


def test_picture_of_errors() -> None:
    layers = {
        f"blk.{i}.{k}.weight": (i + 1) * v
        for i in range(3)
        for k, v in (("ffn_down", 0.02), ("attn_q", 0.01))
    }
    del layers["blk.1.attn_q.weight"]
    errors = [
        error(n, v)
        for n, v in {**layers, "blk.0.attn_norm.weight": 0.0, "token_embd.weight": 0.03}.items()
    ]
    other = Other(Model("m.gguf", 10, 10), None, TensorErrors(errors))
    figure = pictures.error_by_layer(Comparison(Model("b", 20, 10), [other]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["attn_q", "ffn_down"]
    image = axes.images[0].get_array()
    assert image is not None
    expected = [[0.01, 0.02], [math.nan, 0.04], [0.03, 0.06]]
    np.testing.assert_allclose(np.ma.filled(image, math.nan), expected)
    assert {text.get_text() for text in axes.texts} == {"1", "2", "3", "4", "6"}
    assert "token_embd 3.00%" in axes.get_title()


def test_files_of_pictures(tmp_path: Path, capsys: Any) -> None:
    a, b, folder = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "new"
    for seed, path in ((1, a), (2, b)):
        random_models.write(path, "llama", seed, sizes=Sizes(layers=2))
    (tmp_path / "t.txt").write_text("Boats on the sea near Oban. " * 9)
    options = ["--text", str(tmp_path / "t.txt"), "--chunk-size", "32", "--plots", str(folder)]
    assert main(["compare", str(a), str(b), str(a), *options]) == 0
    names = ["error-1-b.png", "error-2-a.png", "kl-size.png", "kl-tokens.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.iterdir())
    with pytest.raises(ValueError, match="has no text"):
        pictures.kl_over_size(compare(a, b))
    assert main(["compare", str(a), str(b), "--plots", str(tmp_path / "no" / "folder")]) == 1
    assert "no/folder" in capsys.readouterr().err
