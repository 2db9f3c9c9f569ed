"""Hugging Face repositories, without a network: the hub's functions are replaced, or its host is a dead port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from mlx_ferrum import catalog
from mlx_ferrum.catalog import hub


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["README.md", "m-Q8_0.gguf"], "m-Q8_0.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-f16.gguf"], "m-Q4_K_M.gguf"),
        (
            ["m-q8_0.gguf", "m-q4_k_m-00002-of-00002.gguf", "m-q4_k_m-00001-of-00002.gguf"],
            "m-q4_k_m-00001-of-00002.gguf",
        ),
        (
            ["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf"],
            "Q4_K_M/m-00001-of-00002.gguf",
        ),
        (["m.GGUF", "readme.md"], "m.GGUF"),
        *(
            (["m.gguf", companion], "m.gguf")
            for companion in (
                *("mmproj-m-f16.gguf", "m.mmproj-Q8_0.gguf", "MMPROJ-f16.GGUF"),
                *("imatrix_unsloth.gguf", "m-imatrix.gguf", "ggml-vocab-m.gguf"),
                *("mtp-m-Q8_0.gguf", "x/EAGLE3-m.gguf", "dflash-m.gguf", "._m.gguf"),
            )
        ),
    ],
)
def test_choice(files: list[str], expected: str) -> None:
    assert hub.choose("o/r", files) == expected
    assert hub.choose("o/r", files, "latest") == expected


FILES = [
    *("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q4_K_XL.gguf", "m.q8_0.GGUF", "mmproj-m-Q8_0.gguf"),
    *("BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"),
    *("m-IQ4_XS.gguf", "m-mxfp4.gguf"),
]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("Q8_0", "m.q8_0.GGUF"),
        ("bf16", "BF16/m-BF16-00001-of-00002.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("MXFP4", "m-mxfp4.gguf"),
    ],
)
def test_a_tag_in_any_case(tag: str, expected: str) -> None:
    assert hub.choose("o/r", FILES, tag) == expected


@pytest.mark.parametrize(
    ("files", "tag", "message"),
    [
        (["model.safetensors"], "", "hf:o/r: no GGUF model"),
        (["mmproj-f16.gguf"], "f16", "hf:o/r: no GGUF model"),
        (["m-Q8_0.gguf", "m-Q5_0.gguf"], "", "hf:o/r:FILE from m-Q5_0.gguf, m-Q8_0.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "latest", "several models.* a-Q4_K_M.gguf, b-Q4_K_M"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "c.gguf"], "q4_k_m", "2 models.* from a-.*, b-[^,]*$"),
        (["m-Q4_K_M.gguf"], "Q4_K", "no model is tagged Q4_K, .* from m-Q4_K_M.gguf$"),
        (["m-IQ4_XS.gguf"], "Q4_XS", "no model is tagged"),
        (["m-Q8_0.gguf"], ".*", "no model is tagged"),
    ],
)
def test_choice_refuses(files: list[str], tag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hub.choose("o/r", files, tag)


def test_parts_keep_their_spelling() -> None:
    assert hub.parts("a/M-00002-of-00002.GGUF") == [
        "a/M-00001-of-00002.GGUF",
        "a/M-00002-of-00002.GGUF",
    ]


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: None)


@pytest.mark.parametrize(
    "name", ["hf:o/r", "hf:o/r:q4_k_m", "hf:o/r:latest", "hf:o/r:m-Q4_K_M-00002-of-00002.gguf"]
)
def test_all_parts_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: None, name: str
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
def test_errors(
    monkeypatch: pytest.MonkeyPatch,
    reachable: None,
    raised: Exception,
    expected: type[Exception],
    message: str,
) -> None:
    def download(repo: str, file: str) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(expected, match=message):
        catalog.resolve("hf:o/r:m.gguf")


# -- offline -------------------------------------------------------------------------------------


@pytest.fixture(params=["dead proxy", "offline mode"])
def offline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which the hub is not reached, and whose cache has files of o/r."""
    snapshot = tmp_path / "hub" / "models--o--r" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for name in ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "big-Q2_K-00001-of-00002.gguf"):
        (snapshot / name).write_bytes(b"x")
    references = snapshot.parent.parent / "refs"
    references.mkdir()
    (references / "main").write_text("c0ffee")
    dead = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    chosen = dead if request.param == "dead proxy" else {"HF_HUB_OFFLINE": "1"}
    yield {**os.environ, **chosen, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": ""}


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("hf:o/r", 0, "c0ffee/m-Q4_K_M.gguf"),
        ("hf:o/r:q8_0", 0, "c0ffee/m-Q8_0.gguf"),
        ("hf:o/r:m-Q8_0.gguf", 0, "c0ffee/m-Q8_0.gguf"),
        ("hf:o/r:Q2_K", 1, "hf:o/r:big-Q2_K-00002-of-00002.gguf: not in the cache"),
        ("hf:o/r:Q5_0", 1, "no model is tagged Q5_0, choose one as hf:o/r:FILE from big-"),
        ("hf:o/r:other.gguf", 1, "hf:o/r:other.gguf: not in the cache, and the hub cannot be"),
        ("hf:o/unknown", 1, "hf:o/unknown: not in the cache, and the hub cannot be reached"),
    ],
)
def test_offline_answers_at_once(offline: dict[str, str], name: str, code: int, told: str) -> None:
    """The hub's own client would wait 23 seconds between its attempts."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mlx_ferrum.catalog", name],
        env=offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - start < 15
    assert done.returncode == code
    out, other = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert told in out
    assert (out.count("\n"), other) == (1, "")


def test_the_hubs_client_works_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = huggingface_hub.get_session().event_hooks
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    with pytest.raises(ConnectionError, match=r"hf:o/r-none: not in the cache.*: no route$"):
        hub.download("o/r-none")
    assert huggingface_hub.get_session().event_hooks == hooks
