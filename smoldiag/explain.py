"""From the files people have to the cause: what each file is, what it says, which rules speak.

`READERS` is the table of kinds. A kind of file is added by one line there: how it is recognised, what reads it, and
what becomes of all that was read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from smoldiag import documents, rules, runs, trace_files
from smoldiag.collect import inputs, slurm
from smoldiag.collect import job as jobs
from smoldiag.collect.inputs import Source
from smoldiag.errors import SmoldiagError
from smoldiag.explained import Explained, Read, explained, sentence
from smoldiag.facts import Cluster, Env, Flight, Host, Series, Tables, Variable
from smoldiag.findings import BenchReport, Confidence
from smoldiag.model import alone, hangs, series
from smoldiag.parse import (
    flight_recorder,
    hardware_text,
    host_of_file,
    inspector,
    kernel_text,
    log,
    metrics,
    nvidia_smi,
    py_spy,
    ras,
    settings_text,
    tables,
    trace,
    watchdog,
)
from smoldiag.rules import Known

T = TypeVar("T")

MAX_TEXT_BYTES = 64 * 2**20  # of a text that a reader is given as a whole; of longer ones the lines that it wants
MAX_NOTES = 20
RECORDS = tuple(b'{"kind": "%s"' % kind for kind in (b"step", b"sample", b"note", b"end"))  # lines of a run folder


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file. `read` takes all the files of its kind at once."""

    kind: str  # in words: "Flight Recorder dump"
    looks_like: Callable[[str, bytes], bool]  # by name and the first 4 KiB
    read: "Callable[[Sequence[Source]], Read]"
    text: bool = True  # text kinds may share a file; another kind has it alone
    wants: Callable[[str], bool] | None = None  # a line that makes it worth reading a log for this kind, too
    lines_alone: bool = False  # such lines are enough; else it needs those between them, too


def text(parse: Callable[..., T], merge: Callable[[Sequence[T]], Known]) -> Callable[[Sequence[Source]], Read]:
    """A reader from `parse(lines, *, where)`: ValueError says in a sentence that it is nothing of the kind."""
    return each(lambda source: parse(source.lines(), where=source.name), merge)


def binary(
    parse: Callable[..., T], merge: Callable[[Sequence[T]], Known], *, limit: int
) -> Callable[[Sequence[Source]], Read]:
    """A reader from `parse(data, *, where)` of files up to `limit` bytes."""
    return each(lambda source: parse(source.data(limit), where=source.name), merge)


def each(parse: Callable[[Source], T], merge: Callable[[Sequence[T]], Known]) -> Callable[[Sequence[Source]], Read]:
    """A reader from what makes facts of one file. ValueError says in a sentence that it is nothing of the kind."""

    def read(sources: Sequence[Source]) -> Read:
        parts: list[T] = []
        understood: list[str] = []
        notes: list[str] = []
        for source in sources:
            try:
                parts.append(parse(source))
                understood.append(source.name)
            except (ValueError, SmoldiagError) as error:
                notes.append(sentence(source.name, error))
        return Read(known=merge(parts) if parts else Known(), understood=tuple(understood), notes=tuple(notes))

    return read


def _hardware(lines: Iterable[str], *, where: str) -> Host:
    return hardware_text.host(lines, name=host_of_file.name(where))


def as_cluster(hosts: Sequence[Host]) -> Known:
    return Known(cluster=Cluster(hosts=_by_name(hosts)))


def _dump(source: Source) -> Flight:
    data = source.data(flight_recorder.most_bytes(source.head))
    return Flight(dumps=(flight_recorder.parse(data, where=source.name, written_s=source.written_s),))


def _ras_report(source: Source) -> Flight:
    return Flight(ras=(ras.parse(source.data(ras.MAX_JSON_BYTES), where=source.name),))


def _as_flight(parts: Sequence[Flight]) -> Known:
    return Known(flight=hangs.joined(parts))


def _read_watchdogs(sources: Sequence[Source]) -> Read:
    """Of logs that have such lines; a log without is no problem."""
    said = {s.name: watchdog.parse(s.lines(), where=s.name) for s in sources}
    spoken = {name: w for name, w in said.items() if w.speaks}
    if not spoken:
        return Read()
    return Read(known=Known(flight=Flight(watchdog=watchdog.merged(tuple(said.values())))), understood=tuple(spoken))


