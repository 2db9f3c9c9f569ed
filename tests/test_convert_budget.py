"""--budget: types for a size. Bits go where measured losses fall most, and the file is no larger than asked."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import Backend
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum import gguf, ops
from mlx_ferrum.blocks import F16, F32, IQ4_NL, Q3_K, Q4_K, Q5_K, Q8_0, by_name
from mlx_ferrum.convert import budget, sensitivity
from mlx_ferrum.convert.budget import Choice
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.sizing import Budget
from mlx_ferrum.tensor import QTensor

GB, GIB = 10**9, 2**30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in F16, and a text."""
    folder = tmp_path_factory.mktemp("budget")
    (folder / "text.txt").write_text(
        " ".join(f"{n} boats on the sea near Oban," for n in range(40))
    )
    sizes = Sizes(layers=2, experts=4, used=2, expert_ffn=256)
    return random_models.write(folder / "m.gguf", "qwen3moe", 5, sizes=sizes, types=("F16",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.5", Budget(bits=4.5)),
        ("18GB", Budget(nbytes=18 * GB)),
        ("17.5GiB", Budget(nbytes=int(17.5 * GIB))),
        ("700 m", Budget(nbytes=700 * 10**6)),
        ("5000B", Budget(nbytes=5000)),
        ("1.5TiB", Budget(nbytes=3 * 2**39)),
    ],
)
def test_sizes_are_read(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "40", "-4", "4.5 bits", "GB", "1e9", "18PB", "9" * 400 + "GB"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Budget.parse(text)


def random_choices(rng: np.random.Generator) -> dict[str, list[Choice]]:
    """Curves of four tensors: as types lose, but not exactly."""
    types = (Q3_K, Q4_K, Q5_K, Q8_0)
    return {
        f"t{i}": [
            Choice(
                b, int(size * budget.bits(b)), scale * 4 ** -budget.bits(b) * rng.uniform(0.5, 2)
            )
            for b in types
        ]
        for i, (size, scale) in enumerate(
            zip(rng.integers(10, 100, 4), rng.uniform(0.1, 10, 4), strict=True)
        )
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_allocation_is_almost_the_best(seed: int) -> None:
    """All 256 are tried. Greedy steps on convex curves miss at most what one tensor could still gain."""
    choices = random_choices(np.random.default_rng(seed))
    least, most = (sum(f(c.nbytes for c in some) for some in choices.values()) for f in (min, max))
    for room in np.linspace(least, most, 9).astype(int):
        found = budget.allocate(choices, room)
        assert sum(c.nbytes for c in found.values()) <= room
        fitting = [
            sum(c.loss for c in some)
            for some in itertools.product(*choices.values())
            if sum(c.nbytes for c in some) <= room
        ]
        step = max(a.loss - b.loss for some in choices.values() for a, b in _steps(some))
        loss = sum(c.loss for c in found.values())
        assert min(fitting) <= loss <= min(fitting) + step


def _steps(choices: list[Choice]) -> list[tuple[Choice, Choice]]:
    return list(itertools.pairwise(budget.hull(choices)))


def test_what_is_larger_without_being_better_is_never_chosen() -> None:
    choices = [
        Choice(Q3_K, 10, 5.0),
        Choice(Q4_K, 20, 6.0),
        Choice(Q5_K, 30, 1.0),
        Choice(Q8_0, 40, 1.0),
    ]
    assert [c.block for c in budget.hull(choices)] == [Q3_K, Q5_K]
    assert budget.allocate({"t": choices}, 100)["t"].block is Q5_K
    assert budget.allocate({"t": choices}, 29)["t"].block is Q3_K
    with pytest.raises(ValueError, match="10 bytes at least, found 9"):
        budget.allocate({"t": choices}, 9)


def test_candidates_fit_rows_and_are_below_what_is_stored() -> None:
    assert F16 in budget.candidates(512, F16) and Q4_K in budget.candidates(512, F16)
    small = budget.candidates(96, F32)
    assert Q4_K not in small and IQ4_NL in small and F32 in small
    assert budget.candidates(512, Q4_K)[-1] is Q4_K and Q5_K not in budget.candidates(512, Q4_K)
    assert budget.probe(512, 4.8) is Q4_K and budget.probe(512, 1.0).name == "Q2_K"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", ["llama", "llama-tied-rope_freqs", "qwen2", "gemma3"])
def test_substituted_tensors_compute_as_a_file_with_them(
    tmp_path: Path, case: str, backend: str
) -> None:
    _check_substitutes(tmp_path, random_models.CASES[case], backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_substituted_experts_too(tmp_path: Path, backend: str) -> None:
    sizes = Sizes(layers=2, experts=4, used=2, expert_ffn=256)
    _check_substitutes(tmp_path, {"arch": "qwen3moe", "sizes": sizes}, backend)


def _check_substitutes(folder: Path, case: dict[str, Any], backend: str) -> None:
    whole, changed = folder / "whole.gguf", folder / "changed.gguf"
    random_models.write(whole, seed=3, **{**case, "types": ("F16",)})
    command = [str(whole), str(changed), "--type", "q5_k_m", "--effort", "fast"]
    assert main(["quantize", *command]) == 0
    with Backend(backend).in_use():
        tokens = mx.array([[1, 7, 200, 31, 4]])
        model, other = mlx_ferrum.load(whole)[0], mlx_ferrum.load(changed)[0]
        file, chosen = gguf.read(whole), gguf.read(changed)
        types = {n: by_name(i.type) for n, i in chosen.tensors.items()}
        names = [n for n, block in types.items() if block.name != file.tensors[n].type]
        tensors = {n: sensitivity.quantized(file, n, types[n]) for n in names}
        before = np.asarray(model(tokens))
        with ops.substituted(tensors):
            found = np.asarray(model(tokens))
        assert np.array_equal(found, np.asarray(other(tokens)))
        assert np.array_equal(before, np.asarray(model(tokens))) and not np.array_equal(
            before, found
        )
        for name in names:  # each of them counts, alone as well
            with ops.substituted({name: tensors[name]}):
                assert not np.array_equal(before, np.asarray(model(tokens))), name


@pytest.mark.parametrize(
    "name",
    ["blk.1.ffn_down_exps.weight", "blk.0.attn_k.weight", "output.weight", "token_embd.weight"],
)
def test_sensitivity_is_the_divergence(path: Path, name: str) -> None:
    """Against softmaxes in float64, of whole chunks."""
    model, tokenizer = mlx_ferrum.load(path)
    file = gguf.read(path)
    ids = tokenizer.encode((path.parent / "text.txt").read_text(), add_special=False)
    chunks = [ids[:32], ids[32:64]]
    measured = sensitivity.measure(model, file, chunks, {name: Q3_K}, (Q3_K, Q8_0))[name]

    def predictions() -> np.ndarray:
        logits = [np.asarray(model(mx.array([c])))[0, 16:].astype(np.float64) for c in chunks]
        x = np.concatenate(logits)
        return (
            x
            - x.max(-1, keepdims=True)
            - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        )

    p = predictions()
    tensor = sensitivity.quantized(file, name, Q3_K)
    with ops.substituted({name: tensor}):
        q = predictions()
    expected = (np.exp(p) * (p - q)).sum(-1).mean()
    assert expected > 1e-7 and measured.loss == pytest.approx(expected, rel=1e-2, abs=1e-8)
    x = file.data(name).view(np.float16).astype(np.float64)
    off = np.asarray(ops.dequantize(tensor)).reshape(-1) - x
    assert measured.errors["Q3_K"] == pytest.approx(
        np.square(off).sum() / np.square(x).sum(), rel=0.01
    )
    assert measured.expected(Q8_0) < measured.expected(Q3_K) / 100


def test_few_positions_of_a_large_vocabulary(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = mlx_ferrum.load(path)
    monkeypatch.setattr(sensitivity, "KEPT_BYTES", 4 * model.args.vocab_size * 7)
    baseline = sensitivity.Baseline(model, [list(range(1, 33)), list(range(40, 72))])
    assert baseline.positions == 6
    file = gguf.read(path)
    names = ["blk.1.attn_q.weight", "blk.0.attn_q.weight", "output.weight", "token_embd.weight"]
    for name in names:  # itself, in another place
        own = QTensor(F16, file.tensors[name].shape, file.data(name).copy(), name=name)
        assert baseline.loss(own) == 0
        assert baseline.loss(sensitivity.quantized(file, name, Q3_K)) > 0


def quantize(path: Path, out: Path, *more: object) -> int:
    text = ["--text", path.parent / "text.txt", "--chunk-size", 32, "--chunks", 2]
    return main(["quantize", *map(str, (path, out, *text, *more))])


@pytest.mark.parametrize("size", ["5.1", "4.25", "900kB"])
def test_the_file_fits(path: Path, tmp_path: Path, capsys: Any, size: str) -> None:
    out = tmp_path / "out.gguf"
    assert quantize(path, out, "--budget", size) == 0
    file = gguf.read(out)
    nbytes = sum(info.nbytes for info in file.tensors.values())
    weights = sum(int(np.prod(info.shape)) for info in file.tensors.values())
    asked = Budget.parse(size)
    if asked.nbytes is not None:
        assert 0.9 * asked.nbytes <= out.stat().st_size <= asked.nbytes
    else:
        assert 0.9 * float(size) <= 8 * nbytes / weights <= float(size)
    printed = capsys.readouterr().out
    assert "ffn_down_exps (2)" in printed and "the recipe q" in printed
    assert len({info.type for info in file.tensors.values()}) > 2


def test_the_file_fits_with_a_long_name_of_the_text_of_an_imatrix(
    path: Path, tmp_path: Path
) -> None:
    columns, named = tmp_path / "i.gguf", tmp_path / "named.gguf"
    text = str(path.parent / "text.txt")
    assert main(["imatrix", str(path), text, str(columns), "--chunk-size", "32"]) == 0
    datasets = json.dumps(["x" * 50_000])
    edit = ["--set", f"imatrix.datasets:string[]={datasets}"]
    assert main(["edit", str(columns), str(named), *edit]) == 0
    assert quantize(path, tmp_path / "q.gguf", "--budget", "900kB", "--imatrix", named) == 0
    assert (tmp_path / "q.gguf").stat().st_size <= 900_000


def test_measurements_are_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    kept = tmp_path / "kept.json"
    options = ("--budget", "4.5", "--sensitivity", kept)
    assert quantize(path, tmp_path / "a.gguf", *options) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured again"))
    assert quantize(path, tmp_path / "b.gguf", *options) == 0
    assert capsys.readouterr().out.replace("b.gguf", "a.gguf") == first
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert quantize(path, tmp_path / "c.gguf", *options, "--chunks", 1) == 1
    assert "measured with tokens" in capsys.readouterr().err
    kept.write_text(json.dumps({"format": 1}))
    assert quantize(path, tmp_path / "d.gguf", *options) == 1
    assert "no measurements of sensitivity" in capsys.readouterr().err


def test_types_that_the_user_names_stay(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    more = ("--tensor-type", "attn_v=q8_0", "--output-type", "q6_k")
    assert quantize(path, out, "--budget", "4.6", *more) == 0
    types = {name: info.type for name, info in gguf.read(out).tensors.items()}
    assert types["blk.0.attn_v.weight"] == types["blk.1.attn_v.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "2"], "takes at least 2.* bits a weight, .* bytes; found room for"),
        (["--budget", "10kB"], "at least .* found room for -?[0-9,]+ bytes"),
    ],
)
def test_too_small(path: Path, tmp_path: Path, capsys: Any, more: list[str], message: str) -> None:
    assert quantize(path, tmp_path / "out.gguf", *more) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert not (tmp_path / "out.gguf").exists()


def test_too_small_is_told_before_anything_is_measured(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured"))
    assert quantize(path, tmp_path / "out.gguf", "--budget", "2") == 1


def test_rows_that_no_block_divides_stay(path: Path, tmp_path: Path) -> None:
    sizes = Sizes(hidden=64, ffn=100, heads=2, kv_heads=2, head_dim=32, layers=2)
    model = tmp_path / "m.gguf"
    random_models.write(model, "llama", 5, sizes=sizes, types=("F16",))
    (tmp_path / "text.txt").write_bytes((path.parent / "text.txt").read_bytes())
    assert quantize(model, tmp_path / "out.gguf", "--budget", "10") == 0
    types = {name: info.type for name, info in gguf.read(tmp_path / "out.gguf").tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] != "F16"


@pytest.mark.parametrize(
    "change",
    [{"loss": "x"}, {"loss": float("nan")}, {"errors": {}}, {"errors": [1]}, {"block": "Q9"}],
)
def test_damaged_measurements_are_refused(
    path: Path, tmp_path: Path, capsys: Any, change: dict[str, Any]
) -> None:
    kept = tmp_path / "kept.json"
    options = ("--budget", "4.5", "--sensitivity", kept, "--dry-run")
    assert quantize(path, tmp_path / "a.gguf", *options) == 0
    held = json.loads(kept.read_text())
    held["tensors"]["output.weight"] |= change
    kept.write_text(json.dumps(held))
    assert quantize(path, tmp_path / "a.gguf", *options) == 1
    assert "tensor 'output.weight': expected a loss and errors" in capsys.readouterr().err


def test_a_text_is_needed(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["quantize", str(path), str(tmp_path / "o.gguf"), "--budget", "4.5"]) == 1
    assert "expected --text FILE" in capsys.readouterr().err


def test_the_file_is_named_after_the_main_type(path: Path, tmp_path: Path) -> None:
    assert quantize(path, tmp_path / "out.gguf", "--budget", "4.7") == 0
    file = gguf.read(tmp_path / "out.gguf")
    nbytes = Counter[str]()
    for info in file.tensors.values():
        nbytes[info.type] += info.nbytes if len(info.shape) > 1 and "inp" not in info.name else 0
    numbers = {"IQ4_XS": 30, "Q4_K": 15, "Q5_K": 17, "Q3_K": 12, "Q6_K": 18}
    assert file.metadata["general.file_type"] == numbers[nbytes.most_common(1)[0][0]]
