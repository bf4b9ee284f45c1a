"""Facts of hosts, and logs that were named, in one redacted archive: `smoldiag.bundle/1`. See docs/bundle.md.

A zip with `bundle.json` (what is in it), `hosts/00000.json` ... (one Host each) and `logs/00000.txt` ... Whoever reads
a host reads a bundle. An archive is input from outside: nothing is extracted, and every size is bounded.
"""

import gc
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from smoldiag import __version__, redact
from smoldiag.anonymise import anonymised, pseudonyms
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, Launch, Variable

T = TypeVar("T")
SCHEMA = "smoldiag.bundle/1"
INDEX = "bundle.json"
ENDING = ".zip"
MAX_FILES = 200_000  # in one archive
MAX_INDEX_BYTES = 64 * 2**20
MAX_HOST_BYTES = 16 * 2**20
MAX_LOG_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 4 * 2**30  # of all hosts that one command reads
MAX_HOSTS = 20_000
NAMES = re.compile(r"(?:hosts/\d{5}\.json|logs/\d{5}\.txt)")


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log of a host, redacted."""

    host: str
    path: str
    text: str
    error: str = ""  # why there is no text


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Hosts as they were read, and what went wrong on the way to them."""

    hosts: tuple[Host, ...] = ()
    launch: Launch | None = None  # None: only this host was looked at
    logs: tuple[Log, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the child of `collect.guarded` answers."""

    host: Host
    files: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    host: str
    path: str
    file: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Index:
    """`bundle.json`."""

    schema: str = SCHEMA
    version: str = __version__  # of the smoldiag that wrote it
    created: str = ""
    anonymised: bool = False
    hosts: tuple[str, ...] = ()
    logs: tuple[LogEntry, ...] = ()
    launch: Launch | None = None


# -- writing


def save(bundle: Bundle, path: Path, *, anonymise: bool = False, users: Sequence[str] = ()) -> None:
    """Write the archive in one step: a reader never sees half of it."""
    if anonymise:
        bundle = without_names(bundle, users=users)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
                _write(bundle, z, is_anonymised=anonymise)
            os.chmod(name, 0o600)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise SmoldiagError(
            f"can't write {path}: {error.strerror}", hint="name a file in a folder you may write to"
        ) from None


def _write(bundle: Bundle, z: zipfile.ZipFile, *, is_anonymised: bool) -> None:
    hosts: list[str] = []
    logs: list[LogEntry] = []
    for i, host in enumerate(bundle.hosts):
        hosts.append(f"hosts/{i:05d}.json")
        z.writestr(hosts[-1], msgspec.json.format(msgspec.json.encode(clean(host)), indent=1))
    for log in bundle.logs:
        name = f"logs/{len(logs):05d}.txt" if not log.error else ""
        if name:
            z.writestr(name, redact.text(log.text))
        logs.append(LogEntry(host=log.host, path=redact.text(log.path), file=name, error=log.error))
    index = Index(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        anonymised=is_anonymised,
        hosts=tuple(hosts),
        logs=tuple(logs),
        launch=clean(bundle.launch),
    )
    z.writestr(INDEX, msgspec.json.format(msgspec.json.encode(index), indent=1))


def without_names(bundle: Bundle, *, users: Sequence[str] = ()) -> Bundle:
    """With pseudonyms for hosts, addresses, users, ids and paths."""
    unreached = [host for fault in (bundle.launch.faults if bundle.launch else ()) for host in fault.hosts]
    names = pseudonyms(bundle.hosts, others=[host.rpartition("@")[2] for host in unreached], users=users)
    return anonymised(replace(bundle, hosts=clean(bundle.hosts), launch=clean(bundle.launch)), names)


def clean(facts: T) -> T:
    """The same facts without what looks like a secret, whoever collected them."""
    cleaned: T = _clean(facts)
    return cleaned


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact.text(value)
    if isinstance(value, Variable):
        return replace(value, value=redact.variable(value.name, value.value), origin=redact.text(value.origin))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _clean(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, Mapping):
        return {
            k: redact.variable(k, v) if isinstance(k, str) and isinstance(v, str) else _clean(v)
            for k, v in value.items()
        }
    if isinstance(value, tuple | list):
        return tuple(map(_clean, value))
    return value


def read_answer(answer: bytes) -> Read:
    """What `collect.guarded` answered. Raises msgspec.DecodeError where it is none."""
    return msgspec.json.decode(answer, type=Read)


def of_answers(read: Sequence[Read], *, launch: Launch | None = None) -> Bundle:
    """From what was read on each host."""
    return Bundle(
        hosts=tuple(r.host for r in read),
        launch=launch,
        logs=tuple(
            Log(host=r.host.name, **{k: f[k] for k in ("path", "text", "error") if k in f})
            for r in read
            for f in r.files
        ),
    )


def logs_in_words(bundle: Bundle) -> str:
    there = sum(not log.error for log in bundle.logs)
    missing = [log for log in bundle.logs if log.error]
    said = f"{there} log{'s' if there != 1 else ''}"
    return said + (f" (missing: {missing[0].path} on {missing[0].host}: {missing[0].error})" if missing else "")


# -- reading


def found(paths: Sequence[Path]) -> list[Path]:
    """The archives that were named: files, folders of them, and patterns that no shell has expanded."""
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob(f"*{ENDING}"))
            if not inside:
                raise SmoldiagError(f"{path}: no *{ENDING} in this folder")
            listed += inside
        elif not path.exists() and re.search(r"[*?\[]", str(path)):
            matched = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
            if not matched:
                raise SmoldiagError(f"{path}: no file matches")
            listed += matched
        else:
            listed.append(path)
    return list(dict.fromkeys(listed))


def load(paths: Sequence[Path], *, logs: bool = False) -> Bundle:
    """All hosts of all the archives, in their order."""
    with without_collector():
        return _load(paths, logs=logs)


@contextmanager
def without_collector() -> Iterator[None]:
    """Facts have no cycles, and to look for some in millions of them takes as long as to read them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def _load(paths: Sequence[Path], *, logs: bool) -> Bundle:
    hosts: list[tuple[int, Host]] = []
    texts: list[Log] = []
    launches: list[Launch] = []
    reader = _Reader()
    for number, path in enumerate(found(paths)):
        index, archive = _opened(path)
        with archive:
            hosts += ((number, reader.host(path, archive, name)) for name in index.hosts)
            if logs:
                texts += _logs(path, archive, index)
        if index.launch:
            launches.append(index.launch)
        if len(hosts) > MAX_HOSTS:
            raise SmoldiagError(f"{path}: more than {MAX_HOSTS} hosts in these bundles")
    return Bundle(hosts=tuple(_latest(hosts)), launch=_joined(launches), logs=tuple(texts))


@dataclass
class _Reader:
    """Decodes hosts. Facts that are equal on many hosts are decoded and kept once."""

    total_bytes: int = 0
    kept: dict[tuple[str, bytes], Any] = field(default_factory=dict)

    def host(self, path: Path, archive: zipfile.ZipFile, name: str) -> Host:
        raw = _member(path, archive, name, MAX_HOST_BYTES)
        self.total_bytes += len(raw)
        if self.total_bytes > MAX_TOTAL_BYTES:
            raise SmoldiagError(f"{path}: the facts of these hosts are larger than {MAX_TOTAL_BYTES >> 30} GiB")
        try:
            parts: dict[str, msgspec.Raw] = _PARTS.decode(raw)
            return Host(**{key: self.fact(key, bytes(part)) for key, part in parts.items() if key in _FACTS})
        except (msgspec.DecodeError, TypeError, RecursionError) as error:
            raise SmoldiagError(f"{path}: {name} is no facts of a host: {error}") from None

    def fact(self, key: str, raw: bytes) -> Any:
        same = (key, blake2b(raw, digest_size=16).digest())
        if same not in self.kept:
            self.kept[same] = _FACTS[key].decode(raw)
        return self.kept[same]


_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FACTS = {f.name: msgspec.json.Decoder(f.type) for f in fields(Host)}


def _opened(path: Path) -> tuple[Index, zipfile.ZipFile]:
    not_ours = f"{path} is no smoldiag bundle"
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise SmoldiagError(f"{path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RecursionError) as error:
        raise SmoldiagError(f"{not_ours}: {error}", hint="smoldiag bundle FILE writes one") from None
    try:
        if len(archive.namelist()) > MAX_FILES:
            raise SmoldiagError(f"{path}: more than {MAX_FILES} files in it")
        if INDEX not in archive.namelist():
            raise SmoldiagError(f"{not_ours}: there is no {INDEX} in it", hint="smoldiag bundle FILE writes one")
        raw = _member(path, archive, INDEX, MAX_INDEX_BYTES)
        schema = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("schema")
        said = msgspec.json.decode(bytes(schema), type=str)[:60] if schema is not None else "nothing"
        if said != SCHEMA:
            raise SmoldiagError(
                f"{path}: its schema is {said}, and this smoldiag ({__version__}) reads {SCHEMA}",
                hint="read it with the smoldiag that wrote it, or save it again",
            )
        index = msgspec.json.decode(raw, type=Index)
        wrong = [n for n in (*index.hosts, *(e.file for e in index.logs if e.file)) if not NAMES.fullmatch(n)]
        if wrong:
            raise SmoldiagError(f"{path}: {wrong[0][:80]!r} is no name of a file in a bundle")
    except SmoldiagError:
        archive.close()
        raise
    except (msgspec.DecodeError, RecursionError) as error:
        archive.close()
        raise SmoldiagError(f"{not_ours}: {INDEX}: {error}") from None
    return index, archive


def _member(path: Path, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        with archive.open(name) as file:
            data = file.read(most + 1)
    except KeyError:
        raise SmoldiagError(f"{path}: {name} is missing in it") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise SmoldiagError(f"{path}: {name} can't be read: {error}", hint="the file is damaged or cut off") from None
    if len(data) > most:
        raise SmoldiagError(f"{path}: {name} is larger than {most >> 20} MiB")
    return data


def _logs(path: Path, archive: zipfile.ZipFile, index: Index) -> Iterator[Log]:
    for entry in index.logs:
        text = _member(path, archive, entry.file, MAX_LOG_BYTES).decode(errors="replace") if entry.file else ""
        yield Log(host=entry.host, path=entry.path, text=text, error=entry.error)


def _latest(hosts: Iterable[tuple[int, Host]]) -> Iterator[Host]:
    """Each machine once, as it was read last. Two hosts of one archive are two, whatever they are called."""
    newest: dict[tuple[str, ...], tuple[int, Host]] = {}
    for archive, host in hosts:
        machine = (host.system.machine_id or host.system.boot_id or "") if host.system else ""
        key: tuple[str, ...] = (host.name, machine)
        while key in newest and newest[key][0] == archive:
            key = (*key, "again")
        if key not in newest or host.created >= newest[key][1].created:
            newest[key] = archive, host
    return (host for _, host in newest.values())


def _joined(launches: Sequence[Launch]) -> Launch | None:
    if not launches:
        return None
    return replace(
        launches[0],
        faults=tuple(f for x in launches for f in x.faults),
        warnings=tuple(w for x in launches for w in x.warnings),
    )
