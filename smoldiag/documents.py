"""Documents that smoldiag wrote itself, read back: `smoldiag.bench/1` and `smoldiag.report/1`."""

from pathlib import Path
from typing import TypeVar

import msgspec

from smoldiag.collect import inputs
from smoldiag.collect.inputs import Source
from smoldiag.errors import SmoldiagError
from smoldiag.findings import BenchReport, Report

D = TypeVar("D", BenchReport, Report)

MAX_BYTES = 64 * 2**20
BENCH, REPORT = "smoldiag.bench/1", "smoldiag.report/1"


def is_bench(source: Source) -> bool:
    return _says(source, BENCH)


def is_report(source: Source) -> bool:
    return _says(source, REPORT)


def _says(source: Source, schema: str) -> bool:
    return source.head.lstrip().startswith(b"{") and f'"{schema}"'.encode() in source.head


def bench(source: Source) -> BenchReport:
    """SmoldiagError where it is none, or a damaged one."""
    return _decoded(source, BenchReport, BENCH)


def report(source: Source) -> Report:
    """SmoldiagError where it is none, or a damaged one."""
    return _decoded(source, Report, REPORT)


def _decoded(source: Source, kind: type[D], schema: str) -> D:
    try:
        return msgspec.json.decode(source.data(MAX_BYTES), type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise SmoldiagError(f"{source.name} is no {schema}: {str(error)[:160]}") from None


def named_bench(path: Path) -> BenchReport:
    """The bench in a file that a person named. SmoldiagError where there is none."""
    found = inputs.find([str(path)]).sources
    if len(found) != 1 or not is_bench(found[0]):
        raise SmoldiagError(
            f"{path} is no {BENCH}", hint="smoldiag nccl-bench --format json --output bench.json writes one"
        )
    return bench(found[0])
