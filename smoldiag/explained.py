"""What `explain` makes of what was read: the facts, the findings about them, the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import msgspec

from smoldiag import __version__, rules
from smoldiag.findings import Finding, Report, ranked, verdict
from smoldiag.rules import Known, Outcome


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a reader made of its files."""

    known: Known = field(default_factory=Known)
    understood: tuple[str, ...] = ()  # names of the files that were what they looked like
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What was read, and what is said of it."""

    known: Known
    report: Report
    notes: tuple[str, ...]


def explained(
    known: Known, outcomes: Iterable[Outcome], notes: tuple[str, ...], *, with_facts: bool = False
) -> Explained:
    outcomes = tuple(outcomes)
    findings = ranked(tuple(f for o in outcomes for f in o.findings))
    report = Report(
        command="explain",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(findings),
        findings=findings,
        checks=rules.checks(o for o in outcomes if not o.skipped),
        facts=as_facts(known) if with_facts else None,
        notes=notes,
        restart=restart(findings),
    )
    return Explained(known=known, report=report, notes=notes)


def restart(findings: Sequence[Finding]) -> str:
    """What to do about a restart; empty where nothing failed."""
    first = next((f for f in findings if f.severity.value == "error"), None)
    if first is None:
        return ""
    return first.restart or "unknown: what failed does not say whether a restart would fare better"


def as_facts(known: Known) -> dict[str, Any]:
    plain = {f.name: getattr(known, f.name) for f in fields(Known)}
    if known.flight is not None:  # of its millions of operations the table of ranks and groups
        from smoldiag.model import hangs

        plain["flight"] = {
            "table": hangs.table(known.flight),
            "watchdog": known.flight.watchdog,
            "ras": known.flight.ras,
        }
    if known.run is not None:
        from smoldiag.model import run_causes

        plain["run"] = run_causes.summary(known.run)
    if known.series is not None:  # of its rows the figures
        from smoldiag.model import series_figures

        plain["series"] = series_figures.figures(known.series)
    made: dict[str, Any] = msgspec.to_builtins(plain, str_keys=True)
    return {name: value for name, value in made.items() if value}


def sentence(name: str, error: Exception) -> str:
    said = str(error).partition("\n")[0][:200] or type(error).__name__
    return said if said.startswith(name) else f"{name}: {said}"
