"""A report as metrics, for the textfile collector of Prometheus' node_exporter: `--output DIR/smoldiag.prom`.

The text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats); the textfile collector takes no
timestamps in it (github.com/prometheus/node_exporter#textfile-collector).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from smoldiag.findings import Decision, PreflightReport, Report, Severity, Status, Verdict

LEVEL = {Verdict.OK: 0, Verdict.INFO: 0, Verdict.WARNING: 1, Verdict.ERROR: 2, Verdict.INCOMPLETE: 3}
GO = {Decision.GO: 0, Decision.WARNINGS: 1, Decision.NO_GO: 2, Decision.INCOMPLETE: 3}
MAX_SERIES = 2000  # one per finding and host; a scrape of more costs the server more than it tells
Sample = tuple[Mapping[str, str], float]


def report(r: Report) -> str:
    return "".join(line + "\n" for line in _lines(r))


def preflight(r: PreflightReport) -> str:
    """With the decision on each host and the time of each stage."""
    p = r.preflight
    words = "0 GO, 1 GO with warnings, 2 NO-GO, 3 INCOMPLETE"
    each = [({"host": h.name}, float(GO[h.decision])) for h in p.hosts]
    took = [({"stage": s.name, "status": s.status}, s.seconds) for s in p.stages]
    more = [
        *_metric("preflight", words, [({"level": p.level}, GO[p.decision])]),
        *_metric("preflight_host", words, each[:MAX_SERIES]),
        *_metric("preflight_stage_seconds", "How long each stage took", took),
    ]
    return report(r) + "".join(line + "\n" for line in more)


def _lines(r: Report) -> Iterator[str]:
    severities = Counter(f.severity for f in r.findings)
    statuses = Counter({s: len({c.code for c in r.checks if c.status is s}) for s in Status})
    each = [
        ({"code": f.code, "cause": f.cause, "severity": f.severity.value, "host": host}, 1.0)
        for f in r.findings
        for host in f.where.hosts or ("",)
    ]
    created = datetime.fromisoformat(r.created).timestamp()
    yield from _metric("verdict", "0 ok, 1 warning, 2 error, 3 incomplete", [({}, LEVEL[r.verdict])])
    yield from _metric("findings", "Findings by severity", [({"severity": s.value}, severities[s]) for s in Severity])
    yield from _metric("checks", "Checks by what became of them", [({"status": s.value}, statuses[s]) for s in Status])
    yield from _metric("finding", "One per finding and host", each[:MAX_SERIES])
    yield from _metric("created_timestamp_seconds", "When the facts were judged", [({}, created)])
    yield from _metric("info", "The smoldiag that looked", [({"version": r.version, "command": r.command}, 1)])


def _metric(name: str, words: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP smoldiag_{name} {words}"
    yield f"# TYPE smoldiag_{name} gauge"
    for labels, value in samples:
        inside = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        yield f"smoldiag_{name}{f'{{{inside}}}' if inside else ''} {value:.15g}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
