"""Names to files, without a network: the index is replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import MODEL, WHOLE, Index

from mlx_ferrum import catalog
from mlx_ferrum.catalog import command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder with a catalog of one model."""
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(catalog, "MODELS", (MODEL,))
    monkeypatch.setattr(command, "MODELS", (MODEL,))
    monkeypatch.setattr(command, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_catalog_model_is_fetched_once_with_its_licence(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index()
    assert catalog.cached("tiny", index).read_bytes() == WHOLE
    assert "fetching tiny: 9 MB, licence: MIT\n" in capsys.readouterr().err
    assert catalog.cached("tiny", index) == cache / "tiny.gguf"
    assert len(index.asked) == len(MODEL.parts)
    assert catalog.resolve("tiny") == cache / "tiny.gguf"
    assert capsys.readouterr().err == ""


def test_listing_shows_what_is_cached(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["tiny", "9", "MB", "no", "MIT"]
    catalog.cached("tiny", Index())
    assert command.main([]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["tiny", "9", "MB", "yes", "MIT"]


def test_command_line_prints_a_path_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert command.main([str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert command.main(["no-such-model"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown model 'no-such-model'")


def test_command_line_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_ferrum.catalog"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == catalog.names()
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("platform", "xdg", "expected"),
    [("linux", "", ".cache"), ("linux", "xdg", "xdg"), ("darwin", "xdg", "Library/Caches")],
)
def test_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, xdg: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / xdg) if xdg else "")
    assert catalog.cache_folder() == tmp_path / expected / "mlx_ferrum" / "models"


def test_catalog_entries_are_consistent() -> None:
    assert catalog.DEFAULT in catalog.names()
    for model in catalog.MODELS:
        assert len(bytes.fromhex(model.sha256)) == 32
        assert all("==" in part.requirement for part in model.parts)


def touch(folder: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        (folder / name).touch()


def test_resolve_a_file_and_a_folder(tmp_path: Path) -> None:
    touch(
        tmp_path, "only.GGUF", "readme.txt", "only.mmproj-f16.gguf", "imatrix.gguf", "._only.gguf"
    )
    assert catalog.resolve(tmp_path / "only.GGUF") == tmp_path / "only.GGUF"
    assert catalog.resolve(str(tmp_path)) == tmp_path / "only.GGUF"


def test_resolve_a_folder_with_a_split_model(tmp_path: Path) -> None:
    touch(tmp_path, "m-00002-of-00003.gguf", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf")
    assert catalog.resolve(tmp_path) == tmp_path / "m-00001-of-00003.gguf"


def test_resolve_a_home_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "m.gguf")
    assert catalog.resolve("~/m.gguf") == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none", ValueError, "none: no GGUF file in this folder"),
        ("two", ValueError, "two: several models, name one: a.gguf, b.gguf"),
        ("missing.gguf", FileNotFoundError, "missing.gguf: no such file"),
        ("missing/model", FileNotFoundError, "missing/model: no such .* write hf:missing/model$"),
        ("a/b:Q4_K_M", FileNotFoundError, "no such file or folder; .* write hf:a/b:Q4_K_M$"),
        ("https://huggingface.co/a/b", FileNotFoundError, "write hf:a/b$"),
        ("./missing/model", FileNotFoundError, "missing/model: no such file or folder$"),
        ("missing/model.gguf", FileNotFoundError, "missing/model.gguf: no such file or folder$"),
        ("a/b/c", FileNotFoundError, "a/b/c: no such file or folder$"),
        ("smollm3", ValueError, "'smollm3'.*GGUF file.*folder.*hf:owner/repo.*smollm2-135m"),
        ("hf:smollm", ValueError, "hf:smollm: expected hf:owner/repo"),
    ],
)
def test_resolve_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "two").mkdir()
    touch(tmp_path / "two", "b.gguf", "a.gguf")
    with pytest.raises(error, match=message):
        catalog.resolve(name)