def _read_steps(sources: Sequence[Source]) -> Read:
    """Of a run folder: run.json and the records of its steps."""
    about: dict[str, Any] = {}
    notes = []
    records = [s for s in sources if s.head.startswith(RECORDS)]
    for source in sources:
        try:
            if source not in records:
                about = msgspec.json.decode(source.data(runs.MAX_RUN_BYTES), type=dict)
        except (ValueError, RecursionError, SmoldiagError) as error:
            notes.append(sentence(source.name, error))
    try:
        run = runs.of_sources(about, records, where=sources[0].name)
    except SmoldiagError as error:
        notes.append(str(error))
        run = runs.of_sources({}, records, where=sources[0].name)
    known = Known(launch=runs.launch_of(about))
    if run.steps:
        known = replace(known, run=run, series=(series.of_run(run),))
    return Read(known=known, understood=tuple(s.name for s in sources), notes=tuple(notes))


def _read_twice(hosts: Sequence[Host]) -> Known:
    """Facts of a host from before and after a run: the earlier ones, and what its counters grew by."""
    made = []
    for host in _by_name(hosts):
        readings = sorted((h for h in hosts if {h.name, *h.aliases} & {host.name, *host.aliases}), key=_read_at)
        first, last = readings[0], readings[-1]
        seconds = (_read_at(last) - _read_at(first)).total_seconds()
        if seconds > 0:
            grown = jobs.increase((first.gpus, last.gpus), (first.nics, last.nics), seconds=seconds)
            host = replace(_both(first, host), increase=grown)
        made.append(host)
    return Known(cluster=Cluster(hosts=tuple(made)))


def _read_at(host: Host) -> datetime:
    try:
        at = datetime.fromisoformat(host.created)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _read_metrics(sources: Sequence[Source]) -> Read:
    found: list[Series] = []
    notes = []
    understood = []
    for source in sources:
        try:
            if metrics.is_json(source.head):
                of_file, note = metrics.from_json(source.data(MAX_TEXT_BYTES), where=source.name)
                notes += [note] if note else []
            else:
                of_file = metrics.parse(source.lines(), where=source.name)
            found += of_file
            understood.append(source.name)
            notes += [f"{s.where}: one of {s.thinned} rows is kept" for s in of_file if s.thinned > 1]
        except (ValueError, SmoldiagError) as error:
            if not source.name.endswith((".log", ".out", ".txt")):  # of a log that tells of few steps others say more
                notes.append(sentence(source.name, error))
    return Read(known=Known(series=tuple(found) or None), understood=tuple(understood), notes=tuple(notes))


def _tables(source: Source) -> Tables:
    """A JSON document may be one long line."""
    lines: Iterable[str] = source.lines()
    if tables.is_json(source.head):
        lines = source.data(MAX_TEXT_BYTES).decode("utf-8", "replace").splitlines()
    return tables.parse(lines, where=source.name)


def _facts_of_host(source: Source) -> Host:
    """As a run folder keeps them, without what the kernel logged before, and the variables that `run` itself sets."""
    host = msgspec.json.decode(source.data(MAX_TEXT_BYTES), type=Host, strict=False)
    return replace(host, kernel_log=None, env=None)


