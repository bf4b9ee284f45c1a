"""`py-spy dump` text, of one process or several after each other -> Stack per thread."""

import re
from collections.abc import Iterable

from smoldiag import redact
from smoldiag.facts.flight import Frame, Stack
from smoldiag.parse.flight_recorder import named_rank

MAX_LINE = 4096
MAX_STACKS = 20_000
MAX_FRAMES = 256

_PROCESS = re.compile(r"^Process (\d{1,10}): (.*)$")
_THREAD = re.compile(r'^Thread (?:0x)?[0-9A-Fa-f]{1,16} ?(?:\(([^)]{1,40})\))?(?:: ?"([^"]{0,100})")?')
_FRAME = re.compile(r"^ {2,12}(\S.{0,200}?) \(([^()]{1,400}?)(?::(\d{1,7}))?\)$")
_RANK = re.compile(r"(?:^|\s)(?:--(?:local[-_])?rank[ =]|RANK=)(\d{1,7})\b")


def looks_like(name: str, head: bytes) -> bool:
    return re.search(rb"^Process \d+: ", head, re.MULTILINE) is not None and b"\nThread " in head


def parse(lines: Iterable[str], *, where: str) -> tuple[Stack, ...]:
    """One per thread; the rank from the command line or the file's name. ValueError where there is none."""
    pid: int | None = None
    command, rank = "", named_rank(where)
    stacks: list[tuple[int | None, str, int | None, str, bool, list[Frame]]] = []
    for raw in lines:
        line = raw[:MAX_LINE].rstrip()
        if found := _PROCESS.match(line):
            pid, command = int(found.group(1)), redact.text(found.group(2)[:300])
            named = _RANK.search(found.group(2))
            rank = int(named.group(1)) if named and "local" not in named.group(0) else named_rank(where)
        elif found := _THREAD.match(line):
            if len(stacks) >= MAX_STACKS:
                break
            state, name = found.groups()
            stacks.append((pid, command, rank, _shown(name or ""), (state or "").startswith("active"), []))
        elif stacks and (found := _FRAME.match(line)) and len(stacks[-1][-1]) < MAX_FRAMES:
            name, file, number = found.groups()
            stacks[-1][-1].append(Frame(_shown(name), _shown(file), int(number or 0)))
    if not stacks:
        raise ValueError("no stack of py-spy in it")
    return tuple(
        Stack(where=where, pid=p, command=c, rank=r, thread=t, active=a, frames=tuple(f)) for p, c, r, t, a, f in stacks
    )


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in redact.text(text))
