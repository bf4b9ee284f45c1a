"""ACC: requirements of an acceptance, and what earlier runs say of a node."""

from collections.abc import Iterator

from smoldiag.facts import Cluster, Evidence
from smoldiag.facts.acceptance import Certificate, History, Line
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import history as model
from smoldiag.rules import rule

FALLS = 0.10  # of its own earlier median; a figure that repeats to 3 % has lost something then
SIGMAS = 4.0  # of its own earlier spread
SPREAD_FLOOR = 0.02
Certificates = tuple[Certificate, ...]
WORDS = {"minimum": "at least", "maximum": "at most", "equal": "exactly"}


@rule("ACC001", Severity.ERROR)
def requirement_not_met(certificates: Certificates) -> Iterator[Finding]:
    """A node, or the fleet, does not meet a requirement of the criteria.

    Fix: leave the node out or give it back; the other findings say what may be wrong with it.
    """
    for c, line in _lines(certificates):
        if line.measured is not None and not line.met:
            r = line.requirement
            yield Finding(
                message=f"{c.host or 'the fleet'}: {r.name} is {shown(line.measured)}, "
                f"required {WORDS[r.kind]} {shown(r.value)}",
                cause="requirement-not-met",
                subject=r.name,
                severity=Severity.ERROR,
                where=Where(hosts=(c.host,) if c.host else ()),
                evidence=(Evidence(text=f"{r.name} = {shown(line.measured)}", where=c.host or "the fleet"),),
                why="what the criteria ask for is not there",
                fixes=(Fix(do="leave it out, or have it repaired"),) if c.host else (),
                confirm="smoldiag preflight --criteria FILE",
            )


@rule("ACC002", Severity.ERROR)
def requirement_not_measured(certificates: Certificates) -> Iterator[Finding]:
    """Nobody measured what a requirement of the criteria is about.

    A node is accepted when every requirement is met and measured: what was not measured is not known to be good.

    Fix: run the stage that measures it (a higher --level, --path for storage, --trainer for tokens/s).
    """
    for c, line in _lines(certificates):
        if line.measured is None:
            yield Finding(
                message=f"{c.host or 'the fleet'}: {line.requirement.name} was not measured",
                cause="requirement-not-measured",
                subject=line.requirement.name,
                severity=Severity.ERROR,
                where=Where(hosts=(c.host,) if c.host else ()),
                evidence=(Evidence(text=f"no {line.requirement.name}", where=c.host or "the fleet"),),
                why="what was not measured is not known to be good",
                fixes=(Fix(do="measure it: a higher --level, --path for storage, --trainer for tokens/s"),),
                confirm="smoldiag preflight --criteria FILE --level standard",
            )


def _lines(certificates: Certificates) -> Iterator[tuple[Certificate, Line]]:
    yield from ((c, line) for c in certificates for line in c.lines)


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


@rule("ACC003", Severity.WARNING)
def node_fails_now_and_then(history: History, cluster: Cluster | None) -> Iterator[Finding]:
    """A node failed in several earlier runs and passed in others.

    It passes today, and fails in the middle of a run: one check at the start does not find it.

    Fix: leave it out and have it examined; run preflight with --repeat on it.
    """
    for row in _here(history, cluster):
        if not row.flaky:
            continue
        low, high = row.interval
        yield Finding(
            message=f"{row.host} failed in {row.failed} of {row.runs} runs ({low:.0%} to {high:.0%} of the time): "
            f"{row.marks}",
            cause="node-fails-now-and-then",
            confidence=Confidence.LIKELY,
            where=Where(hosts=(row.host,)),
            evidence=(Evidence(text=f"{row.marks}, because of {', '.join(row.codes) or '?'}", where=history.where),),
            why="what fails in one start of ten fails in the middle of a long run, too",
            fixes=(Fix(do=f"start the job without {row.host}", command=f"srun --exclude={row.host} ..."),),
            confirm=f"smoldiag preflight --repeat 30m on {row.host}",
            sources=("Wilson, JASA 22 (1927): score interval of a rate",),
        )


@rule("ACC004", Severity.INFO)
def figure_falls(history: History, cluster: Cluster | None) -> Iterator[Finding]:
    """A figure of a node is lower in the last runs than it used to be there.

    Dust, a fan, a cable that loosens: what falls slowly is within every limit until it is not.

    Fix: look at the node before it fails.
    """
    for row in _here(history, cluster):
        for t in row.trends:
            gap = t.earlier - t.recent
            if gap > max(FALLS * t.earlier, SIGMAS * max(t.spread, SPREAD_FLOOR * t.earlier)):
                yield Finding(
                    message=f"{row.host}: {t.figure} fell from {t.earlier:.4g} to {t.recent:.4g} ({t.change:+.0%}) "
                    f"over {t.runs} runs",
                    cause="figure-falls",
                    subject=t.figure,
                    severity=Severity.INFO,
                    confidence=Confidence.LIKELY,
                    where=Where(hosts=(row.host,)),
                    evidence=(Evidence(text=f"{t.figure}: median {t.earlier:.4g} before", where=history.where),),
                    why="a figure that falls on one node alone has a cause there",
                    fixes=(Fix(do="look at clocks, temperatures and error counters of the node"),),
                )


def _here(history: History, cluster: Cluster | None) -> list[model.Row]:
    """Nodes of this run; all of them where nobody looked at hosts."""
    names = {h.name for h in cluster} if cluster else None
    return [row for row in model.rows(history) if names is None or row.host in names]
