"""One line and an exit code, as schedulers and monitors want them. See docs/doctor.md for each convention.

A skipped or crashed check never fails a node: only findings do.
"""

from smoldiag.findings import Finding, Report, Severity, Status

PROLOG, HEALTHCHECK, NAGIOS, PROBE = "prolog", "healthcheck", "nagios", "k8s-probe"
KINDS = (PROLOG, HEALTHCHECK, NAGIOS, PROBE)
OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3  # Nagios plugin guidelines, return codes
MAX_LINE = 240  # characters; reasons of drained nodes are shown in narrow tables


def line(r: Report, kind: str) -> str:
    """What is printed."""
    worst = next(iter(r.findings), None)
    said = _said(r, worst, kind)
    if kind == NAGIOS:
        counts = {s: sum(f.severity is s for f in r.findings) for s in Severity}
        performance = f"errors={counts[Severity.ERROR]} warnings={counts[Severity.WARNING]}"
        said = f"SMOLDIAG {('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')[code(r, kind)]} - {_plain(said)} | {performance}"
    return said


def code(r: Report, kind: str) -> int:
    """The exit code."""
    severities = {f.severity for f in r.findings}
    if kind != NAGIOS:
        return int(Severity.ERROR in severities)
    if Severity.ERROR in severities:
        return CRITICAL
    if Severity.WARNING in severities:
        return WARNING
    looked = any(c.status in (Status.PASSED, Status.FOUND) for c in r.checks)
    return OK if looked else UNKNOWN


def failure(why: str, kind: str) -> tuple[str, int]:
    """Line and exit code where smoldiag itself could not do its work: no reason to drain a node."""
    said = _cut(f"smoldiag could not check this node: {why}")
    return (f"SMOLDIAG UNKNOWN - {_plain(said)}", UNKNOWN) if kind == NAGIOS else (said, OK)


def _said(r: Report, worst: Finding | None, kind: str) -> str:
    shown = worst if worst is not None and (kind == NAGIOS or worst.severity is Severity.ERROR) else None
    if shown is not None and shown.severity is not Severity.INFO:
        more = sum(f.severity is shown.severity for f in r.findings) - 1
        return _cut(f"smoldiag {shown.code} {shown.cause}: {shown.message}", f" (and {more} more)" if more else "")
    passed = len({c.code for c in r.checks if c.status in (Status.PASSED, Status.FOUND)})
    skipped = len({c.code for c in r.checks if c.status in (Status.SKIPPED, Status.CRASHED)})
    if not passed:
        return f"smoldiag: nothing could be checked here ({skipped} checks skipped)"
    return f"smoldiag: no fault found ({passed} checks made, {skipped} skipped)"


def _cut(words: str, tail: str = "") -> str:
    words = " ".join(words.split())
    return words + tail if len(words) + len(tail) <= MAX_LINE else f"{words[: MAX_LINE - len(tail) - 4]} ...{tail}"


def _plain(words: str) -> str:
    """Nagios takes what follows a bar for performance data."""
    return words.replace("|", "/")
