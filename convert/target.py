"""Where a command writes: the options that all of them share, and what is checked before any work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ferrum import cli, notice

if TYPE_CHECKING:
    from mlx_ferrum import gguf

    from .huggingface import Plan
    from .output import File


def arguments(parser: argparse.ArgumentParser, also: str = "") -> None:
    """Add --dry-run and --force. also: what else --force does."""
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be written, and write nothing"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"replace existing files, which are kept otherwise{also}",
    )


def check(paths: Iterable[Path], sources: Sequence[Path], force: bool) -> None:
    """Raises an error if a file cannot be written, is one of the sources, or exists and must not be replaced."""
    for path in paths:
        cli.check_writable(path)
        cli.check_not_read(path, sources)
        if os.path.lexists(path) and not force:
            raise FileExistsError(f"{path}: is there already; --force replaces it")


def run(files: Sequence[File], source: gguf.GGUF, args: argparse.Namespace) -> None:
    """Check and write `files`, or print what they would hold if --dry-run is given."""
    from .output import table, write_files  # the packages that --help does without

    check([file.path for file in files], [part.path for part in source.files], args.force)
    if args.dry_run:
        for file in files:
            print(f"{file.path}")
            for line in table(file.tensors):
                print(line)
        return
    write_files(files)
    source.check()
    for file in files:
        print(f"{file.path}: {file.path.stat().st_size:,} bytes")


def run_plan(plan: Plan, out: Path, dry_run: bool) -> None:
    """Write the GGUF file that is made of a folder, and say what was lost; or print what it would hold."""
    from .output import table, write

    if dry_run:
        print(*table(plan.tensors), sep="\n")
        return
    write(out, plan.metadata, plan.tensors)
    for line in plan.errors.notices():
        notice.warn(line)
    print(f"{out}: {len(plan.tensors)} tensors, {out.stat().st_size:,} bytes")
