"""PyTorch's Flight Recorder dumps (2.1 to 2.10, NCCL, gloo and others), as pickle or JSON -> Dump.

Pickles go through `plain_pickle`. What is kept of an operation is its place in the group's order, its state and which
Call it is; equal calls are one object over all dumps of a job, so that two million operations fit into 200 MB.
"""

import gc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from smoldiag import redact
from smoldiag.facts.flight import ENDED, SCHEDULED, STARTED, TIMED_OUT, Call, Dump, Frame, Track
from smoldiag.parse import plain_pickle

MAX_JSON_BYTES = 256 * 2**20
MAX_FRAMES = 128  # of a stack
MAX_TEXT = 300  # of a name in it
MAX_RANKS = 1_000_000
LEGACY_CHECKPOINT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch/serialization.py MAGIC_NUMBER
DEVICE_BACKENDS = {"nccl", "ncclx", "rccl", "rcclx", "xccl", "mccl", "hccl"}  # retired before completed: timed out

_KEYS = (b"pg_config", b"collective_seq_id", b"profiling_name", b"nccl_comm_state", b"pg_status", b"comm_lib_version")
_OLD_PICKLE = re.compile(rb"c[\w.]{1,80}\n[\w.]{1,80}\n")  # protocol 0, that begins with an import
_EXTENSION = re.compile(r"(?:\.(?:pickle|pkl|json|bin|dump|txt|log|gz|zst|xz))+$", re.IGNORECASE)
_RANK = re.compile(r"rank[_\-.=]?(\d{1,7})(?!\d)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(\d{1,7})$")
_R_NUMBER = re.compile(r"(?:^|[._/-])r(\d{1,7})(?=[._/-]|$)", re.IGNORECASE)
_PEERS = re.compile(r"(?:send|recv) (\d{1,7})(->|<-)(\d{1,7})")

_DEFAULTS: dict[str, Any] = {
    "record_id": 0,
    "process_group": ("", ""),
    "collective_seq_id": 0,
    "p2p_seq_id": 0,
    "profiling_name": "",
    "time_created_ns": 0,
    "time_discovered_started_ns": 0,
    "time_discovered_completed_ns": 0,
    "state": "",
    "retired": False,
    "is_p2p": False,
    "timeout_ms": None,
    "input_sizes": (),
    "output_sizes": (),
    "input_dtypes": (),
    "output_dtypes": (),
    "frames": (),
}
_FIELDS = itemgetter(*_DEFAULTS)


class _Entry(msgspec.Struct, gc=False):
    record_id: int = 0
    process_group: list[str] = msgspec.field(default_factory=lambda: ["", ""])
    collective_seq_id: int = 0
    p2p_seq_id: int = 0
    profiling_name: str = ""
    time_created_ns: int = 0
    time_discovered_started_ns: int | None = 0
    time_discovered_completed_ns: int | None = 0
    state: str = ""
    retired: bool = False
    is_p2p: bool = False
    timeout_ms: int | None = None
    input_sizes: msgspec.Raw = msgspec.Raw(b"[]")
    output_sizes: msgspec.Raw = msgspec.Raw(b"[]")
    input_dtypes: msgspec.Raw = msgspec.Raw(b"[]")
    output_dtypes: msgspec.Raw = msgspec.Raw(b"[]")
    frames: msgspec.Raw = msgspec.Raw(b"[]")


class _Group(msgspec.Struct):
    name: str = ""
    desc: str = ""
    ranks: str | list[int] = ""


class _Json(msgspec.Struct):
    entries: list[_Entry] = []
    pg_config: dict[str, _Group] = {}
    pg_status: dict[str, dict[str, str | int]] = {}
    version: str | float = ""
    rank: int | str | None = None
    host: str | None = None
    hostname: str | None = None


_JSON = msgspec.json.Decoder(_Json)


class _About(NamedTuple):
    """What a dump says beside its operations."""

    where: str
    version: object
    rank: object
    host: object
    written_s: float | None
    enqueued: int