READERS: tuple[Reader, ...] = (
    Reader(
        kind="facts of a host",
        looks_like=lambda name, head: head.startswith(b"{") and b'"aliases"' in head and b'"unread"' in head,
        read=each(_facts_of_host, _read_twice),
        text=False,
    ),
    Reader(
        kind="NCCL RAS report",
        looks_like=lambda name, head: ras.is_report(head),
        read=each(_ras_report, _as_flight),
        text=False,
    ),
    Reader(
        kind="Inspector's JSON lines",
        looks_like=inspector.looks_like,
        read=text(inspector.parse, lambda parts: Known(flight=Flight(arrivals=inspector.arrivals(parts)))),
        text=False,
    ),
    Reader(
        kind="Flight Recorder dump",
        looks_like=flight_recorder.looks_like,
        read=each(_dump, _as_flight),
        text=False,
    ),
    Reader(
        kind="stacks of py-spy",
        looks_like=py_spy.looks_like,
        read=text(py_spy.parse, lambda parts: Known(flight=Flight(stacks=tuple(s for p in parts for s in p)))),
    ),
    Reader(kind="watchdog lines", looks_like=watchdog.looks_like, wants=watchdog.wants, read=_read_watchdogs),
    Reader(
        kind="NCCL's diagnostics",
        looks_like=ras.has_diagnostics,
        wants=ras.wants,
        read=text(ras.diagnostics, lambda parts: Known(flight=Flight(diagnostics=tuple(d for p in parts for d in p)))),
    ),
    Reader(
        kind="metrics of a run",
        looks_like=metrics.looks_like,
        wants=metrics.wants,
        read=_read_metrics,
        lines_alone=True,
    ),
    Reader(
        kind="table of bandwidths or a profile",
        looks_like=tables.looks_like,
        wants=tables.wants,
        read=each(_tables, lambda parts: Known(tables=tables.merged(parts))),
    ),
    Reader(
        kind="nvidia-smi's text",
        looks_like=nvidia_smi.looks_like,
        read=text(nvidia_smi.host, as_cluster),
    ),
    Reader(
        kind="script or environment", looks_like=settings_text.looks_like, read=text(settings_text.host, as_cluster)
    ),
    Reader(kind="text of a hardware tool", looks_like=hardware_text.looks_like, read=text(_hardware, as_cluster)),
    Reader(kind="kernel log", looks_like=kernel_text.looks_like, read=text(kernel_text.host, as_cluster)),
    Reader(kind="dcgmi diag", looks_like=kernel_text.looks_like_dcgm, read=text(kernel_text.dcgm_host, as_cluster)),
    Reader(
        kind="run folder",
        looks_like=lambda name, head: head.startswith(RECORDS) or b'"smoldiag.run/1"' in head,
        read=_read_steps,
        text=False,
    ),
)


def _of_traces(definition: str) -> Reader:
    return Reader(
        kind=trace_files.KIND,
        looks_like=trace.looks_like,
        read=lambda sources: trace_files.read(sources, hta=definition == "hta"),
        text=False,
    )


def explain(
    names: Sequence[str],
    *,
    with_facts: bool = False,
    job: str | None = None,
    definition: str = "ours",
    bench: Path | None = None,
    found: inputs.Found | None = None,
) -> Explained:
    """Read what was named, or what Slurm has of a job, and judge it.

    `definition`: of the shares of a trace, `ours` or `hta`. `bench`: a smoldiag.bench/1 to hold collectives against.
    `found`: what the names are, where somebody looked already.
    SmoldiagError where nothing of it is anything known.
    """
    measured = documents.named_bench(bench) if bench else None
    found = found or (_of_job(job, names) if job else inputs.find(names))
    if not measured and trace_files.only(found):
        return trace_files.explain(found, with_facts=with_facts, hta=definition == "hta")
    read, notes = facts_of(found, definition=definition)
    if measured:
        read, said = _beside(read, measured, str(bench))
        notes = (*notes, *said)
    return explained(read, judged(read), notes, with_facts=with_facts)


def facts_of(
    found: inputs.Found, *, definition: str = "ours", readers: Sequence[Reader] = READERS
) -> tuple[Known, tuple[str, ...]]:
    """What the files say, and notes on what was not read. SmoldiagError where nothing of it is anything known."""
    return _read(found, (_of_traces(definition), *readers))


def _beside(known: Known, measured: BenchReport, name: str) -> tuple[Known, tuple[str, ...]]:
    """With the collectives of the run or trace held against those of a bench; or a note why not."""
    found = alone.of_trace(known.trace, measured.results, bench=name) if known.trace else None
    if found is None and known.run:
        found = alone.of_run(known.run, measured.results, bench=name)
    if found is None:
        return known, (f"--bench {name}: no run or trace with collectives to hold against it was named",)
    rows = [r for r in found.rows if r.alone_us is not None]
    if not rows:
        here = ", ".join(dict.fromkeys(f"{r.name} over {r.ranks} ranks" for r in found.rows[:4]))
        return known, (f"--bench {name}: it measured none of these at such sizes: {here}",)
    return replace(known, alone=replace(found, rows=tuple(rows))), ()


