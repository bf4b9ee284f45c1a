"""Documents that other programs read, and their schemas."""

from typing import Any

import msgspec

from smoldiag.facts.cloud import CloudProfile, Detected, ExplainedVariable
from smoldiag.findings import BenchReport, Report
from smoldiag.render.cloud import ProfileList

Document = Report | BenchReport | CloudProfile | Detected | ExplainedVariable | ProfileList
DOCUMENTS: dict[str, type[Document]] = {
    "smoldiag.report-1": Report,
    "smoldiag.bench-1": BenchReport,
    "smoldiag.cloud-profile-1": CloudProfile,
    "smoldiag.cloud-detect-1": Detected,
    "smoldiag.cloud-list-1": ProfileList,
    "smoldiag.cloud-explain-1": ExplainedVariable,
}


def document(report: Document) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def schema(kind: type[Document]) -> str:
    made: dict[str, Any] = msgspec.json.schema(kind)
    return msgspec.json.format(msgspec.json.encode(made, order="deterministic"), indent=2).decode() + "\n"
