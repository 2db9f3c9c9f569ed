"""What the command lines share: arguments for the model and the sampler, and how failures end."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from mlx_ferrum import catalog, ops
from mlx_ferrum.load import load
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, make_processors, make_sampler
from mlx_ferrum.tokenizer import Tokenizer

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE
FILTERS = ("top_k", "typical", "top_p", "min_p", "xtc_probability")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and the options in one column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --backend and --threads."""
    group = parser.add_argument_group("model")
    model_argument(group, "--model")
    backend_arguments(group)


def model_argument(group: argparse._ActionsContainer, name: str) -> None:
    """Add an argument that names a model; one that is no option must be given."""
    option = name.startswith("--")
    default: dict[str, Any] = {"default": catalog.DEFAULT} if option else {}
    group.add_argument(
        name,
        metavar="NAME" if option else "MODEL",
        help=f"a GGUF file, a folder, hf:owner/repo[:file], or one of {', '.join(catalog.names())}"
        + (f" (default: {catalog.DEFAULT})" if option else ""),
        **default,
    )


def backend_arguments(group: argparse._ActionsContainer) -> None:
    """Add --backend and --threads."""
    group.add_argument(
        "--backend",
        choices=ops.BACKENDS,
        help="what runs the operations (default: the fastest that works here)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="of the cpu backend (default: the cores that this process may use)",
    )


def sampling_arguments(parser: argparse.ArgumentParser, temp: float) -> None:
    """Add the arguments that `sampler` and `processors` read, and --logit-bias.

    temp: the default temperature
    """
    group = parser.add_argument_group(
        "sampling", "The filters work in the order of this list, then the temperature."
    )
    add = group.add_argument
    add("--top-k", type=int, metavar="K", help="keep the K most likely tokens; 40 is usual")
    add(
        "--typical",
        type=float,
        metavar="P",
        help="keep the tokens of most typical surprise that make up P",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="keep the most likely tokens that make up P; 0.9 is usual",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="keep tokens at least P times as likely as the best; 0.05",
    )
    add(
        "--xtc-probability",
        type=float,
        metavar="P",
        help="how often XTC drops all top choices but the last",
    )
    add(
        "--xtc-threshold",
        type=float,
        default=0.1,
        metavar="P",
        help="what makes a top choice: probability P (default: 0.1)",
    )
    about = "0 always takes the most likely token" if temp == 0 else "0 is greedy"
    add("--temp", type=float, metavar="T", help=f"temperature; {about} (default: {temp:g})")
    add("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.set_defaults(default_temp=temp)

    group = parser.add_argument_group(
        "penalties and bias", "For tokens among the last N, the prompt's included."
    )
    add = group.add_argument
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="divides the logit of a token that occurred; 1.1 is usual",
    )
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtracted once from the logit of a token that occurred",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtracted per occurrence",
    )
    add(
        "--penalty-window",
        type=int,
        default=64,
        metavar="N",
        help="the N of the above (default: 64)",
    )
    add(
        "--logit-bias",
        type=_token_bias,
        action="append",
        default=[],
        metavar="ID=BIAS",
        help="add BIAS to a token's logit; -inf bans it; repeatable",
    )


def check_sampling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error if the sampling arguments are out of range or without effect."""
    chosen = [name for name in FILTERS if getattr(args, name) is not None]
    if chosen and args.temp is None and args.default_temp == 0:
        flag = "--" + chosen[0].replace("_", "-")
        parser.error(f"argument {flag}: has no effect at temperature 0, give --temp as well")
    try:
        sampler(args)
        processors(args)
        make_processors(logit_bias=dict(args.logit_bias))
    except ValueError as error:
        parser.error(str(error))


def sampler(args: argparse.Namespace, tokenizer: Tokenizer | None = None) -> Sampler:
    """The sampler that the arguments ask for; XTC spares end tokens and newline of `tokenizer`."""
    spared: list[int] = []
    if tokenizer is not None:
        spared = [*tokenizer.eos_token_ids, *tokenizer.encode("\n", add_special=False)]
    return make_sampler(
        args.default_temp if args.temp is None else args.temp,
        top_k=args.top_k or 0,
        typical_p=1.0 if args.typical is None else args.typical,
        top_p=1.0 if args.top_p is None else args.top_p,
        min_p=args.min_p or 0.0,
        xtc_probability=args.xtc_probability or 0.0,
        xtc_threshold=args.xtc_threshold,
        xtc_special_tokens=spared,
        seed=args.seed,
    )


def processors(args: argparse.Namespace) -> list[Processor]:
    """The penalties that the arguments ask for; --logit-bias is for `stream_generate`."""
    return make_processors(
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        penalty_window=args.penalty_window,
    )


def load_model(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer]:
    """The model and tokenizer that --model names, on the backend that --backend names."""
    if args.backend is not None or args.threads is not None:
        ops.use_backend(args.backend or "cpu", threads=args.threads)
    return load(args.model)


def token_count(text: str) -> int:
    """The type of --max-tokens: 1 or more, or -1."""
    value = int(text)
    if value != -1 and value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more, nor -1 for no limit")
    return value


def positive(text: str) -> int:
    """The type of sizes: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def count(text: str) -> int:
    """The type of numbers that may be 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not 0 or more")
    return value


def read_prompt(text: str) -> str:
    """The prompt that --prompt names: "-" reads it from stdin. Raises ValueError for what is no UTF-8."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"stdin is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None


def prompt_arguments(group: argparse._ArgumentGroup) -> None:
    """Options of the chat template: the system message, and what else the template knows."""
    group.add_argument(
        "--system", "--system-prompt", type=utf8, metavar="TEXT", help="the system message"
    )
    group.add_argument(
        "--template-arg",
        type=template_argument,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set what the chat template calls NAME, as in enable_thinking=false; VALUE is JSON or "
        "text; repeatable",
    )


def template_argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, whose value is JSON where it can be read as such, else text."""
    name, equals, value = utf8(text).partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} found, expected NAME=VALUE")
    if name in ("self", "messages", "tools", "add_generation_prompt", "continue_final_message"):
        raise argparse.ArgumentTypeError(f"{name} is not the user's to set")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def stop_string(text: str) -> str:
    """The type of --stop: text, and some."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return utf8(text)


def utf8(text: str) -> str:
    """The type of arguments that go to the model: UTF-8, whatever the locale is."""
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError("is not valid UTF-8") from None


def guarded(body: Callable[[], int]) -> int:
    """The exit code of a command: failures are one line on stderr, Ctrl-C and closed pipes none."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    try:
        code = body()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is still buffered would fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, RuntimeError, OSError) as error:  # MLX and backends raise RuntimeError
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def describe(error: Exception) -> str:
    """An error in one line, for people."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _token_bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID=BIAS, such as 42=-1.5") from None
