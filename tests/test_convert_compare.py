"""`compare`: KL divergence and the rest held to NumPy's float64 on whole logits; what is refused; the command."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import compared_models
import gguf
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import Backend
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum.convert import comparing, divergence, perplexity
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.comparing import compare
from mlx_ferrum.convert.comparison import Divergence, Estimate

GOLDEN = Path(__file__).parent / "golden" / "compare.json"
SIZE, COUNT = 16, 5
TEXT = " ".join(f"{n} boats on the sea near Oban," for n in range(40))
MOE = Sizes(layers=2, experts=6, used=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, two quantized versions of it, and a text."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text.txt").write_text(TEXT)
    random_models.write(folder / "a.gguf", "qwen3moe", 3, sizes=MOE, types=("F16",))
    for name, recipe in (("b", "q4_0"), ("c", "q2_k")):
        out = str(folder / f"{name}.gguf")
        assert main(["quantize", str(folder / "a.gguf"), out, "--type", recipe]) == 0
    return folder


def whole(path: Path, size: int, count: int) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities (n, vocabulary) float64 at the scored positions, and the tokens that follow them."""
    model, tokenizer = mlx_ferrum.load(path)
    ids = tokenizer.encode(TEXT, add_special=False)
    rows, wanted = [], []
    for start in range(0, size * count, size):
        chunk = ids[start : start + size]
        x = np.asarray(model(mx.array([chunk])))[0].astype(np.float64)[size // 2 : -1]
        rows.append(x - np.log(np.exp(x).sum(-1, keepdims=True)))
        wanted += chunk[size // 2 + 1 :]
    return np.concatenate(rows), wanted


@pytest.mark.parametrize(
    ("size", "rows", "block"), [(SIZE, 64, 1 << 18), (SIZE + 1, 3, 700), (9, 2, 1)]
)
def test_numbers(
    folder: Path,
    reference: Backend,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    rows: int,
    block: int,
) -> None:
    monkeypatch.setattr(perplexity, "ROWS", rows)
    monkeypatch.setattr(divergence, "BLOCK", block)
    others = [folder / "b.gguf", folder / "c.gguf"]
    found = compare(folder / "a.gguf", others, TEXT, count=COUNT, size=size, tensors=False)
    log_p, wanted = whole(folder / "a.gguf", size, COUNT)
    n = len(wanted)
    for other, path in zip(found.others, others, strict=True):
        d, (log_q, _) = other.divergence, whole(path, size, COUNT)
        assert d is not None and d.tokens == n == COUNT * (size - 1 - size // 2)
        kls = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        np.testing.assert_allclose(d.kls, kls, rtol=1e-4, atol=1e-7)
        assert d.kls.mean() > 1e-3
        p, q = (-x[np.arange(n), wanted] for x in (log_p, log_q))
        np.testing.assert_allclose(d.base_nats, p, rtol=1e-5)
        np.testing.assert_allclose(d.nats, q, rtol=1e-5)
        assert (d.agrees == (log_p.argmax(-1) == log_q.argmax(-1))).all()
        assert d.kl.error == pytest.approx(kls.std(ddof=1) / math.sqrt(n), rel=1e-3)
        assert other.model.nbytes == sum(
            t.nbytes for t in comparing.open_model(path).tensors.values()
        )
    assert found.others[0].divergence is not None and found.others[1].divergence is not None
    assert found.others[0].divergence.kl.value < found.others[1].divergence.kl.value
    assert "b.gguf" in repr(found) and len(repr(found).splitlines()) == 3


def test_statistics() -> None:
    rng = np.random.default_rng(1)
    base, other, kls = rng.gamma(2, 2, 200), rng.gamma(2, 2, 200), rng.gamma(1, 1, 200)
    d = Divergence(other, base, kls, rng.random(200) < 0.9)
    difference = other - base
    assert d.perplexity.value == pytest.approx(math.exp(other.mean()))
    assert d.ratio.value == pytest.approx(d.perplexity.value / d.base_perplexity.value)
    error = difference.std(ddof=1) / math.sqrt(200)
    assert d.ratio.error == pytest.approx(d.ratio.value * error)
    ordered = np.sort(kls)
    found = d.percentiles()
    assert found[100.0] == ordered[-1] and found[50.0] == pytest.approx(ordered[99:101].mean())
    at = 0.9 * 199
    low, part = ordered[int(at)], at - int(at)
    assert found[90.0] == pytest.approx(low + part * (ordered[int(at) + 1] - low))
    assert list(found.values()) == sorted(found.values())
    changes = np.exp(-other) - np.exp(-base)
    assert d.probability_rms.value == pytest.approx(math.sqrt((changes**2).mean()))
    share = d.agrees.mean()
    assert d.agreement == Estimate(share, pytest.approx(math.sqrt(share * (1 - share) / 199)))


def test_numbers_of_llama_perplexity(tmp_path: Path, reference: Backend) -> None:
    """It rounds the base's logits, and prints 6 decimals, or 3 of a percentage."""
    golden = json.loads(GOLDEN.read_text())
    base, other = compared_models.models(tmp_path)
    size, count = compared_models.SIZE, compared_models.CHUNKS
    found = compare(base, other, compared_models.TEXT, size=size, count=count, tensors=False)
    d = found.others[0].divergence
    assert d is not None
    assert d.perplexity == pytest.approx(golden["perplexity"], rel=1e-5)
    assert d.kl == pytest.approx(golden["kl"], rel=2e-4, abs=6e-7)
    assert [100 * x for x in d.probability_rms] == pytest.approx(
        golden["probability_rms"], abs=2e-3
    )
    # one of the 372 tokens may be a tie of the rounded logits
    assert [100 * x for x in d.agreement] == pytest.approx(golden["agreement"], abs=0.3)
    for percent, kl in d.percentiles().items():
        assert kl == pytest.approx(golden[f"{percent:g}"][0], rel=2e-3, abs=2e-6)


def test_a_model_does_not_differ_from_itself(folder: Path) -> None:
    path = folder / "b.gguf"
    (other,) = compare(path, path, TEXT, size=SIZE).others
    d = other.divergence
    assert d is not None and other.tensors is not None
    assert (d.kls == 0).all() and d.agrees.all()
    assert d.ratio == (1, 0) and d.probability_rms == (0, 0) and d.agreement == (1, 0)
    assert {e.relative for e in other.tensors.errors} == {0}
    assert {e.cosine for e in other.tensors.errors} == {1}


def test_kl_of_known_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    base = divergence.rows(np.log(p).astype(np.float32) + 7, [2])
    found = divergence.compare(base, np.log(q).astype(np.float32) - 900, [2])
    assert found.kls[0] == pytest.approx(0.25 * math.log(2), rel=1e-4)
    assert found.base_nats[0] == pytest.approx(math.log(4), rel=1e-6)
    assert found.nats[0] == pytest.approx(math.log(2), rel=1e-4) and not found.agrees[0]


# -- what is refused -----------------------------------------------------------------------------


def with_tokens(
    path: Path, source: Path, tokens: list[str], kinds: list[int] | None = None
) -> Path:
    """The same file, with other tokens."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_token_list(tokens)
    if kinds is not None:
        writer.add_token_types(kinds)
    for t in reader.tensors[:1]:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_vocabularies(folder: Path, tmp_path: Path) -> None:
    source, unused = folder / "a.gguf", [1, 1, 5]
    files = {
        "base": (["a", "b", "<unused0>"], unused),
        "same": (["a", "b", "[PAD2]"], unused),
        "other": (["a", "c", "<unused0>"], unused),
        "used": (["a", "b", "d"], [1, 1, 1]),
        "long": (["a", "b", "<unused0>", "d"], [1, 1, 5, 1]),
    }
    opened = {
        name: comparing.open_model(with_tokens(tmp_path / f"{name}.gguf", source, *args))
        for name, args in files.items()
    }
    base = opened["base"]
    comparing.check_vocabularies("base", base, "same", opened["same"])
    for name, message in (
        ("other", "token 1 is 'b' in base, 'c' in other"),
        ("used", "token 2 is '<unused0>' in base, 'd' in used"),
        ("long", "base has 3 tokens, long has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            comparing.check_vocabularies("base", base, name, opened[name])


def test_texts_and_files_that_are_refused(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "a.gguf", folder / "b.gguf"
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for text, name in (("too short", r"the text \(a Path .*\)"), (short, re.escape(str(short)))):
        with pytest.raises(
            ValueError, match=f"^{name}: 7 tokens, expected at least one chunk of 128"
        ):
            compare(a, b, text)
    with pytest.raises(ValueError, match=r"vocabularies differ: .* 300 tokens, tiny-moe has"):
        compare(a, "tiny-moe", TEXT)
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"empty.gguf: has no tensors"):
        compare(a, tmp_path / "empty.gguf")
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"count is {count}, expected 1 or more"):
            compare(a, b, TEXT, count=count)
    with pytest.raises(ValueError, match="logits need a text"):
        compare(a, b, logits=tmp_path / "logits")


@pytest.mark.parametrize("option", ["--json", "--logits"])
@pytest.mark.parametrize("read", ["text", "a.gguf", "b.gguf"])
def test_a_file_that_is_read_is_not_replaced(
    folder: Path, tmp_path: Path, capsys: Any, option: str, read: str
) -> None:
    (tmp_path / "text").write_text(TEXT)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    before = (tmp_path / read).read_bytes()
    a, b, text, out = (str(tmp_path / name) for name in ("a.gguf", "b.gguf", "text", read))
    assert main(["compare", a, b, "--text", text, "--chunk-size", str(SIZE), option, out]) == 1
    assert f"{out}: is the file that is read" in capsys.readouterr().err
    assert (tmp_path / read).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_outputs_are_different_files(folder: Path, tmp_path: Path, capsys: Any) -> None:
    models, out = [str(folder / f"{name}.gguf") for name in "ab"], str(tmp_path / "x")
    (tmp_path / "text").write_text(TEXT)
    options = ["--text", str(tmp_path / "text"), "--json", out, "--logits", out]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *models, *options])
    assert "--logits and --json name the same file" in capsys.readouterr().err


@pytest.mark.parametrize(("bad", "value"), [(0, math.nan), (1, math.inf), (2, -math.inf)])
def test_logits_that_are_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bad: int, value: float
) -> None:
    files = [folder / f"{name}.gguf" for name in "abc"]
    opened = [comparing.open_model(path) for path in files]
    reading = comparing.Reading.of(files, opened, TEXT, size=SIZE)
    reading.add(reading.pieces[0])
    real = type(reading.models[0]).head

    def head(self: Any, x: mx.array) -> mx.array:
        logits = real(self, x)
        return logits * value if self is reading.models[bad] else logits

    monkeypatch.setattr(type(reading.models[0]), "head", head)
    with pytest.raises(ValueError, match=rf"{'abc'[bad]}.gguf: chunk 2: expected finite logits"):
        reading.add(reading.pieces[1])
    (d, _) = reading.divergences()
    assert d.tokens == SIZE - 1 - SIZE // 2  # those of the chunk before


# -- the command ---------------------------------------------------------------------------------


def test_command(folder: Path, tmp_path: Path, capsys: Any, reference: Backend) -> None:
    text, out = folder / "text.txt", tmp_path / "out.json"
    files = [str(folder / f"{name}.gguf") for name in "abc"]
    options = ["--text", str(text), "--chunk-size", str(SIZE), "--chunks", "3"]
    assert main(["compare", *files, *options, "--json", str(out), "--backend", "reference"]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert main(["compare", *files, *options, "--json", "-", "--backend", "reference"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert found["text"] == {"name": "text.txt", "chunks": 3, "size": SIZE, "of": 3}
    for other, name in zip(found["others"], "bc", strict=True):
        d = other["divergence"]
        assert f"{d['kl']:.6f} +- {d['kl_error']:.6f}" in said and f"{name}.gguf" in said
        assert d["tokens"] == 21 and d["kl_percentiles"]["100"] >= d["kl_percentiles"]["50"]
        assert len(other["tensors"]) == len(comparing.open_model(other["name"]).tensors)
        assert sum(t["share"] for t in other["tensors"]) == pytest.approx(1)
    assert "F16 -> Q4_0" in said and "more, with smaller errors or none; --all lists them" in said
    assert main(["compare", *files[:2], "--all"]) == 0
    said = capsys.readouterr().out
    assert "KL" not in said and "more" not in said and said.count("blk.1.") >= 12


def test_usage(folder: Path, capsys: Any) -> None:
    files = [str(folder / "a.gguf"), str(folder / "b.gguf")]
    for option in (["--logits", "x"], ["--chunks", "1"], ["--chunk-size", "8"], ["--no-tensors"]):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", *files, *option])
        assert stopped.value.code == 2 and "needs --text" in capsys.readouterr().err


def test_ctrl_c_prints_what_is_known(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(folder / "a.gguf"), str(folder / "b.gguf")]
    options = ["--text", str(folder / "text.txt"), "--chunk-size", str(SIZE), "--chunks", "4"]
    real = comparing.Reading.add
    for known in (2, 0):

        def add(self: comparing.Reading, tokens: list[int], known: int = known) -> None:
            if self.done == known:
                raise KeyboardInterrupt
            real(self, tokens)

        monkeypatch.setattr(comparing.Reading, "add", add)
        assert main(["compare", *files, *options]) == 130
        said = capsys.readouterr().out
        assert ("scored in 2 of 4 chunks" in said) == (known == 2) == ("KL mean" in said)
