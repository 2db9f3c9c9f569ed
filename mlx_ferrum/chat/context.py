"""Which turns of a conversation the model sees when not all of them fit its context.

A turn is a user message and what follows it up to the next one. Turns are dropped whole, the oldest
first, so that templates which demand that user and assistant alternate still accept the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache

Message = dict[str, str]
RESERVE = 8  # at most this part of the context is kept free for a reply: context // RESERVE


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where each turn starts: at a user message, the first turn at what precedes its user message."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [len(_head(messages)), *starts[1:]] if starts else []


def last_user(messages: Sequence[Message]) -> int | None:
    """The index of the last user message, None if there is none."""
    return max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)


def visible(messages: Sequence[Message], hidden: int) -> list[Message]:
    """The messages without the `hidden` oldest turns; the system message always stays."""
    if not hidden:
        return list(messages)
    return [*_head(messages), *messages[turn_starts(messages)[hidden] :]]


def fit(
    messages: Sequence[Message],
    hidden: int,
    encode: Callable[[list[Message]], list[int]],
    *,
    context: int,
    reply: int,
    drop: bool = False,
) -> tuple[list[int], int]:
    """The prompt that fits the context, and how many turns it leaves out.

    Nothing is dropped while the prompt and a reserve for the reply fit. Else the oldest turns are
    dropped until the prompt takes at most half of the context: each drop costs a new prefill.

    Args:
        messages: the last one is the user message to answer.
        hidden: turns that are left out already, fewer than there are.
        encode: messages to the token ids of their prompt.
        context: tokens that prompt and reply may have together.
        reply: tokens that the reply may have; the reserve is this or `context // RESERVE`.
        drop: drop at least one turn, if there is more than one.

    Raises:
        ValueError: the last message alone leaves no room for a reply.
    """
    ids = cache(lambda n: encode(visible(messages, n)))
    last = len(turn_starts(messages)) - 1
    reserve = max(min(reply, context // RESERVE), 1)
    least = min(hidden + drop, last)
    if least == hidden and len(ids(hidden)) + reserve <= context:
        return ids(hidden), hidden
    alone = len(ids(last))
    if alone >= context:
        raise ValueError(
            f"the message makes a prompt of {alone} tokens, which leaves no room for a reply in the "
            f"context of {context} tokens"
        )
    limit = next((n for n in (context // 2, context - reserve) if alone <= n), alone)
    chosen = bisect_left(range(last), True, least, key=lambda n: len(ids(n)) <= limit)
    return ids(chosen), chosen


def _head(messages: Sequence[Message]) -> Sequence[Message]:
    """The system message, if there is one."""
    return messages[:1] if messages and messages[0]["role"] == "system" else []
