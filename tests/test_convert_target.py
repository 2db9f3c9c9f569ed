"""Outputs that are inputs, names that are taken, and runs beside one another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import random_models
from random_models import Sizes

from mlx_ferrum.convert import folder, output
from mlx_ferrum.convert.command import main

TEXT = "In the beginning God created the heaven and the earth. " * 40


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return random_models.write(Path("m.gguf"), "llama", 1, sizes=Sizes(layers=1), types=("F16",))


BUDGET = ("--budget", "6", "--chunk-size", "16", "--chunks", "1")


@pytest.mark.parametrize(
    ("out", "command"),
    [
        ("text.txt", ["quantize", "m.gguf", "text.txt", *BUDGET, "--text", "text.txt"]),
        ("i.gguf", ["quantize", "m.gguf", "./i.gguf", "--type", "q2_k", "--imatrix", "i.gguf"]),
        ("text.txt", ["edit", "m.gguf", "text.txt", "--chat-template", "text.txt"]),
    ],
)
def test_no_input_is_replaced(
    model: Path, capsys: pytest.CaptureFixture[str], out: str, command: list[str]
) -> None:
    if out == "i.gguf":
        assert main(["imatrix", str(model), "text.txt", out, "--chunk-size", "16"]) == 0
    before = Path(out).read_bytes()
    assert main([*command, "--force"]) == 1
    assert "is the file that is read" in capsys.readouterr().err
    assert Path(out).read_bytes() == before


def test_measurements_and_model_have_names_of_their_own(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(model), "q.gguf", *BUDGET, "--text", "text.txt"]
    assert main([*command, "--sensitivity", "q.gguf"]) == 1
    assert "is the file that is read" in capsys.readouterr().err
    assert not Path("q.gguf").exists()


def test_a_link_to_nothing_stays(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.gguf").symlink_to("nothing")
    assert main(["quantize", str(model), "q.gguf", "--type", "q8_0"]) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert Path("q.gguf").is_symlink()


def test_importance_of_another_model_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"blk.7.other.weight"
    entry = np.array([1, len(name)], "<i4").tobytes() + name
    Path("i.dat").write_bytes(entry + np.array([1, 1], "<i4").tobytes() + bytes(4))
    assert main(["quantize", str(model), "q.gguf", "--type", "q2_k", "--imatrix", "i.dat"]) == 1
    assert "found blk.7.other.weight, which it does not have" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m" * 255, "\u00e9" * 120 + ".gguf"])
def test_a_name_may_be_as_long_as_the_file_system_allows(model: Path, name: str) -> None:
    assert main(["quantize", str(model), name, "--type", "q8_0"]) == 0
    assert main(["mlx", str(model), name[:-1]]) == 0
    assert not list(Path().glob(".*"))


def test_runs_beside_one_another_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with output.replaced([path]) as (first,), output.replaced([path]) as (second,):
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "m.gguf", "q.gguf", "--type", "q8_0", "--tensor-type", "a{99999999999}=q4_0"],
        ["edit", "m.gguf", "q.gguf", "--set", ":uint32=1"],
    ],
)
def test_options_without_a_meaning_are_refused(
    model: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "error: argument --" in capsys.readouterr().err


def test_a_folder_that_another_run_has_filled_stays(tmp_path: Path) -> None:
    out = tmp_path / "m"

    def filled() -> Iterator[np.ndarray]:
        out.mkdir()
        (out / "config.json").write_text("{}")
        yield np.zeros(4, np.uint8)

    array = folder.Array("a", "F32", (1,))
    module = folder.Module("a", (1,), "F32", "F32", (array,), filled)
    with pytest.raises(FileExistsError, match="m: is there already and not empty"):
        folder.write(out, [module], {})
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "config.json"]
