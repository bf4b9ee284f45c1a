"""Figures that `smoldiag explain` computes from the playbook's series, beside those that were published of them.

    python -m benchmarks.series_figures FOLDER

FOLDER has the CSV files of the Smol Training Playbook (`app/src/content/assets/data/` of its repository). The published
figures were computed with pandas, without the first 20 steps. What is not there is skipped; 1 where a figure differs by
more than the last digit that is published.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smoldiag.explain import explain
from smoldiag.facts.series import Series
from smoldiag.model import loss, series

TOKENS_PER_GPU = 6_144  # of one step of the 48-node runs: 2,359,296 tokens on 384 GPUs
DROPS, LONG_DROPS = "throughput_drops_comparison.csv", "throughput_nodrops_small_steps_48nn.csv"
ONE_NODE, TENSOR_PARALLEL, SPIKES = "throughput_debug_1node_full.csv", "tp_debug_fix_loss.csv", "spike_loss.csv"
LONG_RUN, SHORT_RUN = "3B-nanotron-old-nn1-fwedu-", "3B-nanotron-old-nn1-fwedu-32k"


@dataclass(frozen=True, kw_only=True)
class Row:
    file: str
    what: str
    ours: float
    published: float
    digits: int  # behind the point, of what is published

    @property
    def agrees(self) -> bool:
        return abs(self.ours - self.published) <= 0.5 * 10.0**-self.digits * 1.001


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    rows = [row for file, figures in FIGURES.items() if (folder / file).is_file() for row in figures(folder / file)]
    rows += _two_files(folder)
    if not rows:
        print(f"{folder}: none of the playbook's files is here", file=sys.stderr)
        return 2
    for r in rows:
        print(f"{'ok' if r.agrees else 'DIFFERS':8} {r.file:44} {r.what:58} {r.ours:12.6g} {r.published:12.6g}")
    wrong = sum(not r.agrees for r in rows)
    print(f"{len(rows) - wrong} of {len(rows)} figures agree")
    return 1 if wrong else 0


def _runs(path: Path) -> dict[str, Series]:
    return {s.name: s for s in explain([str(path)]).known.series or ()}


def _paced(s: Series) -> series.Pace:
    found = series.pace(s)
    assert found is not None
    return found


def _drops(path: Path) -> Iterator[Row]:
    runs = _runs(path)
    with_, without = _paced(runs["With drops"]), _paced(runs["Without drops"])
    step_s = TOKENS_PER_GPU / with_.median
    stalls = [d.extra_steps * step_s for d in with_.irregular if d.ratio < 0.25]
    replay = series.replay(runs["With drops"], runs["Without drops"])
    assert replay is not None
    for what, ours, published, digits in (
        ("with: rows", with_.rows, 1923, 0),
        ("with: median tokens/s/GPU", with_.median, 13757.4, 1),
        ("with: mean", with_.mean, 13378.1, 1),
        ("with: harmonic", with_.harmonic, 8909.9, 1),
        ("with: least", with_.least, 215.9, 1),
        ("with: share below 0.9", with_.below_90, 0.026, 4),
        ("with: share below 0.5", with_.below_50, 0.0244, 4),
        ("with: share below 0.25", with_.below_25, 0.0244, 4),
        ("with: rows below 0.9", len(with_.irregular), 50, 0),
        ("with: rows below 0.25", len(stalls), 47, 0),
        ("with: extra of slow steps, p5 (steps)", with_.extra(5), 6.586, 3),
        ("with: p50", with_.extra(50), 17.171, 3),
        ("with: p95", with_.extra(95), 47.65, 2),
        ("with: longest", with_.extra(100), 62.7, 1),
        ("with: shortest stall (s)", min(stalls), 6.3, 1),
        ("with: longest stall (s)", max(stalls), 28, 0),
        ("with: share of the time lost", with_.time_lost, 0.3547, 4),
        ("with: scatter of usual steps", with_.usual_cv, 0.0156, 4),
        ("without: median", without.median, 13816.3, 1),
        ("without: mean", without.mean, 13692.4, 1),
        ("without: harmonic", without.harmonic, 13643.4, 1),
        ("without: least", without.least, 6412.3, 1),
        ("without: rows below 0.9", len(without.irregular), 36, 0),
        ("without: share below 0.9", without.below_90, 0.0187, 4),
        ("without: share below 0.5", without.below_50, 0.001, 3),
        ("without: extra p5", without.extra(5), 0.124, 3),
        ("without: p50", without.extra(50), 0.486, 3),
        ("without: p95", without.extra(95), 1.035, 3),
        ("without: longest (s)", without.extra(100) * TOKENS_PER_GPU / without.median, 0.51, 2),
        ("without: share of the time lost", without.time_lost, 0.0153, 4),
        ("without: scatter", without.usual_cv, 0.0131, 4),
        ("slow at the same step in both", replay.shared, 0, 0),
        ("the same by chance", replay.by_chance, 1, 0),
        ("schedules found", len(with_.periods) + len(without.periods), 0, 0),
    ):
        yield Row(file=path.name, what=what, ours=ours, published=published, digits=digits)


def _one_node(path: Path) -> Iterator[Row]:
    runs = _runs(path)
    long, short = _paced(runs[LONG_RUN]), _paced(runs[SHORT_RUN])
    replay = series.replay(runs[LONG_RUN], runs[SHORT_RUN])
    assert replay is not None
    for what, ours, published, digits in (
        ("long: median", long.median, 15280.0, 1),
        ("long: mean", long.mean, 15131.4, 1),
        ("long: rows", long.rows, 9338, 0),
        ("long: harmonic", long.harmonic, 14945.7, 1),
        ("long: slow steps", len(long.irregular), 163, 0),
        ("long: their share", long.rate, 0.0175, 4),
        ("long: extra p5 (steps)", long.extra(5), 1.25, 2),
        ("long: p50", long.extra(50), 1.284, 3),
        ("long: p95", long.extra(95), 1.341, 3),
        ("long: share of the time lost", long.time_lost, 0.0234, 4),
        ("long: scatter", long.usual_cv, 0.004, 3),
        ("32k: rows", short.rows, 4656, 0),
        ("32k: median", short.median, 15528.6, 1),
        ("32k: mean", short.mean, 15445.0, 1),
        ("32k: harmonic", short.harmonic, 15412.3, 1),
        ("32k: slow steps", len(short.irregular), 73, 0),
        ("32k: their share", short.rate, 0.0157, 4),
        ("32k: extra p5 (steps)", short.extra(5), 0.42, 2),
        ("32k: p50", short.extra(50), 0.445, 3),
        ("32k: p95", short.extra(95), 0.475, 3),
        ("32k: share of the time lost", short.time_lost, 0.0085, 4),
        ("32k: scatter", short.usual_cv, 0.0035, 4),
        ("stall of the long run over that of the 32k run", long.extra(50) / short.extra(50), 2.9, 1),
        ("stall of the long run (s)", long.extra(50) * TOKENS_PER_GPU / long.median, 0.52, 2),
        ("stall of the 32k run (s)", short.extra(50) * TOKENS_PER_GPU / short.median, 0.18, 2),
        ("slow at the same step in both", replay.shared, 0, 0),
        ("rate on 48 nodes, were they independent", 1 - (1 - short.rate) ** 48, 0.53, 2),
    ):
        yield Row(file=path.name, what=what, ours=ours, published=published, digits=digits)


def _gaps(path: Path) -> Iterator[Row]:
    runs = _runs(path)
    broken, fixed = loss.gap(runs["TP2"], runs["TP1"]), loss.gap(runs["TP2 after fix"], runs["TP1"])
    assert broken is not None
    assert fixed is not None
    for what, ours, published, digits in (
        ("TP2 - TP1: mean", broken.mean, 0.0396, 4),
        ("TP2 - TP1: standard deviation", broken.std, 0.004, 3),
        ("TP2 - TP1: pairs", broken.pairs, 4787, 0),
        ("TP2 - TP1: share above", broken.positive, 1.0, 2),
        ("fixed - TP1: mean", fixed.mean, 0.0091, 4),
        ("fixed - TP1: pairs", fixed.pairs, 2163, 0),
        ("fixed - TP1: share above", fixed.positive, 0.997, 3),
        ("noise of one run", broken.noises[0], 0.03, 2),
    ):
        yield Row(file=path.name, what=what, ours=ours, published=published, digits=digits)


def _spikes(path: Path) -> Iterator[Row]:
    runs = _runs(path)
    good, bad = loss.loss(runs["Recoverable spikes"]), loss.loss(runs["Non recoverable spikes"])
    assert good is not None
    assert bad is not None
    for what, ours, published, digits in (
        ("recoverable: spikes", len(good.spikes), 1, 0),
        ("recoverable: at (billions of tokens)", good.spikes[0].at / 1e9, 40.2, 1),
        ("recoverable: from", good.spikes[0].loss - good.spikes[0].above, 2.38, 2),
        ("recoverable: to", good.spikes[0].loss, 2.98, 2),
        ("recoverable: ends at", good.last, 2.344, 3),
        ("recoverable: diverged", float(good.diverged), 0, 0),
        ("non-recoverable: leaves its trend at", (bad.rises_from or 0) / 1e9, 33.3, 1),
        ("non-recoverable: diverged", float(bad.diverged), 1, 0),
        ("non-recoverable: ends at (6.5 to 6.7)", bad.last, 6.5, 1),
    ):
        yield Row(file=path.name, what=what, ours=ours, published=published, digits=digits)


FIGURES = {DROPS: _drops, ONE_NODE: _one_node, TENSOR_PARALLEL: _gaps, SPIKES: _spikes}


def _two_files(folder: Path) -> Iterator[Row]:
    """Of one node against 48."""
    if not all((folder / name).is_file() for name in (ONE_NODE, LONG_DROPS, DROPS)):
        return
    one, many = _runs(folder / ONE_NODE)[SHORT_RUN], next(iter(_runs(folder / LONG_DROPS).values()))
    same = _runs(folder / DROPS)["Without drops"]
    found = series.node_counts(one, many)
    assert found is not None
    yield Row(file="two files", what="nodes by name", ours=found.nodes[1], published=48, digits=0)
    yield Row(file="two files", what="speed of 48 nodes over one", ours=found.efficiency, published=0.89, digits=2)
    rate, one_run = found.dip_rates[1], float(series.same_run(same, many))
    yield Row(file="two files", what="rate on 48 nodes (1.6 to 1.9 %)", ours=rate, published=0.0175, digits=2)
    yield Row(file="two files", what="the long file is the same run", ours=one_run, published=1, digits=0)


if __name__ == "__main__":
    sys.exit(main())
