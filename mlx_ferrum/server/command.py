"""The command line of the server."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli

if TYPE_CHECKING:
    from .gate import Rules
    from .service import Limits, Loaded

LOCAL = ("localhost", "127.0.0.1", "::1")
POOL = 32768  # tokens
BESIDE = 32  # tokens
WARM = 4  # texts at the same time that need nothing more to be made
NEEDED = ("prometheus_client", "starlette", "uvicorn")

EPILOG = """\
A client finds the server at http://127.0.0.1:8080/v1, with any API key unless --api-key sets one.

examples:
  %(prog)s --model smollm2-135m
  %(prog)s --model qwen.gguf --alias gpt-4o --embedding-model minilm.gguf
  curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    cli.import_engine()
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"{error}; pip install 'mlx_ferrum[server]' installs it") from None
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    import uvicorn

    from .app import make
    from .service import Service

    rules = _rules(args)
    _begin_log(args.quiet)
    name = args.alias[0] if args.alias else str(args.model)
    service = Service(lambda: _load(args), name, args.alias[1:], _limits(args))
    failures: list[Exception] = []

    def ended(error: Exception) -> None:
        failures.append(error)
        if service.is_loading:
            server.should_exit = True
        else:
            _say(f"error: the model failed, and /health says so: {cli.describe(error)}")

    config = uvicorn.Config(
        make(service, rules, ended),
        host=args.host,
        port=args.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=args.grace,
    )
    server = uvicorn.Server(config)
    # uvicorn drains, then raises the signal again for the handler that was there before
    signal.signal(signal.SIGTERM, lambda *_: None)
    if args.host not in LOCAL and not rules.keys:
        _say(f"warning: everyone who can reach {args.host} may use the server (--api-key)")
    _say(f"{args.model} on http://{args.host}:{args.port}")
    server.run()
    if failures and service.is_loading:
        raise failures[0]
    if not server.started:
        raise OSError(f"cannot listen on {args.host}:{args.port}")
    return 0


def _load(args: argparse.Namespace) -> Loaded:
    """Runs in the engine's thread."""
    from mlx_ferrum import load
    from mlx_ferrum.engine import Engine
    from mlx_ferrum.models.encoder import Encoder

    from .service import Loaded

    model, tokenizer = cli.load_model(args)
    context = model.args.context_length
    tokens = args.pool or max(context, min(args.parallel * context, POOL))
    blocks = math.ceil(tokens / 32)
    engine = Engine(
        model,
        blocks=blocks,
        kv_bits=args.kv_bits,
        most=args.parallel,
        chunk_beside=args.chunk_beside,
    )
    engine.prepare(min(args.parallel, blocks, WARM))
    encoder = None
    if args.embedding_model is not None:
        found, texts = load(args.embedding_model)
        if not isinstance(found, Encoder):
            raise NotImplementedError(
                f"{args.embedding_model}: a language model makes no embeddings, expected an encoder"
            )
        encoder = found, texts, str(args.embedding_model)
    return Loaded(model, tokenizer, engine, encoder)


def _limits(args: argparse.Namespace) -> Limits:
    from .service import Limits

    return Limits(
        running=args.parallel,
        queue=args.queue,
        seconds=args.timeout,
        body=args.max_body << 20,
        prompt=args.max_prompt,
    )


def _rules(args: argparse.Namespace) -> Rules:
    """Raises ValueError for an empty key, OSError if the file of keys cannot be read."""
    from .gate import Rules

    keys = list(args.api_key)
    if args.api_key_file is not None:
        keys += Path(args.api_key_file).expanduser().read_text().split()
        if not keys:
            raise ValueError(f"{args.api_key_file}: there is no key in it")
    if not all(keys):
        raise ValueError("--api-key is empty, expected at least one character")
    return Rules(keys, args.cors_origin, args.max_body << 20, args.host in LOCAL)


def _begin_log(quiet: bool) -> None:
    """Everything on stderr, a line each; `quiet` leaves out the access log."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    if not quiet:
        logging.getLogger("mlx_ferrum.server.access").setLevel(logging.INFO)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "server",
        usage="%(prog)s [--model NAME] [options]",
        description="Serve a GGUF model to clients of OpenAI's API, to many at a time.",
        epilog=EPILOG,
    )
    cli.model_arguments(parser)
    add = parser.add_argument_group("models").add_argument
    add(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="the model's name for clients (default: that of --model); repeat it for others, such as 'claude-*'",
    )
    add(
        "--embedding-model",
        type=cli.file_name,
        metavar="NAME",
        help="an encoder for /v1/embeddings",
    )
    _add_network(parser)
    _add_limits(parser)
    return parser


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add(
        "--host",
        default=LOCAL[1],
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s)",
    )
    add("--port", type=cli.positive, default=8080, metavar="N", help="port (default: 8080)")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that clients have to send; repeatable",
    )
    add("--api-key-file", type=cli.file_name, metavar="FILE", help="keys, separated by white space")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may ask, such as http://localhost:3000; * is all; repeatable",
    )
    add("-q", "--quiet", action="store_true", help="no line for each request on stderr")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add(
        "--parallel",
        type=cli.positive,
        default=32,
        metavar="N",
        help="texts that run at the same time (default: 32)",
    )
    add(
        "--queue",
        type=cli.count,
        default=256,
        metavar="N",
        help="texts that wait; more are refused with status 429 (default: 256)",
    )
    add(
        "--pool",
        type=cli.positive,
        metavar="TOKENS",
        help=f"room for keys and values of all texts (default: {POOL}, or the model's context if that is more)",
    )
    add(
        "--chunk-beside",
        type=cli.positive,
        default=BESIDE,
        metavar="TOKENS",
        help="of prompts in a step beside texts that run: fewer delay these less, more read prompts faster "
        "(default: %(default)s)",
    )
    add(
        "--timeout",
        type=cli.positive,
        default=3600,
        metavar="SECONDS",
        help="a request may take so long (default: 3600)",
    )
    add(
        "--grace",
        type=cli.count,
        default=60,
        metavar="SECONDS",
        help="after SIGTERM, requests that run may take so long (default: 60)",
    )
    add(
        "--max-body",
        type=cli.positive,
        default=32,
        metavar="MIB",
        help="size of a request (default: 32)",
    )
    add("--max-prompt", type=cli.positive, metavar="TOKENS", help="length of a prompt")
