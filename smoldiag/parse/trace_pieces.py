"""The events of a chrome trace in pieces that are whole, from a stream: no more than a piece of it is in memory.

What is cut off at its end is left out; what is no JSON is looked through event by event.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

E = TypeVar("E")
Decode = Callable[[bytes], Sequence[E] | None]

PIECE_BYTES = 2 << 20
MAX_HEAD_BYTES = 64 << 20  # of what stands before the events
MAX_EVENT_BYTES = 64 << 20
SEARCHED_BYTES = 1 << 16  # from a piece's end backwards, for the end of an event
MAX_ENDS = 16  # places that may be the end of an event or of the events, looked at from the end
BOUNDARY = re.compile(rb"\}\s*,\s*\{")
ARRAY_END = re.compile(rb"\}\s*\]")
EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')


@dataclass
class State:
    """What is known at the end."""

    cut_off: bool = False
    damaged: int = 0  # events that are no JSON


def pieces(
    chunks: Iterable[bytes],
    *,
    decode: Decode[E],
    loosely: Decode[E],
    head: Callable[[bytes], None] = lambda text: None,
    state: State | None = None,
) -> Iterator[Sequence[E]]:
    """Lists of events. `decode` gives None where bytes are no JSON, `loosely` where not even nearly.

    `head` is given what stands before and behind the events. Raises ValueError where a stream is none of events.
    """
    state = state or State()
    parts = iter(chunks)
    buffer = _behind_head(parts, head)
    for chunk in parts:
        buffer += chunk
        if len(buffer) < PIECE_BYTES:
            continue
        boundaries = _last(BOUNDARY, buffer)
        cut = next(((cut, e) for cut in boundaries if (e := decode(_array(buffer, cut))) is not None), None)
        if cut:
            yield cut[1]
            buffer = buffer[cut[0] :].lstrip()[1:]
        elif boundaries:
            end = _whole(buffer, decode)
            if end:
                yield end[1]
                head(buffer[end[0] :])
                return
            yield from _one_by_one(buffer[: boundaries[0]], loosely, state)
            buffer = buffer[boundaries[0] :].lstrip()[1:]
        elif len(buffer) > MAX_EVENT_BYTES:
            raise ValueError("one event is longer than 64 MiB")
    end = _whole(buffer, decode)
    if end:
        yield end[1]
        head(buffer[end[0] :])
    elif buffer.rstrip().endswith((b"]", b"}")) and BOUNDARY.search(buffer) and ARRAY_END.search(buffer):
        yield from _one_by_one(buffer[: _last(ARRAY_END, buffer)[0]], loosely, state)
    else:
        state.cut_off = True
        if boundaries := _last(BOUNDARY, buffer):
            events = decode(_array(buffer, boundaries[0]))
            yield from [events] if events is not None else _one_by_one(buffer[: boundaries[0]], loosely, state)


def _behind_head(chunks: Iterator[bytes], head: Callable[[bytes], None]) -> bytes:
    """What was read until the events begin, without what stands before them."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        if buffer.lstrip()[:1] == b"[":
            return buffer.lstrip()[1:]
        match = EVENTS.search(buffer)
        if match:
            head(buffer[: match.start()])
            return buffer[match.end() :]
        if len(buffer) > MAX_HEAD_BYTES:
            raise ValueError("no trace events in its first 64 MiB")
    return b""


def _array(buffer: bytes, end: int) -> bytes:
    return b"".join((b"[", memoryview(buffer)[:end], b"]"))


def _last(pattern: re.Pattern[bytes], buffer: bytes) -> list[int]:
    """Behind the brackets that end the last events, the last one first."""
    near = len(buffer) - SEARCHED_BYTES if pattern is BOUNDARY else 0  # what follows the events may end alike
    for begin in (max(0, near), 0):
        found = [match.start() + 1 for match in pattern.finditer(buffer, begin)]
        if found:
            return found[: -MAX_ENDS - 1 : -1]
    return []


def _whole(buffer: bytes, decode: Decode[E]) -> tuple[int, Sequence[E]] | None:
    """Where the events end, and the events before it."""
    for end in _last(ARRAY_END, buffer) or [buffer.find(b"]")]:
        if end >= 0 and (events := decode(_array(buffer, end))) is not None:
            return end, events
    return None


def _one_by_one(buffer: bytes, loosely: Decode[E], state: State) -> Iterator[Sequence[E]]:
    begin = 0
    for match in [*BOUNDARY.finditer(buffer), None]:
        end = match.start() + 1 if match else len(buffer)
        found = loosely(b"[" + buffer[begin:end] + b"]")
        if found is None:
            state.damaged += 1
        else:
            yield found
        begin = match.end() - 1 if match else end
