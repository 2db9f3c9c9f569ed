"""The items that a response is made of, and the events that tell how they grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mlx_ferrum.replies import Piece as Part

from . import form

PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
KINDS = {"text": "message", "failed": "message", "reasoning": "reasoning", "call": "function_call"}


class Output:
    """Takes the parts of a reply in order.

    items: complete ones, and at the end the one that grows
    """

    def __init__(self, event: Callable[..., bytes]) -> None:
        """event: makes the bytes of an event of a type and its values."""
        self._event = event
        self.items: list[dict[str, Any]] = []
        self._is_open = False

    def add(self, part: Part, logprobs: list[Any]) -> bytes:
        """Take a part. logprobs: of tokens of a text."""
        if part.kind == "arguments":
            return self._arguments(part.text)
        kind = KINDS[part.kind]
        is_fresh = not self._is_open or self.items[-1]["type"] != kind or part.kind == "call"
        status = "incomplete" if part.kind == "failed" else "completed"
        out = self.close(status) + self._begin(kind, part) if is_fresh else b""
        return out if part.kind == "call" else out + self._text(kind, part.text, logprobs)

    def _begin(self, kind: str, part: Part) -> bytes:
        item: dict[str, Any] = {
            "id": form.new_id(PREFIXES[kind]),
            "type": kind,
            "status": "in_progress",
        }
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            item |= {"call_id": part.id, "name": part.name, "arguments": ""}
        self.items.append(item)
        self._is_open = True
        out = self._event("response.output_item.added", output_index=self._index, item=item)
        if kind == "function_call":
            return out
        content = {"type": "reasoning_text", "text": ""}
        if kind == "message":
            content = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}  # type: ignore[dict-item]
        out += self._event("response.content_part.added", **self._place, part=content)
        item["content"] = [content]
        return out

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": self._index, "content_index": 0}

    def _text(self, kind: str, text: str, logprobs: list[Any]) -> bytes:
        [content] = self.items[-1]["content"]
        content["text"] += text
        if kind == "reasoning":
            return self._event("response.reasoning_text.delta", **self._place, delta=text)
        content["logprobs"] += logprobs
        return self._event(
            "response.output_text.delta", **self._place, delta=text, logprobs=logprobs
        )

    def _arguments(self, text: str) -> bytes:
        self.items[-1]["arguments"] += text
        place = {"item_id": self.items[-1]["id"], "output_index": self._index}
        return self._event("response.function_call_arguments.delta", **place, delta=text)

    def close(self, status: str) -> bytes:
        """End the item that grows, if there is one."""
        if not self._is_open:
            return b""
        self._is_open = False
        item = self.items[-1]
        item["status"], place = status, self._place
        if item["type"] == "function_call":
            del place["content_index"]
            done = {"name": item["name"], "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", **place, **done)
        else:
            [content] = item["content"]
            is_text = item["type"] == "message"
            done = {"text": content["text"]} | (
                {"logprobs": content["logprobs"]} if is_text else {}
            )
            name = "output_text" if is_text else "reasoning_text"
            out = self._event(f"response.{name}.done", **place, **done)
            out += self._event("response.content_part.done", **place, part=content)
        return out + self._event("response.output_item.done", output_index=self._index, item=item)

    def message(self) -> dict[str, Any]:
        """All of it, as a chat template reads it."""
        made: dict[str, Any] = {"role": "assistant", "content": ""}
        for item in self.items:
            if item["type"] == "message":
                made["content"] += item["content"][0]["text"]
            elif item["type"] == "reasoning":
                made["reasoning_content"] = item["content"][0]["text"]
            elif item["status"] == "completed":
                function = {
                    "name": item["name"],
                    "arguments": json.loads(item["arguments"] or "{}"),
                }
                call = {"id": item["call_id"], "type": "function", "function": function}
                made.setdefault("tool_calls", []).append(call)
        return made
