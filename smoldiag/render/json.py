"""Documents that other programs read, and their schemas."""

from typing import Any

import msgspec

from smoldiag.findings import BenchReport, Report

DOCUMENTS = {"smoldiag.report-1": Report, "smoldiag.bench-1": BenchReport}


def document(report: Report | BenchReport) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def schema(kind: type[Report] | type[BenchReport]) -> str:
    made: dict[str, Any] = msgspec.json.schema(kind)
    return msgspec.json.format(msgspec.json.encode(made, order="deterministic"), indent=2).decode() + "\n"
