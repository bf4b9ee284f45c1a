"""Documents that other programs read, and their schemas."""

from typing import Any

import msgspec

from smoldiag.facts.acceptance import Certificates, PastRun
from smoldiag.facts.cloud import CloudProfile, Detected, ExplainedVariable
from smoldiag.findings import BenchReport, PreflightReport, Report
from smoldiag.model.history import HistoryTable
from smoldiag.render.cloud import ProfileList

Clouds = CloudProfile | Detected | ExplainedVariable | ProfileList
Document = Report | BenchReport | Clouds | PastRun | HistoryTable | Certificates
DOCUMENTS: dict[str, type[Document]] = {
    "smoldiag.report-1": Report,
    "smoldiag.report-1-preflight": PreflightReport,
    "smoldiag.bench-1": BenchReport,
    "smoldiag.cloud-profile-1": CloudProfile,
    "smoldiag.cloud-detect-1": Detected,
    "smoldiag.cloud-list-1": ProfileList,
    "smoldiag.cloud-explain-1": ExplainedVariable,
    "smoldiag.history-1": PastRun,
    "smoldiag.history-table-1": HistoryTable,
    "smoldiag.certificates-1": Certificates,
}


def document(report: Document) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def schema(kind: type[Document]) -> str:
    made: dict[str, Any] = msgspec.json.schema(kind)
    return msgspec.json.format(msgspec.json.encode(made, order="deterministic"), indent=2).decode() + "\n"
