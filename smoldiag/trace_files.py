"""Traces of a profiler, one per rank: read by several processes where they are large, judged by their rules."""

import os
from collections.abc import Sequence
from dataclasses import replace

from smoldiag import rules
from smoldiag.collect import inputs
from smoldiag.collect.inputs import Found, Source
from smoldiag.errors import SmoldiagError
from smoldiag.explained import Explained, Read, explained, sentence
from smoldiag.facts.trace import Peaks, RankTrace
from smoldiag.knowledge import hardware
from smoldiag.model import traces
from smoldiag.parse import trace
from smoldiag.rules import Known

KIND = "trace of a profiler"
PARALLEL_BYTES = 8 * 2**20  # of traces, as they lie there; below, starting processes takes longer than reading


def among(found: Found) -> list[Source]:
    """The traces of what was named."""
    return [s for s in found.sources if trace.looks_like(s.name, s.head)]


def only(found: Found) -> bool:
    """Whether nothing else was named."""
    return bool(found.sources) and len(among(found)) == len(found.sources)


def explain(found: Found, *, with_facts: bool, hta: bool) -> Explained:
    """What traces alone say. SmoldiagError where none of them can be read."""
    part = read(found.sources, hta=hta)
    notes = tuple(dict.fromkeys((*found.problems, *part.notes, *(p for s in found.sources for p in s.problems))))
    if not part.understood:
        raise SmoldiagError(notes[0] if len(notes) == 1 else f"no trace here can be read ({'; '.join(notes[:3])})")
    outcomes = rules.run(part.known, rules.load("traces")) if part.known.trace else ()
    return explained(part.known, outcomes, notes, with_facts=with_facts)


def read(sources: Sequence[Source], *, hta: bool) -> Read:
    made, notes = load(sources)
    with_device = [t for t in made if len(t.start)]
    cpu_only = [t for t in made if not len(t.start)]
    notes += [f"{t.where}: no event of a GPU in it" for t in cpu_only]
    whole = traces.summary(with_device, hta=hta, cpu_only=cpu_only, peaks=_peaks(with_device)) if made else None
    return Read(known=Known(trace=whole), understood=tuple(t.where for t in made), notes=tuple(notes))


def _peaks(of: Sequence[RankTrace]) -> Peaks | None:
    spec = hardware.gpu(next((t.device for t in of if t.device), None))
    if spec is None:
        return None
    return Peaks(tflops=spec.peak_tflops, memory_gb_per_s=spec.memory_gb_per_s, source=spec.source)


def load(sources: Sequence[Source]) -> tuple[list[RankTrace], list[str]]:
    """What can be read, each of a rank of its own, and notes on the rest."""
    many = len(sources) > 1 and sum(s.size_bytes for s in sources) > PARALLEL_BYTES
    if many and all(s.path for s in sources):
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
            results = list(pool.map(_read_file, *zip(*((str(s.path), s.name) for s in sources), strict=True)))
    else:
        results = [_read_one(s) for s in sources]
    made = [r for r in results if isinstance(r, RankTrace)]
    notes = [r for r in results if isinstance(r, str)] + [f"{t.where}: {note}" for t in made for note in t.notes]
    if len({t.rank for t in made}) < len(made):  # not all of them say it
        made = [replace(t, rank=i) for i, t in enumerate(made)]
        notes.append("the traces do not say their ranks: numbered in the order of the files")
    return made, notes


def _read_one(source: Source) -> RankTrace | str:
    """Or why it can't be read, in a sentence."""
    try:
        return trace.parse(source.raw(), where=source.name)
    except (ValueError, SmoldiagError) as error:
        return sentence(source.name, error)


def _read_file(path: str, name: str) -> RankTrace | str:
    (source,) = inputs.find([path]).sources
    source.name = name
    return _read_one(source)
