"""The command line of conversion: finds the command that the first argument names, and lets it read the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from mlx_ferrum import cli

COMMANDS = {
    "hf": "convert a model from Hugging Face to a GGUF file",
    "quantize": "write a GGUF file in a smaller type, with a recipe for each tensor",
    "imatrix": "measure on a text which columns of the matrices matter, for quantize --imatrix",
    "perplexity": "measure how well a model predicts a text",
    "compare": "measure how far a model is from another one, such as the one it was made of",
    "mlx": "convert a GGUF file to a folder of mlx_lm, or such a folder to a GGUF file",
    "pack": "put each expert's matrices side by side, to read experts from disk",
    "split": "write a model into several files",
    "merge": "join the files of a split model",
    "edit": "set, delete and rename metadata",
    "show": "print the metadata and the tensors of a GGUF file",
}
EPILOG = "commands:\n" + "\n".join(f"  {name:<12} {about}" for name, about in COMMANDS.items())


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in COMMANDS:
        code: int = import_module(f".commands.{given[0]}", __package__).main(given[1:])
        return code
    _parser().parse_args(given)
    raise AssertionError("the parser accepts only the commands above")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "convert",
        usage="%(prog)s COMMAND ... [--help]",
        description="Convert models to GGUF, quantize, measure, split and edit them. COMMAND --help "
        "explains a command.",
        epilog=EPILOG,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    return parser
