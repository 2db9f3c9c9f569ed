"""The command line of the server."""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlx_ferrum import catalog, cli

if TYPE_CHECKING:
    from .gate import Rules

LOCAL = ("localhost", "127.0.0.1", "::1")
PORT = 8080
POOL = 32768  # tokens
BESIDE = 32  # tokens
NEEDED = ("prometheus_client", "starlette", "uvicorn")

EPILOG = """\
A client finds the server at http://127.0.0.1:8080/v1, with any API key unless --api-key sets one.

examples:
  %(prog)s --model smollm2-135m
  %(prog)s --models ~/models --model-memory 24G
  %(prog)s --model qwen.gguf --alias gpt-4o --embedding-model minilm.gguf
  curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    args = arguments(argv)
    cli.import_engine()
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"{error}; pip install 'mlx_ferrum[server]' installs it") from None
    return _run(args)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends with a usage error for those that are wrong or do not go together."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.models is None:
        if args.model_memory is not None:
            parser.error("--model-memory is for --models")
        args.model = args.model or catalog.DEFAULT
    elif isinstance(args.expert_memory, int) and args.expert_memory:
        parser.error("--expert-memory SIZE is for one model, expected auto or none with --models")
    elif args.alias and args.model is None:
        parser.error("--alias is for --model, expected that too")
    return args


def _run(args: argparse.Namespace) -> int:
    import uvicorn

    from .app import make
    from .entries import Entry
    from .loading import models

    rules = _rules(args)
    _begin_log(args.quiet)
    failures: list[Exception] = []

    def failed(entry: Entry, error: Exception, has_served: bool) -> None:
        if args.models is None and not has_served:
            failures.append(error)
            server.should_exit = True
        else:
            _say(f"error: {entry.name}: {cli.describe(error)}")

    app = make(models(args, failed), rules)
    sockets = _bound(args.host, args.port)
    config = uvicorn.Config(
        app,
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
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{sockets[0].getsockname()[1]}"
    _say(f"{args.models or args.model} on {url} (a page to chat); clients of OpenAI use {url}/v1")
    server.run(sockets)
    if failures:
        raise failures[0]
    return 0


def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets of all addresses of a host; port 0 is any that is free. Raises OSError that names both."""
    found: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for number, (family, _, _, _, address) in enumerate(addresses, 1):
            taken = found[0].getsockname()[1] if found else port
            try:
                found.append(_socket(family, (address[0], taken, *address[2:])))
            except OSError as error:
                is_absent = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if not is_absent or (number == len(addresses) and not found):
                    raise
    except OSError as error:
        for each in found:
            each.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return found


def _socket(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket that is bound, and does not listen yet."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


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
    for origin in args.cors_origin:
        if origin not in ("*", "null") and not _is_origin(origin):
            text = f"--cors-origin is {origin!r}, expected one such as http://localhost:3000, or *"
            raise ValueError(text)
    return Rules(keys, args.cors_origin, args.max_body << 20, args.host in LOCAL)


def _is_origin(text: str) -> bool:
    """Whether a browser can send it: a scheme and a host, and nothing behind them."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.netloc) and text == f"{parts.scheme}://{parts.netloc}".lower()


def _begin_log(quiet: bool) -> None:
    """Everything on stderr, a line each; `quiet` leaves out the access log, and which models are loaded and closed."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    if not quiet:
        for name in ("access", "models"):
            logging.getLogger(f"mlx_ferrum.server.{name}").setLevel(logging.INFO)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "server",
        usage="%(prog)s [--model NAME] [--models FOLDER] [options]",
        description="Serve GGUF models to clients of OpenAI's API, to many at a time.",
        epilog=EPILOG,
    )
    cli.model_arguments(parser)
    # None: it was not given
    parser.set_defaults(model=None, default_pool=POOL)
    add = parser.add_argument_group("models").add_argument
    add(
        "--models",
        type=cli.file_name,
        metavar="FOLDER",
        help="serve every GGUF model of a folder and those in it, each loaded when a request names it; names are "
        "file names without .gguf. With --model, that one is loaded at the start and serves requests that name no "
        "model; it may be a name of the folder. Without it, requests have to name a model",
    )
    add(
        "--model-memory",
        type=cli.size,
        metavar="SIZE",
        help="what models of --models may take together, such as 24G; the model used longest ago is closed for "
        "another one once its requests have ended. Counted are the sizes of files and full pools of keys and values "
        "(--pool), not what computing needs besides; a mixture that does not fit reads its experts from disk, and "
        "counts for those that it keeps (default: 70%% of the machine's memory)",
    )
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
    add(
        "--port",
        type=_port,
        default=PORT,
        metavar="N",
        help="port; 0 is any that is free (default: %(default)s)",
    )
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that clients have to send; repeatable. Others on this machine can see it: --api-key-file hides it",
    )
    add("--api-key-file", type=cli.file_name, metavar="FILE", help="keys, separated by white space")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may ask, such as http://localhost:3000; * is all; repeatable",
    )
    add(
        "-q",
        "--quiet",
        action="store_true",
        help="no lines for requests and loaded models on stderr",
    )


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
        help="a request may take so long, and may wait as long for its model (default: 3600)",
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
    add(
        "--max-prompt",
        type=cli.positive,
        metavar="TOKENS",
        help="length of a prompt (default: what the model's context takes)",
    )


def _port(text: str) -> int:
    """A port's number: 0 to 65535."""
    number: int = cli.count(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text} is more than 65535")
    return number