def looks_like(name: str, head: bytes) -> bool:
    """Any pickle that is no checkpoint (only reading it tells), or JSON with the recorder's keys."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return not head.startswith(LEGACY_CHECKPOINT)
    if _OLD_PICKLE.match(head):
        return True
    named = any(b'"%s"' % key in head for key in _KEYS) or (b'"entries"' in head and b'"frames"' in head)
    return head.lstrip()[:1] == b"{" and named


def most_bytes(head: bytes) -> int:
    """Of a file that starts so."""
    return MAX_JSON_BYTES if head.lstrip()[:1] == b"{" else plain_pickle.MAX_BYTES


def parse(data: bytes, *, where: str, written_s: float | None = None) -> Dump:
    """The dump. `written_s`: when its file was written. ValueError, in a sentence, where it is none or not whole."""
    with _no_collection():
        if data.lstrip()[:1] == b"{":
            return _of_json(data, where, written_s)
        return _of_pickle(data, where, written_s)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A dump is a tree of a hundred thousand objects without cycles; looking for some doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _of_json(data: bytes, where: str, written_s: float | None) -> Dump:
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"JSON of {len(data) / 2**20:.0f} MiB; at most {MAX_JSON_BYTES / 2**20:.0f} are read")
    try:
        made = _JSON.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a whole Flight Recorder dump in JSON ({error})") from None
    if not made.entries and not made.pg_config:
        raise ValueError("JSON without the entries of a Flight Recorder dump")
    groups = {name: (g.desc, _ranks(g.ranks)) for name, g in made.pg_config.items()}
    rows = map(_row_of_json, made.entries)
    about = _About(where, made.version, made.rank, made.host or made.hostname, written_s, _enqueued(made.pg_status))
    return _dump(rows, _calls_of_json, groups, about)


def _of_pickle(data: bytes, where: str, written_s: float | None) -> Dump:
    made = plain_pickle.loads(data)
    if not isinstance(made, dict) or not isinstance(made.get("entries", made.get("pg_config")), list | dict):
        raise ValueError("a pickle, but not of a Flight Recorder dump")
    entries = made.get("entries") or []
    config = made.get("pg_config") or {}
    try:
        groups = {str(name): (str(g.get("desc", "")), _ranks(g.get("ranks", ""))) for name, g in config.items()}
        if entries and not entries[0].keys() >= _DEFAULTS.keys():  # of an older torch, or without stacks
            entries = [{**_DEFAULTS, **e} for e in entries]
        rows = map(_FIELDS, entries)
        status = _enqueued(made.get("pg_status") or {})
        about = _About(where, made.get("version", ""), made.get("rank"), made.get("host"), written_s, status)
        return _dump(rows, _calls_of_pickle, groups, about)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"a pickle that is no Flight Recorder dump as torch writes it ({error})") from None


def _row_of_json(e: _Entry) -> tuple[Any, ...]:
    return (
        e.record_id,
        e.process_group,
        e.collective_seq_id,
        e.p2p_seq_id,
        e.profiling_name,
        e.time_created_ns,
        e.time_discovered_started_ns,
        e.time_discovered_completed_ns,
        e.state,
        e.retired,
        e.is_p2p,
        e.timeout_ms,
        bytes(e.input_sizes),
        bytes(e.output_sizes),
        bytes(e.input_dtypes),
        bytes(e.output_dtypes),
        bytes(e.frames),
    )


def _calls_of_json(key: tuple[Any, ...]) -> Call:
    name, timeout, *parts = key
    sizes = [msgspec.json.decode(part, type=list[list[int]]) for part in parts[:2]]
    dtypes = [msgspec.json.decode(part, type=list[str]) for part in parts[2:4]]
    return _call(name, timeout, *map(_nested, sizes), *map(tuple, dtypes), _stack_of_json(parts[4]))


def _calls_of_pickle(key: tuple[Any, ...]) -> Call:
    name, timeout, input_sizes, output_sizes, input_dtypes, output_dtypes, frames = key
    stack = tuple(_frame(f["name"], f["filename"], f["line"]) for f in frames[:MAX_FRAMES])
    sizes = _nested(input_sizes), _nested(output_sizes)
    return _call(name, timeout, *sizes, tuple(input_dtypes), tuple(output_dtypes), stack)


def _nested(sizes: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, sizes))


@lru_cache(maxsize=65_536)
def _stack_of_json(frames: bytes) -> tuple[Frame, ...]:
    made = msgspec.json.decode(frames, type=list[dict[str, str | int]])
    return tuple(_frame(f.get("name", ""), f.get("filename", ""), f.get("line", 0)) for f in made[:MAX_FRAMES])


@lru_cache(maxsize=262_144)
def _frame(name: object, filename: object, line: object) -> Frame:
    return Frame(_printable(name), _printable(filename), int(line) if isinstance(line, int) else 0)


def _printable(text: object) -> str:
    words = redact.text(str(text)[-MAX_TEXT:])
    return words if words.isprintable() else "".join(c if c.isprintable() else "?" for c in words)


@lru_cache(maxsize=262_144)
def _call(
    name: str,
    timeout_ms: int | None,
    input_sizes: tuple[tuple[int, ...], ...],
    output_sizes: tuple[tuple[int, ...], ...],
    input_dtypes: tuple[str, ...],
    output_dtypes: tuple[str, ...],
    frames: tuple[Frame, ...],
) -> Call:
    backend, _, op = name.rpartition(":")
    peers = _PEERS.fullmatch(op)
    peer = None
    if peers:
        left, arrow, right = peers.groups()
        peer = (int(left), int(right)) if arrow == "->" else (int(right), int(left))
    return Call(
        op=_printable(op.partition(" ")[0]),
        backend=_printable(backend),
        peer=peer,
        input_sizes=input_sizes,
        output_sizes=output_sizes,
        input_dtypes=input_dtypes,
        output_dtypes=output_dtypes,
        frames=frames,
        timeout_ms=timeout_ms if isinstance(timeout_ms, int) else None,
    )


def _dump(
    rows: Iterable[tuple[Any, ...]],
    make_call: Any,
    config: dict[str, tuple[str, tuple[int, ...]]],
    about: _About,
) -> Dump:
    calls: dict[Call, int] = {}
    quick: dict[tuple[Any, ...], int] = {}  # by the identity of the frames, or their bytes
    columns: dict[tuple[str, str, bool, str], list[tuple[int, ...]]] = {}
    newest = entries = 0
    kept: list[Any] = []  # an identity holds as long as its object
    pickled = make_call is _calls_of_pickle
    for row in rows:
        (record, group, collective, p2p_seq, name, created, started, completed, state, retired, p2p, timeout) = row[:12]
        input_sizes, output_sizes, input_dtypes, output_dtypes, frames = row[12:]
        if pickled:
            key = (
                name,
                timeout,
                repr(input_sizes),
                repr(output_sizes),
                *input_dtypes,
                None,
                *output_dtypes,
                *map(id, frames),
            )
            kept.append(frames)
        else:
            key = (name, timeout, input_sizes, output_sizes, input_dtypes, output_dtypes, frames)
        place = quick.get(key)
        if place is None:
            parts = (name, timeout, input_sizes, output_sizes, input_dtypes, output_dtypes, frames)
            place = quick[key] = calls.setdefault(make_call(parts), len(calls))
        is_p2p = bool(p2p) or " " in name
        backend = name.partition(":")[0]
        done = state == "completed" or (completed or 0) > 0
        if done:
            now = ENDED
        elif retired:
            now = TIMED_OUT if backend in DEVICE_BACKENDS else ENDED
        else:
            now = STARTED if state == "started" else SCHEDULED
        newest = max(newest, created, started or 0, completed or 0)
        entries += 1
        track = (group[0], group[1], is_p2p, backend)
        column = columns.get(track)
        if column is None:
            column = columns[track] = []
        column.append((p2p_seq if is_p2p else collective, record, created, place, now))
    groups = {name: ranks for name, (_, ranks) in config.items() if ranks}
    names = [c.op for c in calls]
    world = next((ranks for desc, ranks in config.values() if desc == "default_pg" and ranks), groups.get(""))
    return Dump(
        where=about.where,
        rank=_number(about.rank) if about.rank is not None else rank_in_name(about.where),
        host=_printable(about.host) if about.host else None,
        version=str(about.version)[:20],
        calls=tuple(calls),
        tracks=tuple(_track(key, column, groups, world, names) for key, column in columns.items()),
        groups=groups,
        world=len(world) if world and world == tuple(range(len(world))) else None,
        entries=entries,
        enqueued=about.enqueued,
        newest_ns=newest or None,
        written_s=about.written_s,
    )


def _track(
    key: tuple[str, str, bool, str],
    column: list[tuple[int, ...]],
    groups: dict[str, tuple[int, ...]],
    world: tuple[int, ...] | None,
    names: Sequence[str],
) -> Track:
    name, desc, p2p, backend = key
    track = Track(
        group=_printable(name),
        desc=_printable(desc),
        backend=_printable(backend),
        ranks=groups.get(name) or (world if desc == "default_pg" else None),
        p2p=p2p,
    )
    seqs, records, created, calls, states = zip(*column, strict=True)
    grouped = any(name.endswith("coalesced") for name in names)
    device = backend in DEVICE_BACKENDS and not p2p
    track.seqs.extend(seqs)
    track.records.extend(records)
    track.created_ns.extend(created)
    track.calls.extend(calls)
    track.states.extend(_settled(states, seqs, names=[names[c] for c in calls] if grouped else (), device=device))
    return track


def _settled(states: Sequence[int], seqs: Sequence[int], *, names: Sequence[str], device: bool) -> bytearray:
    """States, where the members of a coalesced call, whose own are never updated, have that of the call.

    Collectives of a group end in their order: one before the last that has ended has ended, too.
    """
    made = bytearray(states)
    whole = {seq: state for seq, state, name in zip(seqs, states, names, strict=False) if name.endswith("coalesced")}
    for i, seq in enumerate(seqs if whole else ()):
        made[i] = whole.get(seq, made[i])
    if device:
        last = max((seq for seq, state in zip(seqs, made, strict=True) if state == ENDED), default=-1)
        for i, state in enumerate(made):
            if state in (SCHEDULED, STARTED) and seqs[i] < last:
                made[i] = ENDED
    return made


def _enqueued(status: Mapping[str, Mapping[str, Any]]) -> int:
    """The highest number that any group has enqueued; 0 where none did."""
    return max((int(s.get("last_enqueued_collective", 0)) for s in status.values()), default=0)


def _ranks(said: object) -> tuple[int, ...]:
    """Of "[0, 1, 2]", or a list of them."""
    numbers = re.findall(r"\d{1,7}", said) if isinstance(said, str) else said if isinstance(said, list | tuple) else ()
    return tuple(int(n) for n, _ in zip(numbers, repeat(None, MAX_RANKS), strict=False))


def _number(said: object) -> int | None:
    return said if isinstance(said, int) else int(said) if isinstance(said, str) and said.isdigit() else None


def rank_in_name(where: str) -> int | None:
    """nccl_trace_rank_3, comm_lib_trace_rank_12.pickle, rank3/fr.json, dump-r7.pkl, trace_5 -> the rank."""
    path = _EXTENSION.sub("", where)
    name = path.rpartition("/")[2]
    for found in (_RANK.findall(name), _LAST_NUMBER.findall(name), _R_NUMBER.findall(name)):
        if found:
            return int(found[-1])
    return named_rank(where)


def named_rank(where: str) -> int | None:
    """Only where the file or a folder above it is called after a rank: other numbers are those of jobs, processes."""
    for part in reversed(where.split("/")):
        if found := _RANK.findall(part):
            return int(found[-1])
    return None
