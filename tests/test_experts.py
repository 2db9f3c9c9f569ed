"""`python -m mlx_ferrum.experts`, and the profile of models with experts, with small random models."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
import random_models
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum import cli, profile, stream_generate
from mlx_ferrum.experts import Choices, main, observe, picture
from mlx_ferrum.nn import Experts

SIZES = Sizes(layers=3, experts=6, used=2, dense_layers=(1,), vocab=260)
TYPES = ("Q8_0", "F16")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 1 is dense; layers 0 and 2 have 6 experts, of which a token gets 2."""
    folder = tmp_path_factory.mktemp("experts")
    return random_models.write(folder / "m.gguf", "qwen3moe", 11, sizes=SIZES, types=TYPES)


@pytest.fixture
def model(path: Path) -> Any:
    return mlx_ferrum.load(path)[0]


def by_hand(model: Any, tokens: list[int]) -> dict[int, np.ndarray]:
    """(tokens, used) ids that each layer with experts chooses."""
    ids: dict[int, np.ndarray] = {}
    for i, layer in enumerate(model.body.layers):
        if isinstance(layer.mlp, Experts):
            layer.mlp.observer = lambda _, found, __, i=i: ids.update({i: np.array(found)})
    model(mx.array([tokens]))
    return ids


def run(capsys: Any, *args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; the reference backend is left in use."""
    try:
        code = main([*map(str, args), "--backend", "reference"])
    except SystemExit as stop:
        code = int(str(stop.code))
    return code, *capsys.readouterr()


# -- counting ------------------------------------------------------------------------------------


def test_observe_counts_what_routers_choose(backend: Any, model: Any) -> None:
    tokens = np.random.default_rng(1).integers(0, 260, 30).tolist()
    wanted = by_hand(model, tokens)
    with observe(model) as layers:
        cache = model.make_cache()
        for part in (tokens[:20], tokens[20:29], tokens[29:]):
            mx.eval(model(mx.array([part]), cache=cache))
    assert [layer.layer for layer in layers] == [0, 2]
    for layer in layers:
        ids = wanted[layer.layer]
        assert ids.shape == (30, 2) and layer.tokens == 30
        assert layer.counts.tolist() == [int((ids == e).sum()) for e in range(6)]
        assert math.isclose(layer.shares.sum(), 2)
    assert all(layer.mlp.observer is None for layer in (model.body.layers[0], model.body.layers[2]))


def test_measures_of_evenness() -> None:
    even = Choices(0, np.array([5, 5, 0, 5, 5]), tokens=10)
    assert (
        math.isclose(even.effective, 4) and even.unused == [2] and even.busiest(9) == [0, 1, 3, 4]
    )
    one = Choices(0, np.array([0, 7, 0]), tokens=7)
    assert one.effective == 1 and one.busiest(2) == [1] and one.shares.tolist() == [0, 1, 0]
    skewed = Choices(0, np.array([3, 1]), tokens=4)
    assert math.isclose(skewed.effective, 2 ** (0.75 * math.log2(4 / 3) + 0.25 * 2))


# -- the command -----------------------------------------------------------------------------------


def test_table_and_json_agree(reference: Any, path: Path, capsys: Any) -> None:
    code, text, err = run(capsys, path, "--prompt", "Hello experts", "--tokens", 5)
    assert (code, err) == (0, "")
    code, out, _ = run(capsys, path, "--prompt", "Hello experts", "--tokens", 5, "--json")
    found = json.loads(out)
    assert code == 0 and found["experts"] == 6 and found["experts_used"] == 2
    rows = [line.split() for line in text.splitlines()[3:5]]
    for row, layer in zip(rows, found["layers"], strict=True):
        assert sum(layer["counts"]) == 2 * found["tokens"]
        assert row[:3] == [
            str(layer["layer"]),
            f"{layer['effective_experts']:.1f}",
            str(len(layer["unused"])),
        ]
        assert layer["counts"][int(row[3])] == max(layer["counts"])
        assert row[4] == f"{max(layer['counts']) / found['tokens']:.0%}"


def test_tokens_are_those_of_the_prompt_and_of_greedy_text(
    reference: Any, path: Path, capsys: Any
) -> None:
    model, tokenizer = mlx_ferrum.load(path)
    prompt = tokenizer.encode("abc d")
    said = [r.token for r in stream_generate(model, tokenizer, prompt, 6)]
    wanted = by_hand(model, [*prompt, *said])
    _, out, _ = run(capsys, path, "--prompt", "abc d", "--tokens", 6, "--json")
    for layer in json.loads(out)["layers"]:
        ids = wanted[layer["layer"]]
        assert layer["counts"] == np.bincount(ids.reshape(-1), minlength=6).tolist()


def test_prompt_from_stdin(
    reference: Any, path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * 9)))
    _, out, _ = run(capsys, path, "--prompt", "-", "--json")
    assert json.loads(out)["tokens"] == 9


def test_a_prompt_of_several_passes(
    reference: Any, path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = run(capsys, path, "--prompt", "the rain in spain", "--json")
    monkeypatch.setattr("mlx_ferrum.experts.command.CHUNK", 5)
    assert run(capsys, path, "--prompt", "the rain in spain", "--json")[1] == whole


def test_failures_are_one_line(reference: Any, path: Path, tmp_path: Path, capsys: Any) -> None:
    dense = random_models.write(tmp_path / "d.gguf", "qwen3", 1, sizes=Sizes(layers=1), types=TYPES)
    for args, told in [
        ([dense, "--prompt", "x"], "has no experts: its architecture is qwen3"),
        ([path, "--prompt", ""], "the prompt is empty"),
        ([path, "--prompt", "x" * 100, "--tokens", 50], "do not fit the model's context of 128"),
        ([path, "--prompt", "x", "--out", tmp_path / "no" / "x.png"], "there is no folder"),
        ([path, "--prompt", "x", "--out", tmp_path], f"{tmp_path}: is a folder"),
    ]:
        code, out, err = run(capsys, *args)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: ") and told in err
    assert run(capsys, path)[0] == run(capsys, "--prompt", "x")[0] == 2
    assert run(capsys, path, "--prompt", "x", "--tokens", "-1")[0] == 2


@pytest.mark.parametrize("more", [0, 3])
def test_a_damaged_file_is_an_error(
    reference: Any, path: Path, tmp_path: Path, capsys: Any, more: int
) -> None:
    reader = gguf.GGUFReader(path)
    norm = next(t for t in reader.tensors if t.name == "blk.0.attn_norm.weight")
    data = bytearray(path.read_bytes())
    start, end = int(norm.data_offset), int(norm.data_offset + norm.n_bytes)
    data[start:end] = np.full(norm.n_bytes // 4, np.nan, np.float32).tobytes()
    (damaged := tmp_path / "nan.gguf").write_bytes(data)
    code, out, err = run(capsys, damaged, "--prompt", "the rain", "--tokens", more)
    assert (code, out) == (1, "") and "a logit is NaN" in err


# -- the picture -------------------------------------------------------------------------------------


def heat_map(path: Path, counts: np.ndarray) -> np.ndarray:
    """counts: (layers, experts), of 100 tokens -> the picture (height, width, 3)"""
    image = pytest.importorskip("PIL.Image")
    layers = [Choices(i, row, tokens=100) for i, row in enumerate(counts)]
    picture.draw(layers, 1, "a $5 title_", path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return np.asarray(image.open(path).convert("RGB"))


@pytest.mark.parametrize("layers, experts", [(1, 2), (4, 8), (48, 128), (94, 512)])
def test_one_cell_can_be_told_from_the_others(layers: int, experts: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    counts = np.full((layers, experts), 10)
    counts[0, -1] = 40  # the colours' end
    before = heat_map(tmp_path / "x.png", counts)
    assert 900 < before.shape[1] < 2600 and 250 < before.shape[0] < 2600
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 100, "a colour bar"
    counts[-1, 0] = 0
    changed = (heat_map(tmp_path / "x.png", counts) != before).any(-1)
    for axis, cells in ((0, experts), (1, layers)):
        at = np.flatnonzero(changed.any(axis))
        assert 3 <= np.ptp(at) + 1 <= before.shape[1 - axis] / cells + 2


def test_a_picture_replaces_the_old_one(
    reference: Any, path: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "heat.png"
    out.write_text("old")
    assert run(capsys, path, "--prompt", "hello", "--out", out)[0] == 0
    assert out.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [out]


def test_without_matplotlib_the_extra_is_named(
    path: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(cli, "load_model", lambda args: pytest.fail("asked before it loads"))
    code, _, err = run(capsys, path, "--prompt", "x", "--out", tmp_path / "x.png")
    assert code == 1
    assert err == "error: drawing needs matplotlib: pip install 'mlx_ferrum[plot]'\n"


# -- the profile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, stages", [("qwen3moe-60-dense", {"mlp"}), ("qwen2moe", {"shared expert"})]
)
def test_a_profile_tells_router_from_experts(
    backend: Any, case: str, stages: set[str], tmp_path: Path
) -> None:
    model, tokenizer = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", case, 1))
    with profile.Profile() as timed:
        list(stream_generate(model, tokenizer, [1, 2, 3], 4))
    assert timed.stages.keys() == {"attention", "router", "experts", "head"} | stages
    assert all(seconds > 0 for seconds in timed.stages.values())
