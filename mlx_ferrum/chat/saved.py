"""Conversations in JSON files: `{"messages": [{"role": …, "content": …}, …]}`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .context import Message

ROLES = ("system", "user", "assistant")


def write(path: Path, messages: Sequence[Message]) -> None:
    """Write messages to a file, which appears or is replaced once the new one is complete.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    text = json.dumps({"messages": list(messages)}, ensure_ascii=False, indent=1)
    target = Path(os.path.realpath(path))  # a link stays, the file that it names is replaced
    partial = target.parent / f".ferrum-chat.{os.getpid()}"
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def read(path: Path) -> list[Message]:
    """The messages of a file.

    Raises:
        ValueError: the file is not a saved conversation.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list):
        raise ValueError(f'{path} is not a saved conversation: expected an object with "messages"')
    for index, message in enumerate(messages):
        good = isinstance(message, dict) and message.get("role") in ROLES
        if not good or not _is_text(message.get("content")):
            raise ValueError(
                f"{path}: message {index} is not a role ({', '.join(ROLES)}) with a text as content"
            )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_text(content: object) -> bool:
    """Whether it is a string that can be encoded: JSON can hold half of a surrogate pair."""
    return isinstance(content, str) and content.encode(errors="ignore").decode() == content
