"""`compare BASE OTHER…`: how far models are from the one that they were made from."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, drawing, entry, notice

from .. import chunks

if TYPE_CHECKING:
    from ..comparison import Comparison

EPILOG = """\
Without --text only the tensors are compared. Their error is rms(b - a) / rms(a), where a is the base's
tensor and b the other's. To first order the loss grows with the sum of the squares of these errors;
"share" is a tensor's part of that sum. Two tables show the error of each type and the 20 worst tensors.

With --text the models read the text side by side, in chunks, as `perplexity` does: the second half of
each chunk is scored. For each scored token:
  KL              how far the other's distribution is from the base's, KL(base || other), in nats: 0 is
                  equal, 0.01 hardly noticeable, 0.1 a clear loss
  same top token  the share of tokens for which both find the same token the most likely
  RMS of dp       root mean square of the difference of the probabilities of the text's tokens
  ratio to base   of the perplexities
Values after +- are standard errors; they assume independent tokens. llama-perplexity --kl-divergence
measures the same. Its KLs of quantized models are larger by about 0.004, because llama.cpp rounds
activations to 8 bits on a CPU, and its "PPL(base)" comes from rounded logits.

--logits keeps the base's logits for later comparisons on the same text, chunks and backend. Each scored
token takes 2 bytes times the vocabulary: a chunk of 512 tokens takes 25 MB with a vocabulary of 49,152, and
134 MB with 262,144. Each logit is rounded to 1/65535 of the range at its position, often 0.0005 nats; the mean KL
changes by less than 1e-6. A stopped or killed run resumes from the file. A file that belongs to another
model, text, chunk size or backend is refused. Ctrl-C prints the results so far.

Memory: the files are mapped. In addition each model needs memory for a prompt of one chunk, the logits of
64 positions of two models are held (134 MB for a vocabulary of 262,144), and 100 MB are used otherwise.

examples:
  %(prog)s model-f16.gguf model-q4.gguf
  %(prog)s model-f16.gguf model-q4.gguf --text text.txt --chunks 20
  %(prog)s model-f16.gguf q2.gguf q3.gguf q4.gguf --text text.txt --logits f16.logits \\
      --plots pictures
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    cli.import_engine()
    cli.use_backend(args)
    comparison, is_stopped = _compare(args)
    _print(comparison, args)
    if args.plots is not None:
        from .. import pictures

        pictures.write(comparison, args.plots)
    return entry.INTERRUPTED if is_stopped else 0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be refused before any work."""
    needs_text = {
        "--logits": args.logits,
        "--chunks": args.chunks,
        "--chunk-size": args.chunk_size,
    }
    for option, value in needs_text.items():
        if args.text is None and value is not None:
            parser.error(f"{option} needs --text")
    if args.text is None and args.no_tensors:
        parser.error("--no-tensors needs --text: there is nothing else to compare")
    if args.plots is not None:
        drawing.check_installed()
        if not args.plots.is_dir():
            args.plots.mkdir()
        cli.check_writable(args.plots / "error.png")
    for path in _outputs(args):
        cli.check_writable(path)
    if len({path.resolve() for path in _outputs(args)}) < len(_outputs(args)):
        parser.error("--logits and --json name the same file")


def _outputs(args: argparse.Namespace) -> list[Path]:
    paths = (args.logits, None if args.json in (None, "-") else Path(args.json))
    return [path for path in paths if path is not None]


def _compare(args: argparse.Namespace) -> tuple[Comparison, bool]:
    """What is known, and whether Ctrl-C ended the work."""
    from .. import comparing, tensor_errors

    names = [args.base, *args.others]
    files = [comparing.open_model(name) for name in names]
    sources = [part.path for file in files for part in file.files]
    for path in _outputs(args):
        cli.check_not_read(path, [*sources, *([args.text] if args.text is not None else [])])
    reading, errors, is_stopped = None, [], False
    if args.text is not None:
        count, size = args.chunks, args.chunk_size
        reading = comparing.Reading.of(names, files, args.text, count=count, size=size)
    try:
        if reading is not None:
            reading.run(args.logits)
        if not args.no_tensors:
            errors += [tensor_errors.measure(files[0], file) for file in files[1:]]
    except KeyboardInterrupt:
        if reading is None or not reading.done:
            raise
        notice.warn("stopped: this is what was known")
        is_stopped = True
    missing = [None] * (len(args.others) - len(errors))
    return comparing.result(names, files, reading, [*errors, *missing]), is_stopped


def _print(comparison: Comparison, args: argparse.Namespace) -> None:
    from .. import comparison_report

    if args.json is not None:
        line = json.dumps(comparison_report.as_json(comparison)) + "\n"
        if args.json == "-":
            sys.stdout.write(line)
            return
        _write(Path(args.json), line)
    print(*comparison_report.as_text(comparison, is_all=args.all), sep="\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compare-") as folder:
        temporary = Path(folder) / "new"
        temporary.write_text(text)
        temporary.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "convert compare",
        description="Compare models with a base that has the same vocabulary, such as the float model that "
        "they were quantized from: tensor by tensor, and by their predictions on a text.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    cli.model_argument(parser, "base")
    add("others", nargs="+", metavar="OTHER", help="models to compare with the base")
    add("--text", type=Path, metavar="FILE", help="a text file that the models read")
    chunks.arguments(parser)
    add("--logits", type=Path, metavar="FILE", help="keep the base's logits in FILE, and use them")
    add("--all", action="store_true", help="list every tensor, not only the worst 20")
    add("--no-tensors", action="store_true", help="compare on the text only")
    add(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="draw KL over size, KL over tokens, and the errors by layer, as PNG files",
    )
    add("--json", metavar="FILE", help="write one JSON object, with every tensor; '-' is stdout")
    cli.backend_arguments(parser)
    return parser
