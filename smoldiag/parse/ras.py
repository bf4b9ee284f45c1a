"""NCCL's RAS reports (2.24 and later), text and JSON, and the lines of its diagnostics (2.31 and later)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from smoldiag import redact
from smoldiag.facts import Evidence
from smoldiag.facts.flight import Diagnostic, Ras, RasComm, RasRank

MAX_JSON_BYTES = 64 * 2**20
MAX_LINE = 2048
MAX_LINES = 200_000
MAX_RANKS = 65_536
MAX_EVIDENCE = 12

_VERSION = re.compile(r"NCCL version (\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")
_ROW = re.compile(
    r"^\s*(\d{1,6})\s+(\d{1,6})\s+[\d-]{1,13}\s+[\d-]{1,13}\s+([\d-]{1,13})\s+\d{1,8}\s+([A-Z]+)\s+([A-Z]+)"
)
_COMM = re.compile(r"^\s*#(\d{1,6}-\d{1,6}) \(([^)]{1,80})\) ([A-Z]+)")
_SECTION = re.compile(r"^\s*(DEAD|INCOMPLETE|TIMEOUT|MISMATCH|ERROR)\s*$")
_PROCESS = re.compile(r"Process (\d{1,10}) on node (\S{1,255}) managing GPUs? (\d{1,4})")
_MISSING = re.compile(r"The missing ranks?: ([\d, ]{1,4000})")
_COUNT = re.compile(
    r"(\d{1,7}) ranks? (?:have|has) launched (?:up to operation (\d{1,18})|(\d{1,18}) (\w{1,40}) operations?)"
)
_RANK = re.compile(r"Rank (\d{1,7}) -- GPU (\d{1,4}) managed by process (\d{1,10}) on node (\S{1,255})")
_DIAG = re.compile(r"NCCL DIAG \[(\w{1,10})\] +([^:]{1,80}): (.{1,1000})$")
_EVENT = re.compile(r"PEER_DEAD: Process (\d{1,10}) on node (\S{1,255}) managing GPUs? (\d{1,4})")


@dataclass(kw_only=True)
class _Comm:
    id: str
    errors: str
    ranks: dict[int, RasRank] = field(default_factory=dict)
    evidence: list[Evidence] = field(default_factory=list)


class _Status(msgspec.Struct):
    unresponsive: bool = False
    considered_dead: bool = False


class _JsonRank(msgspec.Struct):
    rank: int = -1
    host: str = ""
    pid: int | None = None
    cuda_dev: int | None = None
    status: _Status = msgspec.field(default_factory=_Status)
    collective_counts: dict[str, int] = {}


class _JsonComm(msgspec.Struct):
    hash: str = ""
    size: int | None = None
    ranks: list[_JsonRank] = []
    missing_ranks: list[_JsonRank] = []


class _Json(msgspec.Struct):
    communicators: list[_JsonComm]
    nccl_version: str | None = None


def is_report(head: bytes) -> bool:
    text = b"Communicators..." in head and (b"Job summary" in head or b"in group" in head)
    return text or (b'"communicators"' in head and b'"communicators_count"' in head)


def has_diagnostics(name: str, head: bytes) -> bool:
    return b"NCCL DIAG [" in head


def wants(line: str) -> bool:
    return "NCCL DIAG [" in line


def parse(data: bytes, *, where: str) -> Ras:
    """A report. Several in one file are one after the other in `comms`. ValueError where it is none."""
    if data.lstrip()[:1] == b"{":
        return _of_json(data, where)
    return _of_text(data.decode("utf-8", "replace").splitlines()[:MAX_LINES], where)


def diagnostics(lines: Iterable[str], *, where: str) -> tuple[Diagnostic, ...]:
    """The lines `NCCL DIAG [LEVEL] check: text`."""
    return tuple(_diagnostics(lines, where))


def _diagnostics(lines: Iterable[str], where: str) -> Iterator[Diagnostic]:
    for number, line in enumerate(lines, 1):
        found = _DIAG.search(line[:MAX_LINE].rstrip())
        if found:
            level, check, text = found.groups()
            evidence = Evidence(text=_shown(line), where=f"{where}:{number}")
            yield Diagnostic(level=level.upper(), check=check.strip(), text=_shown(text), evidence=evidence)


def _shown(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in redact.text(line.strip()[:400]))


def _of_json(data: bytes, where: str) -> Ras:
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"a RAS report of {len(data) / 2**20:.0f} MiB")
    try:
        made = msgspec.json.decode(data, type=_Json)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a whole RAS report in JSON ({error})") from None
    return Ras(
        where=where,
        version=made.nccl_version,
        comms=tuple(_comm_of_json(c, where) for c in made.communicators),
    )


def _comm_of_json(c: _JsonComm, where: str) -> RasComm:
    here = [_rank_of_json(r, "ok") for r in c.ranks[:MAX_RANKS]]
    gone = [_rank_of_json(r, _state(r.status)) for r in c.missing_ranks[:MAX_RANKS]]
    texts = [f"rank {r.rank} on {r.host}, pid {r.pid}: {r.state}" for r in gone[:MAX_EVIDENCE]]
    return RasComm(
        id=_shown(c.hash),
        size=c.size,
        errors="INCOMPLETE" if gone else "",
        ranks=tuple(here + gone),
        evidence=tuple(Evidence(text=text, where=where) for text in texts),
    )


def _state(status: _Status) -> str:
    return "dead" if status.considered_dead else "unresponsive" if status.unresponsive else "missing"


def _rank_of_json(r: _JsonRank, state: str) -> RasRank:
    counts = {_shown(op): count for op, count in r.collective_counts.items()}
    return RasRank(rank=r.rank, host=_shown(r.host), pid=r.pid, gpu=r.cuda_dev, state=state, counts=counts)


def _of_text(lines: Iterable[str], where: str) -> Ras:
    version: str | None = None
    rows: dict[str, tuple[int | None, str, str]] = {}
    comms: dict[str, _Comm] = {}
    notes: list[Evidence] = []
    current: _Comm | None = None
    section, count = "", ("", 0)
    dead: dict[tuple[str, int], str] = {}  # (host, pid) -> dead | unresponsive
    for number, raw in enumerate(lines, 1):
        line = raw[:MAX_LINE]
        evidence = Evidence(text=_shown(line), where=f"{where}:{number}")
        if found := _VERSION.search(line):
            version = version or found.group(1)
        if row := _ROW.match(line):
            size = int(row.group(3)) if row.group(3).isdigit() else None
            rows[row.group(1)] = (size, row.group(4), row.group(5))
        elif found := _COMM.match(line):
            current = comms.setdefault(
                found.group(1), _Comm(id=f"#{found.group(1)} ({found.group(2)})", errors=found.group(3))
            )
            current.evidence.append(evidence)
            count = ("", 0)
        elif found := _SECTION.match(line):
            section, current = found.group(1), None
        elif found := _PROCESS.search(line):
            is_dead = section == "DEAD" or "PEER_DEAD" in line
            dead[found.group(2), int(found.group(1))] = "dead" if is_dead else "unresponsive"
            notes.append(evidence)
        elif current and (found := _COUNT.search(line)):
            total = found.group(2) or found.group(3)
            count = (found.group(4) or "operations", int(total))
            current.evidence.append(evidence)
        elif current and (found := _RANK.search(line)):
            rank, gpu, pid, host = found.groups()
            counts = {count[0]: count[1]} if count[0] else {}
            current.ranks[int(rank)] = RasRank(rank=int(rank), host=host, pid=int(pid), gpu=int(gpu), counts=counts)
            current.evidence.append(evidence)
        elif current and (found := _MISSING.search(line)):
            for rank in re.findall(r"\d{1,7}", found.group(1))[:MAX_RANKS]:
                current.ranks[int(rank)] = _gone(int(rank), dead)
            current.evidence.append(evidence)
    if not rows and not comms and not notes:
        raise ValueError("no report of NCCL's RAS")
    return Ras(
        where=where,
        version=version,
        comms=tuple(_comm(key, c, rows) for key, c in comms.items()),
        notes=tuple(notes[:MAX_EVIDENCE]),
    )


def _gone(rank: int, dead: dict[tuple[str, int], str]) -> RasRank:
    """With its process, where only one is gone."""
    if len(dead) == 1:
        ((host, pid), state) = next(iter(dead.items()))
        return RasRank(rank=rank, host=host, pid=pid, state=state)
    return RasRank(rank=rank, state="dead" if dead and set(dead.values()) == {"dead"} else "unresponsive")


def _comm(key: str, c: _Comm, rows: dict[str, tuple[int | None, str, str]]) -> RasComm:
    size, status, _ = rows.get(key.partition("-")[0], (None, "", ""))
    return RasComm(
        id=c.id,
        size=size,
        status=status,
        errors=c.errors,
        ranks=tuple(c.ranks[r] for r in sorted(c.ranks)),
        evidence=tuple(c.evidence[:MAX_EVIDENCE]),
    )
