"""Arguments that several commands share, for the model and the sampler, and what they mean.

The models and the samplers are imported where they are used: --help needs no MLX.
"""

from __future__ import annotations

import argparse
import errno
import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx_ferrum

from . import backends, catalog
from .argument_types import (
    count,
    expert_memory,
    file_name,
    positive,
    size,
    stop_string,
    token_bias,
    token_count,
    utf8,
)
from .entry import begin, command, describe, guarded, stdin
from .parser import HelpFormatter, Parser

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .models.base import LanguageModel
    from .models.encoder import Encoder
    from .sample import Processor, Sampler
    from .tokenizer import Tokenizer

FILTERS_OFF = {"top_k": 0, "typical": 1, "top_p": 1, "min_p": 0, "xtc_probability": 0}

__all__ = [
    "HelpFormatter",
    "Parser",
    "begin",
    "command",
    "count",
    "describe",
    "file_name",
    "guarded",
    "positive",
    "size",
    "stdin",
    "stop_string",
    "token_count",
    "utf8",
]


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add -m/--model, --backend and -t/--threads."""
    group = parser.add_argument_group("model")
    model_argument(group, "--model")
    backend_arguments(group)
    expert_argument(group)
    group.add_argument(
        "--kv-bits",
        type=int,
        choices=(8, 16),
        default=16,
        help="bits of each number in keys and values; 8 takes half the memory and is less exact (default: 16)",
    )


def model_argument(group: argparse._ActionsContainer, name: str) -> None:
    """Add an argument that names a model: --model with -m, or one that is required."""
    option = name.startswith("--")
    about = (
        "a GGUF file, a folder, a Hugging Face repository (hf:owner/repo, hf:owner/repo:Q4_K_M "
        f"or hf:owner/repo:FILE), or one of {', '.join(catalog.names())}"
    )
    if option:
        about += f" (default: {catalog.DEFAULT})"
        group.add_argument("-m", name, metavar="NAME", default=catalog.DEFAULT, help=about)
    else:
        group.add_argument(name, metavar="MODEL", help=about)


def backend_arguments(group: argparse._ActionsContainer) -> None:
    """Add --backend and -t/--threads."""
    group.add_argument(
        "--backend",
        choices=backends.BACKENDS,
        help="the backend that computes (default: the fastest that works on this machine)",
    )
    group.add_argument(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="threads of the cpu backend (default: as many as cores are available)",
    )


def expert_argument(group: argparse._ActionsContainer) -> None:
    """Add --expert-memory and --mlock."""
    group.add_argument(
        "--expert-memory",
        type=expert_memory,
        metavar="SIZE",
        help="memory for the experts of a mixture, such as 8GB: the others are read from the file when they are "
        "chosen; on the cpu and metal backends. none: the whole file is mapped (default: auto, which maps a model that "
        "fits in the memory that is free and chooses a size for others)",
    )
    group.add_argument(
        "--mlock",
        action="store_true",
        help="lock the mapped weights in memory, so that they are never paged out; experts that are read from disk are "
        "not locked. The limit of the system (ulimit -l) has to allow it",
    )


def sampling_arguments(
    parser: argparse.ArgumentParser, temp: float, default: str | None = None
) -> None:
    """Add the arguments that `sampler` and `processors` read, and --logit-bias.

    temp: the default temperature; default: what the help says of it, where that is more
    """
    group = parser.add_argument_group(
        "sampling", "The filters apply in this order, and the temperature after them."
    )
    add = group.add_argument
    add(
        "--top-k",
        type=int,
        metavar="K",
        help="keep the K most likely tokens; often 40, 0 is off",
    )
    add(
        "--typical",
        type=float,
        metavar="P",
        help="keep the most typical tokens, up to a total probability of P",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="keep the most likely tokens, up to a total probability of P; often 0.9, 1 is off, 0 keeps one",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="keep tokens at least P times as likely as the most likely one; often 0.05",
    )
    add(
        "--xtc-probability",
        type=float,
        metavar="P",
        help="probability that XTC drops all top choices but the least likely one",
    )
    add(
        "--xtc-threshold",
        type=float,
        default=0.1,
        metavar="P",
        help="XTC counts a token as a top choice from probability P on (default: 0.1)",
    )
    about = "0, the most likely token; 1 with a filter" if temp == 0 else f"{temp:g}; 0 is greedy"
    add("--temp", type=float, metavar="T", help=f"temperature (default: {default or about})")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the random numbers; the same seed gives the same text",
    )
    parser.set_defaults(default_temp=temp)

    group = parser.add_argument_group(
        "penalties and bias",
        "Penalties apply to the tokens that occur in the last N, prompt included.",
    )
    add = group.add_argument
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="weaken repeated tokens by the factor X; 1 is off, often 1.1",
    )
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtract X from the logit of each repeated token",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtract X for each time that a token occurred",
    )
    add(
        "--penalty-window",
        type=int,
        default=64,
        metavar="N",
        help="look for repeated tokens among the last N; 0 is off (default: 64)",
    )
    add(
        "--logit-bias",
        type=token_bias,
        action="append",
        default=[],
        metavar="ID=BIAS",
        help="add BIAS to the logit of token ID; -inf bans it; can be repeated",
    )


def check_sampling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error if the sampling arguments are out of range.

    A filter without --temp sets temperature 1 where 0 is the default: there it would have no effect.
    """
    filters = [n for n, off in FILTERS_OFF.items() if getattr(args, n) not in (None, off)]
    if filters and args.temp is None and args.default_temp == 0:
        args.temp = 1.0
    try:
        from .sample import make_processors

        sampler(args)
        processors(args)
        make_processors(logit_bias=dict(args.logit_bias))
    except ValueError as error:
        parser.error(str(error))


