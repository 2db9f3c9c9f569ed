"""Our server beside llama.cpp's: many clients over HTTP, total speed, and how long they wait.

    python bench/server.py [MODEL.gguf …] [--clients 1 8 32] [--rates 2] [--llama-server PATH]

Clients ask again as soon as they have their answer, or requests arrive at random (--rates). Prompts are pieces of
this project's documents as token ids, so both servers read the same tokens; the likeliest token is always chosen, and
end tokens end nothing, so both generate the same number. Half of the prompts begin with the same system prompt; the
others are new in each run. The servers run one at a time, with the same threads; each load is asked of both in turn,
and of several runs the one with the median speed is quoted. Results go to bench/results/server.json and .png.
"""

from __future__ import annotations

import argparse
import http.client
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import arrivals
import arrivals_plot
from http_client import HOST, Client
from timing import hardware, save

import mlx_ferrum
from mlx_ferrum import catalog, cli

US, LLAMA = "mlx_ferrum", "llama.cpp"
RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PATIENCE = 120  # seconds to load a model


@contextmanager
def serving(command: Sequence[object]) -> Iterator[Client]:
    """A server that is ready, with `--port` of its own. Raises ValueError if it is not within two minutes."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    words = [*map(str, command), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield Client(port)
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ValueError(f"{process.args!r} ended with {process.returncode}")
        try:
            if _get(port, "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise ValueError(f"{process.args!r} is not ready after {PATIENCE} seconds")


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", path)
    with connection.getresponse() as response:
        return response.status, response.read().decode()


def held(port: int) -> int:
    """Blocks that our server holds."""
    lines = _get(port, "/metrics")[1].splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if 'kind="held"' in line))


def loads_of(path: Path, args: argparse.Namespace) -> list[list[arrivals.Load]]:
    """The runs of each load that the command line asks for, of a model's tokens."""
    _, tokenizer = mlx_ferrum.load(path)
    words = "".join((ROOT / name).read_text("utf-8") for name in DOCUMENTS)
    text = tokenizer.encode(words, add_special=False)
    mix = arrivals.Mix(tuple(args.prompt), tuple(args.tokens), args.system, 0.5)
    runs = range(args.runs)
    found = [
        [arrivals.closed(n, max(n, args.least) * args.requests, mix, text, run) for run in runs]
        for n in args.clients
    ]
    return found + [
        [arrivals.open_(rate, 8 * args.requests, mix, text, run) for run in runs]
        for rate in args.rates
    ]


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print the loads of one model."""
    path = catalog.resolve(name)
    title = name if name in catalog.names() else path.stem
    loads = loads_of(path, args)
    room = -(-(args.prompt[1] + args.tokens[1] + 1) // 256) * 256
    ours = [sys.executable, "-m", "mlx_ferrum.server", "--model", path, "--threads", args.threads]
    llama = [
        args.llama_server,
        "-m",
        path,
        "-np",
        args.slots,
        "-c",
        args.slots * room,
        "-t",
        args.threads,
    ]
    print(f"\n## {title}\n", flush=True)
    with ExitStack() as stack:
        clients = {US: stack.enter_context(serving([*ours, "-q", *args.ours]))}
        if args.llama_server:
            clients[LLAMA] = stack.enter_context(serving(llama))
        rows = arrivals.measure(loads, {each: clients[each].run for each in clients})
        arrivals.show(rows)
        for each, client in clients.items():
            print(f"Asking {each} took {client.busy / client.seconds:.1%} of a core.")
        print(f"Blocks that our server holds at the end: {held(clients[US].port)}")
    found = [{"load": row["load"], "waits": _named(row["waits"])} for row in rows]
    return {"name": title, "rows": found}


def _named(waits: dict[str, arrivals.Waits]) -> dict[str, Any]:
    """For JSON."""
    return {name: found._asdict() for name, found in waits.items()}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    add, pair = (
        parser.add_argument,
        {"type": cli.positive, "nargs": 2, "metavar": ("LEAST", "MOST")},
    )
    add("models", nargs="*", default=["smollm2-135m"], help="default: smollm2-135m")
    add("--clients", type=cli.positive, nargs="*", default=[1, 8, 32], metavar="N", help="at once")
    add("--rates", type=float, nargs="+", default=[], metavar="R", help="arrivals a second")
    add("--requests", type=cli.positive, default=2, metavar="N", help="of each client")
    add(
        "--least",
        type=cli.positive,
        default=4,
        metavar="N",
        help="clients to count at least, for --requests",
    )
    add("--prompt", **pair, default=[30, 1500], help="tokens of each prompt")
    add("--tokens", **pair, default=[64, 256], help="generated for each")
    add("--system", type=cli.positive, default=700, metavar="N", help="tokens that prompts share")
    add("--threads", type=cli.positive, default=2, metavar="N", help="of each server (default: 2)")
    add("--slots", type=cli.positive, default=8, metavar="N", help="of llama.cpp's server")
    add("--runs", type=cli.positive, default=3, metavar="N", help="of every load")
    add("--llama-server", type=Path, metavar="PATH", help="compare with this program")
    add(
        "--ours",
        nargs="*",
        default=[],
        metavar="OPTION=VALUE",
        help="options of our server, such as --parallel=16",
    )
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    args = parser.parse_args(argv)
    if args.llama_server and not args.llama_server.is_file():
        parser.error(f"argument --llama-server: there is no file {args.llama_server}")
    return args


def main() -> int:
    """Measure, print, save, plot."""
    args = parse()
    found = hardware()
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    print(f"Prompts of {args.prompt} tokens, {args.tokens} generated, {args.threads} threads.")
    results = {
        "command": shlex.join(sys.argv),
        "hardware": found,
        "prompt": args.prompt[1],
        "tokens": args.tokens[1],
        "models": [measured(name, args) for name in args.models],
    }
    save(args.out / "server.json", results, arrivals_plot.draw)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
