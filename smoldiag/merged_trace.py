"""One trace of all ranks for Perfetto or chrome://tracing: clocks aligned, our findings in it.

Event by event, so that memory does not grow with the files. Of very large ones only what the devices did, the steps
and the annotations are taken over: the viewers can't open more.
"""

import gzip
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from smoldiag.collect.inputs import Source
from smoldiag.errors import SmoldiagError
from smoldiag.facts.trace import RankTrace
from smoldiag.findings import Finding
from smoldiag.model import timeline
from smoldiag.parse import trace

ALL_BYTES = 400e6  # of all traces as text; beyond it only what matters of them
PACKED = 15  # times a trace is larger as text than packed
KEPT = trace.DEVICE | {"user_annotation", "gpu_user_annotation"}
OURS = 0  # the process that our findings are of
PROCESSES = 1000  # numbers of processes that a rank may have
MAX_WAITS = 20_000
WRITTEN_AT_ONCE = 4096  # events


def write(path: Path, sources: Sequence[Source], traces: Sequence[RankTrace], findings: Sequence[Finding]) -> bool:
    """Whether all events are in it. SmoldiagError where the file can't be written."""
    rank_of = {t.where: t.rank for t in traces}
    with_device = [t for t in traces if len(t.start)]
    ahead = timeline.offsets(with_device)
    total = sum(s.size_bytes * (PACKED if s.packed else 1) for s in sources)
    everything = total <= ALL_BYTES
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                packed = gzip.GzipFile(path.name, "wb", 6, file) if path.suffix == ".gz" else None
                target: Any = packed or file
                _write(target, _ours(with_device, ahead, findings))
                for source in sources:
                    if source.name in rank_of:
                        rank = rank_of[source.name]
                        target.write(b",\n")
                        _write(target, _of_rank(source, rank, ahead.get(rank, 0.0), everything=everything), first=False)
                target.write(b"\n]}\n")
                if packed:
                    packed.close()
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise SmoldiagError(f"{path}: {error.strerror or error}") from None
    return everything


def _write(file: BinaryIO, events: Iterator[dict[str, Any]], *, first: bool = True) -> None:
    if first:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n')
    encode = msgspec.json.Encoder().encode
    lines: list[bytes] = []
    begun = False
    for event in events:
        lines.append(encode(event))
        if len(lines) >= WRITTEN_AT_ONCE:
            file.write((b",\n" if begun else b"") + b",\n".join(lines))
            lines, begun = [], True
    file.write((b",\n" if begun and lines else b"") + b",\n".join(lines))


def _of_rank(source: Source, rank: int, ahead: float, *, everything: bool) -> Iterator[dict[str, Any]]:
    """Its processes, flows and times, so that they are of this rank and on the common clock."""
    processes: dict[Any, int] = {}
    base = (rank + 1) * PROCESSES
    yield _named("process_name", base, f"rank {rank}")
    for event in trace.plain_events(source.raw()):
        ph, pid = event.get("ph"), event.get("pid")
        if not everything and ph != "M" and event.get("cat") not in KEPT:
            continue
        event["pid"] = base + processes.setdefault(_key(pid), len(processes)) % PROCESSES
        if isinstance(event.get("ts"), int | float):
            event["ts"] -= ahead
        if "id" in event:
            event["id"] = f"{rank}.{event['id']}"
        if ph == "M" and event.get("name") == "process_name" and isinstance(event.get("args"), dict):
            event["args"] = {"name": f"rank {rank}: {event['args'].get('name')} {pid}"}
        yield event


def _key(pid: Any) -> Any:
    return pid if isinstance(pid, str | int | float) else str(pid)


def _ours(
    traces: Sequence[RankTrace], ahead: Mapping[int, float], findings: Sequence[Finding]
) -> Iterator[dict[str, Any]]:
    """Findings over all of the time, and a bar for each time that a rank waits for a late one."""
    yield _named("process_name", OURS, "smoldiag")
    yield {"ph": "M", "name": "process_sort_index", "pid": OURS, "tid": 0, "args": {"sort_index": -1}}
    if not traces:
        return
    begin = min(t.start[0] - ahead.get(t.rank, 0.0) for t in traces)
    end = max(max(t.end) - ahead.get(t.rank, 0.0) for t in traces)
    for n, f in enumerate(findings):
        about = {
            "severity": f.severity.value,
            "ranks": list(f.where.ranks),
            "cost": f.cost,
            "why": f.why,
            "fixes": [" ".join(filter(None, (fix.do, fix.command))) for fix in f.fixes],
        }
        yield _bar(f"{f.code} {f.cause}: {f.message}", n, begin, end, about)
    first = len(findings)
    yield from (_named("thread_name", OURS, f"rank {t.rank} waits", first + row) for row, t in enumerate(traces))
    rows = {t.rank: first + row for row, t in enumerate(traces)}
    for w in timeline.waits(traces, ahead)[:MAX_WAITS]:
        yield _bar(f"waits for rank {w.last_rank} ({w.name})", rows[w.rank], w.start, w.until, {})


def _bar(name: str, tid: int, start: float, end: float, args: dict[str, Any]) -> dict[str, Any]:
    at = {"pid": OURS, "tid": tid, "ts": start, "dur": end - start}
    return {"ph": "X", "cat": "smoldiag", "name": name, **at, "args": args}


def _named(kind: str, pid: int, name: str, tid: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
