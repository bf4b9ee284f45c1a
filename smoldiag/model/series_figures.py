"""All figures of metrics for a report: of each run, and of runs side by side. Pure."""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

from smoldiag.facts.series import Series
from smoldiag.model import loss, series

MAX_PAIRS = 200


def figures(found: Sequence[Series]) -> dict[str, Any]:
    """`runs`, and of pairs of them `replays`, `nodes`, `loss_gaps`, `resumes`."""
    pairs = list(combinations(found, 2))[:MAX_PAIRS]
    different = [(a, b) for a, b in pairs if not series.same_run(a, b)]
    return {
        "runs": [_run(s) for s in found],
        "same_runs": [[a.label, b.label] for a, b in pairs if series.same_run(a, b)],
        "replays": [r for a, b in different if (r := series.replay(a, b))],
        "nodes": [
            {"few": n.few, "many": n.many, "nodes": n.nodes, "speeds": n.speeds, "efficiency": n.efficiency,
             "dip_rates": n.dip_rates, "independent": n.independent}
            for a, b in different
            if (n := series.node_counts(a, b))
        ],
        "loss_gaps": [g for a, b in pairs if (g := loss.gap(a, b))],
        "resumes": [j for a, b in list(permutations(found, 2))[: 2 * MAX_PAIRS] if (j := loss.resumed(a, b))],
    }  # fmt: skip


def _run(s: Series) -> dict[str, Any]:
    pace = series.pace(s)
    return {
        "name": s.name,
        "where": s.where,
        "source": s.source,
        "rows": s.rows,
        "columns": list(s.columns),
        "nodes": series.nodes(s),
        "tokens_per_step": series.tokens_per_step(s),
        "pace": series.summary(pace) if pace else None,
        "loss": loss.loss(s),
        "joins": loss.joins(s),
    }