def sampler(args: argparse.Namespace, tokenizer: Tokenizer | None = None) -> Sampler:
    """The sampler that the arguments ask for; XTC spares end tokens and newline of `tokenizer`."""
    from .sample import make_sampler

    return make_sampler(**sampler_options(args, tokenizer))


def sampler_options(args: argparse.Namespace, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """What `sampler` gives to `make_sampler`."""
    spared: list[int] = []
    if tokenizer is not None:
        spared = [*tokenizer.eos_token_ids, *tokenizer.encode("\n", add_special=False)]
    return {
        "temp": args.default_temp if args.temp is None else args.temp,
        "top_k": args.top_k or 0,
        "typical_p": 1.0 if args.typical is None else args.typical,
        "top_p": 1.0 if args.top_p is None else args.top_p,
        "min_p": args.min_p or 0.0,
        "xtc_probability": args.xtc_probability or 0.0,
        "xtc_threshold": args.xtc_threshold,
        "xtc_special_tokens": spared,
        "seed": args.seed,
    }


def processors(args: argparse.Namespace) -> list[Processor]:
    """The penalties that the arguments ask for; --logit-bias is for `stream_generate`."""
    from .sample import make_processors

    return make_processors(
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        penalty_window=args.penalty_window,
    )


def import_engine() -> None:
    """Import what runs models, which takes half a second, and let the work begin.

    Raises ImportError, which says what to install, if MLX cannot be imported.
    """
    for name in ("load", "sample", "generate.stream"):
        import_module(f"mlx_ferrum.{name}")
    begin()


def load_model(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer]:
    """The language model and tokenizer that --model names, on the backend that --backend names.

    Raises NotImplementedError for an encoder.
    """
    from .models.encoder import language_model

    use_backend(args)
    model, tokenizer = mlx_ferrum.load(
        args.model, expert_memory=args.expert_memory, mlock=args.mlock
    )
    return language_model(model, args.model), tokenizer


def load_encoder(args: argparse.Namespace) -> tuple[Encoder, Tokenizer]:
    """As `load_model`, for the commands that want an encoder. Raises NotImplementedError for a language model."""
    from .models.encoder import Encoder

    use_backend(args)
    model, tokenizer = mlx_ferrum.load(args.model)
    if not isinstance(model, Encoder):
        raise NotImplementedError(
            f"{args.model}: a language model of architecture {model.args.architecture} makes no embeddings, "
            "expected an encoder such as bert"
        )
    return model, tokenizer


def use_backend(args: argparse.Namespace) -> None:
    """Use the backend that --backend and --threads name; without them, the default stays."""
    if args.backend is not None or args.threads is not None:
        mlx_ferrum.use_backend(args.backend or "cpu", threads=args.threads)


def check_writable(path: str | Path) -> None:
    """Raises OSError, which names `path`, if no file can be written there. Nothing is left behind."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file, so it is not replaced", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}", str(path))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writable-"):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None


def check_not_read(path: Path, sources: Iterable[Path]) -> None:
    """Raises ValueError if an output would replace a file that the command reads."""
    if any(_is_same(path, source) for source in sources):
        raise ValueError(f"{path}: is the file that is read; name another one")


def _is_same(path: Path, source: Path) -> bool:
    """Whether two names mean one file, also one that is not there yet."""
    if path.exists() and source.exists():
        return path.samefile(source)
    return path.resolve() == source.resolve()


def read_prompt(text: str) -> str:
    """The prompt that --prompt names: "-" reads it from stdin. Raises ValueError if that is not UTF-8."""
    if text != "-":
        return text
    try:
        return stdin().buffer.read().decode()
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
        help="set the variable NAME of the chat template, such as enable_thinking=false; VALUE is "
        "JSON or text; repeatable",
    )


def template_argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, whose value is JSON where it can be read as such, else text."""
    name, equals, value = utf8(text).partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} found, expected NAME=VALUE")
    if name in ("self", "messages", "tools", "add_generation_prompt", "continue_final_message"):
        raise argparse.ArgumentTypeError(f"{name} is set by the program")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
