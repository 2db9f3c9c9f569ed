"""A server of a small random model, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import random_models
import uvicorn
from backends import CPU

import mlx_ferrum
from mlx_ferrum.engine import Engine
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.server import loading
from mlx_ferrum.server.app import make
from mlx_ferrum.server.command import arguments
from mlx_ferrum.server.entries import Entries, Entry
from mlx_ferrum.server.gate import Rules
from mlx_ferrum.server.models import Models
from mlx_ferrum.server.service import Limits, Loaded, LoadedEncoder, Service

SIZES = random_models.Sizes(layers=2, context=512)
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "(short){% endif %}{% endif %}"
)
POOL = 64  # blocks


class Served:
    """A server that runs. model and tokenizer: what it serves; encoder: another copy of its encoder."""

    encoder: Any

    def __init__(self, url: str, models: Models, model: Any, tokenizer: Any) -> None:
        self.url, self.models, self.model, self.tokenizer = url, models, model, tokenizer
        self.openai: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.http = httpx.Client(base_url=url, timeout=20)

    @property
    def service(self) -> Service:
        """Of the model, which must be loaded."""
        found = self.models.service("tiny")
        assert found is not None
        return found

    def held(self) -> int:
        """Blocks that are held now."""
        text = self.http.get("/metrics").text
        lines = [line for line in text.splitlines() if 'kind="held"' in line]
        return int(sum(float(line.split()[-1]) for line in lines))

    def wait_until_free(self) -> None:
        """Until no text runs. What clients left behind has to go within seconds."""
        end = time.monotonic() + 5
        while self.held() or self.models.answers:
            assert time.monotonic() < end, (self.held(), self.models.answers)
            time.sleep(0.01)


def write(path: Path, template: str = TEMPLATE) -> Path:
    """A model with a chat template."""
    return random_models.write(path, "llama", 7, sizes=SIZES, template=template)


def load_encoder(path: Path) -> LoadedEncoder:
    model, tokenizer = mlx_ferrum.load(path)
    assert isinstance(model, Encoder)
    return LoadedEncoder(model, tokenizer)


@contextmanager
def served(
    path: Path,
    *,
    rules: Rules | None = None,
    limits: Limits | None = None,
    load: Callable[[], Loaded] | None = None,
    encoder: Path | None = None,
    **options: Any,
) -> Iterator[Served]:
    """On the cpu backend, and a port that is free. encoder: for embeddings; options: of the engine."""
    with CPU.in_use():
        model, tokenizer = mlx_ferrum.load(path)

        def loaded() -> Loaded:
            engine = Engine(model, **{"blocks": POOL, "most": 8, **options})
            return Loaded(model, tokenizer, engine)

        entries = [Entry("tiny", load or loaded, ("other", "claude-*"))]
        if encoder is not None:
            entries.append(Entry("bert", lambda: load_encoder(encoder), is_encoder=True))
        bert = None if encoder is None else "bert"
        models = Models(Entries(lambda: entries, default="tiny", encoder=bert), limits=limits)
        with listening(models, rules or Rules()) as url:
            found = Served(url, models, model, tokenizer)
            try:
                while load is None and found.http.get("/health").status_code != 200:
                    time.sleep(0.005)
                yield found
            finally:
                found.http.close()
                found.openai.close()


@contextmanager
def served_folder(path: Path, *options: str) -> Iterator[Served]:
    """A server of all models of a folder, with options of the command. Its `model` and `tokenizer` are None."""
    with CPU.in_use():
        args = arguments(["--models", str(path), "--backend", "cpu", *options])
        models = loading.models(args, lambda *_: None)
        with listening(models, Rules()) as url:
            found = Served(url, models, None, None)
            try:
                yield found
            finally:
                found.http.close()
                found.openai.close()


@contextmanager
def listening(models: Models, rules: Rules) -> Iterator[str]:
    """The URL of a server of these models, which runs in a thread."""
    config = uvicorn.Config(
        make(models, rules), port=0, log_config=None, access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
