"""Which models a folder has, what they are called, and the memory that they take."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import pytest
import random_models
from backends import CPU

import mlx_ferrum
from mlx_ferrum.convert.commands import split
from mlx_ferrum.gguf import read
from mlx_ferrum.server.about import of_file, of_model
from mlx_ferrum.server.command import arguments
from mlx_ferrum.server.folder import Folder
from mlx_ferrum.server.loading import Listing
from mlx_ferrum.sizes import pool_nbytes
from mlx_ferrum.state.recurrent import RecurrentState


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    sizes = random_models.Sizes(layers=1)
    return random_models.write(tmp_path_factory.mktemp("m") / "m.gguf", "llama", 1, sizes=sizes)


def written(path: Path, file: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, path)
    return path


def companion(path: Path, architecture: str, kind: str | None = None) -> None:
    """A file without a tensor."""
    writer = gguf.GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        part()


def names(folder: Path) -> dict[str, str]:
    """The file of each name."""
    return {file.name: str(file.path.relative_to(folder)) for file in Folder(folder).list()}


def test_names_are_short_and_differ(file: Path, tmp_path: Path) -> None:
    odd = ['ü "q" \\.gguf', "new\nline.gguf", "x.Q4_K.gguf", "UPPER.GGUF", "100%2F.gguf", "😀.gguf"]
    for name in ("a.gguf", "sub/a.gguf", "sub/deep/b.gguf", ".hidden/c.gguf", ".d.gguf", *odd):
        written(tmp_path / name, file)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.gguf").mkdir()
    found = names(tmp_path)
    assert found.pop("a") == "a.gguf"
    assert found.pop("sub/a") == "sub/a.gguf"
    assert found.pop("b") == "sub/deep/b.gguf"
    assert found == {name[:-5]: name for name in odd}
    written(tmp_path / "a.GGUF", file)
    assert {name for name in names(tmp_path) if name.lower().startswith("a")} == {
        "a.gguf",
        "a.GGUF",
    }


def test_names_that_are_no_unicode_can_be_sent(file: Path, tmp_path: Path) -> None:
    for byte in (b"\xe9", b"\xe8"):
        written(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf" + byte + b".gguf")), file)
    found = [each.name for each in Folder(tmp_path).list()]
    assert len(set(found)) == 2
    for name in found:
        name.encode()


def test_a_split_model_is_one(file: Path, tmp_path: Path) -> None:
    assert split.main([str(file), str(tmp_path / "big"), "--max-tensors", "4"]) == 0
    parts = sorted(tmp_path.iterdir())
    [found] = Folder(tmp_path).list()
    assert (found.name, found.path) == ("big", parts[0])
    assert found.nbytes == sum(part.stat().st_size for part in parts)
    assert found.about is not None
    assert found.about.parameter_count == of_file(read(file)).parameter_count
    before = found.versions
    os.utime(parts[-1], ns=(1, 1))
    assert Folder(tmp_path).list()[0].versions != before
    parts[-1].unlink()
    [found] = Folder(tmp_path).list()
    assert found.about is None


def test_what_goes_with_models_is_left_out_and_named_once(
    file: Path, tmp_path: Path, caplog
) -> None:
    written(tmp_path / "m.gguf", file)
    written(tmp_path / "mmproj-m.gguf", file)
    companion(tmp_path / "vision.gguf", "clip")
    companion(tmp_path / "words.gguf", "llama")
    companion(tmp_path / "calibration.gguf", "llama", "imatrix")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")  # which fails when it is asked for
    listing = Listing(arguments(["--models", "x"]), Folder(tmp_path))
    for _ in range(2):
        assert [entry.name for entry in listing()] == ["broken", "m"]
    [record] = caplog.records
    for name in ("mmproj-m", "vision", "words", "calibration"):
        assert name in record.getMessage()
    companion(tmp_path / "later.gguf", "llama")
    listing()
    assert "'later.gguf' (has a vocabulary only)" in caplog.records[1].getMessage()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("found", ["a file", "nothing"])
def test_no_folder(file: Path, tmp_path: Path, found: str) -> None:
    with pytest.raises(ValueError, match=f"{found} found, expected a folder"):
        Folder(file if found == "a file" else tmp_path / "x")


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("case", ["llama", "gemma3", "qwen3moe", "qwen2moe", "qwen3next", "qwen35"])
def test_the_memory_of_a_full_pool_is_known_from_the_header(
    tmp_path: Path, case: str, bits: int
) -> None:
    path = random_models.write_case(tmp_path / "m.gguf", case, 1)
    about = of_file(read(path))
    with CPU.in_use():
        model, _ = mlx_ferrum.load(path)
        states = model.make_states(blocks=40, kv_bits=bits)
        for group in states.groups:
            for storage in group.storages.values():
                size = group.pool.size
                assert size is not None
                storage.grow(size if isinstance(group, RecurrentState) else 40)
    assert pool_nbytes(about.keeps, 40 * 32, bits) == states.nbytes
    loaded = of_model(model)
    assert (loaded.architecture, loaded.parameter_count) == (
        about.architecture,
        about.parameter_count,
    )
    assert (loaded.context_length, loaded.nbytes) == (about.context_length, about.nbytes)
