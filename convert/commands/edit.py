"""`edit IN OUT.gguf --set KEY=VALUE`: metadata changed, tensors as they are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import catalog, cli

if TYPE_CHECKING:
    from mlx_ferrum import gguf

    from .. import output
    from ..edits import Edit

EPILOG = """\
types: uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64 bool string, or u32, f32 and
so on; with [] for an array, whose value is JSON. A key that is there keeps its type, a new one needs one.

examples:
  %(prog)s in.gguf out.gguf --set llama.context_length=8192
  %(prog)s in.gguf --in-place --set tokenizer.ggml.add_bos_token:bool=false
  %(prog)s in.gguf --in-place --chat-template template.jinja
  %(prog)s in.gguf out.gguf --set 'my.numbers:int32[]=[1, 2]' --delete general.url --dry-run
"""


@cli.command
def main(argv: Sequence[str] | None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.in_place == (args.out is not None):
        parser.error("expected either OUT.gguf or --in-place")
    if not args.edits and args.chat_template is None:
        parser.error("nothing to do: expected --set, --delete, --rename or --chat-template")
    from .. import edits, output, source

    cli.begin()
    if args.in_place and (args.model in catalog.names() or args.model.startswith("hf:")):
        raise ValueError(f"{args.model}: --in-place takes a file of your own; name OUT.gguf")
    model = source.read(args.model)
    if len(model.parts) > 1:
        raise ValueError(f"{model.path}: is split in {len(model.parts)} files; merge it first")
    before = source.metadata(model)
    asked = list(args.edits)
    if args.chat_template is not None:
        asked.append(edits.template(args.chat_template))
    after = edits.apply(before, asked, force=args.force)
    lines = list(edits.changes(before, after))
    print("\n".join(lines) or "no change")
    tensors = [source.copied(model, info) for info in model.tensors.values()]
    _write(args, model, output.File(_out(args, model.path), after, tensors))
    return 0


def _out(args: argparse.Namespace, path: Path) -> Path:
    """In place, the file itself and not a link to it is replaced."""
    return path.resolve() if args.in_place else Path(args.out)


def _write(args: argparse.Namespace, model: gguf.GGUF, file: output.File) -> None:
    from .. import output, target

    if args.in_place:
        cli.check_writable(file.path)
    else:
        read = [part.path for part in model.files]
        if args.chat_template is not None:
            read.append(args.chat_template)
        target.check([file.path], read, args.force)
    if args.dry_run:
        return
    output.write_files([file], mode=file.path.stat().st_mode if args.in_place else None)
    print(f"{file.path}: {file.path.stat().st_size:,} bytes")


def _edit(name: str) -> Callable[[str], Edit]:
    """A function of edits.py, imported when it is called: --help does without its packages."""

    def parse(text: str) -> Edit:
        from .. import edits

        parsed: Edit = getattr(edits, name)(text)
        return parsed

    return parse


def _parser() -> argparse.ArgumentParser:
    from ..target import arguments

    parser = cli.Parser(
        "convert edit",
        description="Change the metadata of a GGUF file: set, delete and rename keys, in the order "
        "given. Tensors and all other values are copied bit for bit, also with --in-place: the new file takes the "
        "place of the old one when it is complete.",
        epilog=EPILOG,
    )
    cli.model_argument(parser, "model")
    add = parser.add_argument
    add("out", type=Path, nargs="?", metavar="OUT.gguf", help="the file to write")
    add("--in-place", action="store_true", help="replace the file that is read")
    for name, kind, metavar, about in (
        ("--set", _edit("parse_set"), "KEY[:TYPE]=VALUE", "set a value"),
        ("--delete", _edit("Delete"), "KEY", "delete a value"),
        ("--rename", _edit("parse_rename"), "OLD=NEW", "give a value another key"),
    ):
        add(
            name,
            dest="edits",
            action="append",
            default=[],
            type=kind,
            metavar=metavar,
            help=f"{about}; repeatable",
        )
    add("--chat-template", type=Path, metavar="FILE", help="set the chat template to this text")
    arguments(parser, ", and change general.architecture, general.alignment and split.*")
    return parser
