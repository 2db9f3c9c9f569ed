"""The command line: embeddings of texts, one JSON object a line or one .npy file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mlx_ferrum
from mlx_ferrum import catalog, cli

if TYPE_CHECKING:
    from mlx_ferrum.models.encoder import Encoder
    from mlx_ferrum.tokenizer import Tokenizer

    from .output import Writer

CHUNK = 256  # texts that are embedded and written together
FORMATS = (".npy", ".jsonl")

EPILOG = """\
An embedding is a vector that stands for a text: texts of similar meaning have similar vectors.
The dot product of two vectors is the cosine of their angle, because vectors are scaled to length 1
(not with --raw, nor where the model's settings turn scaling off). The model's settings also say how
the vectors of a text's tokens become one: their mean, or the first or last token's. Texts that are
too long for the model are truncated, and a warning says so.

A model to start with, from the Hugging Face Hub:
  ferrum-convert hf sentence-transformers/all-MiniLM-L6-v2 minilm.gguf --type q8_0

examples:
  %(prog)s minilm.gguf "a text" "another text"
  %(prog)s minilm.gguf --file lines.txt --out vectors.npy
  cat lines.txt | %(prog)s minilm.gguf - > vectors.jsonl
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)  # texts may follow options
    if not args.texts and args.file is None:
        parser.error("no text: write some, or --file FILE, or '-' for the lines of stdin")
    if args.out is not None and args.out.suffix not in FORMATS:
        parser.error(
            f"--out: {args.out} found, expected a name that ends in {' or '.join(FORMATS)}"
        )
    cli.import_engine()
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from .output import JsonLines, opened

    if args.out is not None:
        cli.check_writable(args.out)
        read = [catalog.resolve(args.model), *([args.file] if args.file is not None else [])]
        cli.check_not_read(args.out, read)
    texts = [line for text in args.texts for line in _texts(text)]
    if args.file is not None:
        texts += _lines(_read(args.file))
    model, tokenizer = cli.load_encoder(args)
    if args.out is None:
        _write(JsonLines(sys.stdout), texts, model, tokenizer, args.raw)
        return 0
    with opened(args.out, len(texts), model.size) as writer:
        _write(writer, texts, model, tokenizer, args.raw)
    print(f"{args.out}: {len(texts)} embeddings of {model.size} numbers", file=sys.stderr)
    return 0


def _write(
    writer: Writer, texts: list[str], model: Encoder, tokenizer: Tokenizer, raw: bool
) -> None:
    from tqdm import tqdm

    hidden = True if len(texts) <= CHUNK else None  # None: where stderr is no terminal
    with tqdm(total=len(texts), unit="text", disable=hidden) as bar:
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            vectors = mlx_ferrum.embed(model, tokenizer, part, normalize=False if raw else None)
            writer.write(part, vectors)
            bar.update(len(part))


def _texts(text: str) -> list[str]:
    return _lines(cli.read_prompt(text)) if text == "-" else [text]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None


def _lines(text: str) -> list[str]:
    """Lines without their ends; empty ones are texts too, so that results can be counted."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "embed",
        description="Print the embedding of each text by an encoder such as BERT, as lines of JSON: "
        '{"text": ..., "embedding": [...]}.',
        epilog=EPILOG,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a GGUF file of an encoder, a folder that has one, or a Hugging Face repository "
        "(hf:owner/repo or hf:owner/repo:FILE)",
    )
    add(
        "texts",
        nargs="*",
        type=cli.utf8,
        metavar="TEXT",
        help="a text; '-' reads one text per line from stdin",
    )
    add("--file", type=Path, metavar="FILE", help="read one text per line from a file")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="write to a file instead, which appears when it is complete: .npy for an array of "
        "(texts, size) float32, .jsonl for the lines of JSON",
    )
    add("--raw", action="store_true", help="do not scale vectors to length 1")
    cli.backend_arguments(parser)
    return parser