def judged(known: Known) -> tuple[rules.Outcome, ...]:
    """What the rules say whose facts are there."""
    return (*rules.run(known, _rules_for(known)), *_settings_of_the_log(known))


def _of_job(job: str, names: Sequence[str]) -> inputs.Found:
    """Slurm's record of a job and the files that it names, with what else was named."""
    known = slurm.job(job)
    found = inputs.find((*known.files, *names))
    record = inputs.of_text(f"Slurm's record of job {job}", known.record)
    missing = tuple(f"{path}: Slurm names it as the job's output, and it is not here" for path in known.missing)
    return replace(found, sources=(*found.sources, record), problems=(*found.problems, *missing))


def _read(found: inputs.Found, readers: Sequence[Reader]) -> tuple[Known, tuple[str, ...]]:
    """Give each file to the readers of its kind, and put together what they say."""
    taken: dict[str, list[Source]] = {}
    texts: list[Source] = []
    notes = list(found.problems)
    for source in found.sources:
        alone = next((r for r in readers if not r.text and r.looks_like(source.name, source.head)), None)
        if alone:
            taken.setdefault(alone.kind, []).append(source)
        elif inputs.is_text(source.head):
            texts.append(source)
            for r in readers:
                if r.text and r.looks_like(source.name, source.head):
                    taken.setdefault(r.kind, []).append(source)
        else:
            notes.append(f"{source.name}: {'empty' if not source.head else 'binary, of no kind that is known'}")
    from_logs, understood, wanted = _read_logs(texts, notes, readers)
    for kind, sources in wanted.items():
        known_names = {s.name for s in taken.get(kind, ())}
        taken.setdefault(kind, []).extend(s for s in sources if s.name not in known_names)
    parts = [from_logs] if from_logs else []
    for r in readers:
        if r.kind in taken:
            part = r.read(taken[r.kind])
            parts.append(part.known)
            understood |= set(part.understood)
            notes += part.notes
    notes += [p for source in found.sources for p in source.problems]
    notes += [s.name + ": not understood" for s in texts if s.name not in understood]
    left = [f"{count} x {kind} ({size / 1e9:.1f} GB)" for kind, count, size in found.left_alone]
    if left:
        notes.append(f"left alone: {', '.join(left)}")
    notes = list(dict.fromkeys(notes))
    if not understood:
        raise SmoldiagError(
            notes[0] if len(notes) == 1 else f"nothing here is of a kind that is known ({'; '.join(notes[:3])})",
            hint="name a job's log, a folder of logs, Flight Recorder dumps, nccl-tests output, or `dmesg` text",
        )
    if len(notes) > MAX_NOTES:
        notes = [*notes[:MAX_NOTES], f"and {len(notes) - MAX_NOTES} more notes alike"]
    return merged(parts), tuple(notes)


def _read_logs(
    texts: Sequence[Source], notes: list[str], readers: Sequence[Reader]
) -> tuple[Known | None, set[str], dict[str, list[Source]]]:
    """One pass over every text: events and NCCL's picture, and the lines that other readers want."""
    state = log.start(wants={r.kind: r.wants for r in readers if r.wants})
    understood: set[str] = set()
    wanted: dict[str, list[Source]] = {}
    lines_alone = {r.kind for r in readers if r.lines_alone}
    for source in texts:
        try:
            seen = log.read(state, source.chunks(), where=source.name)
        except SmoldiagError as error:
            notes.append(str(error))
            continue
        if seen.known:
            understood.add(source.name)
        for kind, lines in seen.wanted.items():
            whole = source.size_bytes <= MAX_TEXT_BYTES and not source.packed and kind not in lines_alone
            wanted.setdefault(kind, []).append(source if whole else _of_lines(source, lines))
    return (Known(log=log.finish(state)) if understood else None), understood, wanted


def _of_lines(source: Source, numbered: Mapping[int, str]) -> Source:
    """A source that has only these lines; the others are empty, so that the numbers hold."""

    class Lines(Source):
        def lines(self, most: int = inputs.MAX_LINE) -> Any:
            last = 0
            for number in sorted(numbered):
                yield from repeat("", number - last - 1)
                yield numbered[number]
                last = number

    return Lines(name=source.name, head=source.head, size_bytes=source.size_bytes, open=source.open)


def merged(parts: Iterable[Known]) -> Known:
    """One Known of several: hosts by name and alias, metrics of all, of other facts the first that is there."""
    result = Known()
    for part in parts:
        for f in fields(Known):
            value, so_far = getattr(part, f.name), getattr(result, f.name)
            if f.name == "unread":
                result = replace(result, unread={**so_far, **value})
            elif f.name == "cluster" and value is not None and so_far is not None:
                result = replace(result, cluster=Cluster(hosts=_by_name((*so_far.hosts, *value.hosts))))
            elif f.name == "flight" and value is not None and so_far is not None:
                result = replace(result, flight=hangs.joined((so_far, value)))
            elif f.name == "series" and value is not None and so_far is not None:
                result = replace(result, series=so_far + value)
            elif so_far is None and value is not None:
                result = replace(result, **{f.name: value})
    if result.flight and result.log and result.log.host_of_rank:
        hosts = {**result.log.host_of_rank, **result.flight.hosts}
        result = replace(result, flight=replace(result.flight, hosts=hosts))
    return result


def _settings_of_the_log(known: Known) -> tuple[rules.Outcome, ...]:
    """What the rules for variables say of those that NCCL took. That a log shows one does not make it the cause."""
    said = known.log
    if said is None or not said.env:
        return ()
    where = said.files[0] if len(said.files) == 1 else f"{len(said.files)} logs"
    variables = tuple(
        Variable(name=name, value=values[0], origin=f"NCCL's words in {where}")
        for name, values in said.env.items()
        if values
    )
    if known.tables and any(t.tool == "nccl-tests" for t in known.tables.bandwidth):
        variables = tuple(v for v in variables if not settings_text.is_choice_of_a_bench(v))
    nccl = said.transport.nccl_version if said.transport else None
    host = Host(
        name=said.hosts[0] if len(said.hosts) == 1 else "the ranks",
        env=Env(variables=variables, complete=False),
        versions={"nccl": nccl} if nccl else None,
    )
    facts = Known(cluster=Cluster(hosts=(host,)))
    outcomes = rules.run(facts, [r for r in _rules_for(facts) if "env" in r.needs])
    return tuple(
        replace(o, findings=tuple(replace(f, confidence=Confidence.POSSIBLE) for f in o.findings))
        for o in outcomes
        if o.findings
    )


def _by_name(hosts: Sequence[Host]) -> tuple[Host, ...]:
    joined: dict[str, Host] = {}
    for host in hosts:
        key = next((k for k, h in joined.items() if {host.name, *host.aliases} & {h.name, *h.aliases}), host.name)
        before = joined.get(key)
        joined[key] = host if before is None else _both(before, host)
    return tuple(joined.values())


def _both(a: Host, b: Host) -> Host:
    own = {f.name: getattr(a, f.name) for f in fields(Host)}
    more = {name: getattr(b, name) for name, value in own.items() if value is None and name != "env"}
    if a.env and b.env:
        names = {v.name for v in a.env}
        own["env"] = replace(a.env, variables=(*a.env, *(v for v in b.env if v.name not in names)))
    aliases = tuple(dict.fromkeys((*a.aliases, *b.aliases, *({b.name} - {a.name}))))
    return replace(a, **more, env=own["env"] or b.env, aliases=aliases, unread={**b.unread, **a.unread})


def _rules_for(known: Known) -> list[rules.Rule]:
    """The rules whose facts are there; of the others nobody wants to read that they were skipped."""
    once = {f.name for f in fields(Known) if getattr(known, f.name) is not None}
    return [
        r
        for r in rules.RULES.values()
        if all(need in once if need in rules.ONCE else known.cluster is not None for need in _needs(r))
    ]


def _needs(r: rules.Rule) -> set[str]:
    return set(r.needs) - set(r.optional)
