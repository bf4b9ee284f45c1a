"""LOS: what the losses of runs show: not a number, divergence, spikes, gaps and noise between runs, joins."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from smoldiag.facts import Evidence
from smoldiag.facts.series import Series
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model import loss as model
from smoldiag.model import series as pacing
from smoldiag.rules import rule

SPIKE_WARNING = 0.20  # of the loss; single bad batches in sound runs stay below
SPIKE_ROWS = 0.01  # of all rows
GAP_SIGMAS = 5.0
# Nats. Sound runs of one recipe that differ in seeds and parallelism alone lie 0.01 apart (Smol Training Playbook:
# 0.009 after its fix), a broken initialisation 0.04.
GAP_WARNING = 0.02
GAP_LEAST = 0.003
ONE_RECIPE = 0.10  # of the loss: runs that lie further apart are of different models or data
NOISE_RATIO = 1.3
NOISE_LEAST = 200  # rows of both
SAME_LEVEL = 0.02  # of the loss
MAX_PAIRS = 100


@rule("LOS001", Severity.ERROR)
def loss_is_no_number(series: tuple[Series, ...]) -> Iterator[Finding]:
    """The loss became NaN or infinite and stayed so.

    From there on every step is wasted: the weights are no numbers any more.

    Fix: go back to the last checkpoint before; skip the batches there; look at learning rate, loss scale, precision.
    """
    for s in series:
        found = model.loss(s)
        if found is None or found.lost_from is None:
            continue
        yield Finding(
            message=f"the loss{_of(s)} is no number from {_at(found, found.lost_from)} on",
            cause="loss-not-finite",
            subject=s.name,
            severity=Severity.ERROR,
            evidence=(Evidence(text=f"{found.not_finite} of {found.rows + found.not_finite} losses", where=s.where),),
            why="an overflow or a division by zero in one step makes all weights NaN at the next update",
            fixes=(
                Fix(do="restart from the last checkpoint before it, and leave out the batches around it"),
                Fix(do="clip gradients, lower the learning rate, use bfloat16 instead of float16"),
            ),
            confirm="torch.autograd.set_detect_anomaly(True) for the steps before it",
            restart="fix first",
        )


@rule("LOS002", Severity.ERROR)
def loss_left_its_trend(series: tuple[Series, ...]) -> Iterator[Finding]:
    """The loss rose and did not come back: divergence, or a plateau far above.

    Fix: go back to a checkpoint before the rise, leave out the data there, clip harder or lower the learning rate.
    """
    for s in series:
        found = model.loss(s)
        if found is None or found.rises_from is None:
            continue
        yield Finding(
            message=f"the loss{_of(s)} left its trend at {_at(found, found.rises_from)} and did not come back: "
            f"it ends at {found.last:.3g}, its lowest was {found.lowest:.3g}",
            cause="loss-diverged",
            subject=s.name,
            severity=Severity.ERROR if found.diverged else Severity.WARNING,
            confidence=Confidence.CERTAIN if found.diverged else Confidence.LIKELY,
            evidence=(
                Evidence(
                    text=f"noise {found.noise:.3g}; the end lies {found.end_above:.3g} above the lowest", where=s.where
                ),
            ),
            why="a spike that the optimizer does not recover from: learning rate too high, bad data on a sensitive "
            "state of the weights, precision; or else: other data or another objective from there on",
            fixes=(
                Fix(do="rewind to a checkpoint before it and leave out 200 to 500 batches"),
                Fix(do="clip gradients harder, lower the learning rate, normalise queries and keys"),
            ),
            confirm="the gradient norm before it; the same batches from an earlier checkpoint",
            sources=("arXiv:2204.02311 (PaLM), section 5.1", "Smol Training Playbook: loss spikes"),
            restart="fix first" if found.diverged else "",
        )


@rule("LOS003", Severity.WARNING)
def loss_spikes_and_recovers(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Single losses far above the trend, which comes back.

    Fix: nothing for a few small ones; for large ones look at their data, clip gradients.
    """
    for s in series:
        found = model.loss(s)
        if found is None or not found.spikes:
            continue
        worst = max(found.spikes, key=lambda x: x.above)
        rows = sum(x.rows for x in found.spikes)
        level = abs(worst.loss - worst.above)
        serious = worst.above >= SPIKE_WARNING * level or rows >= SPIKE_ROWS * found.rows
        others = f"; {len(found.spikes) - 1} smaller ones" if len(found.spikes) > 1 else ""
        yield Finding(
            message=f"the loss{_of(s)} spikes to {worst.loss:.3g} at {_at(found, worst.at)} ({worst.above:+.2g}) and "
            f"recovers{others}",
            cause="loss-spikes",
            subject=s.name,
            severity=Severity.WARNING if serious else Severity.INFO,
            confidence=Confidence.CERTAIN,
            evidence=(
                *(
                    Evidence(text=f"{_at(found, x.at)}: {x.loss:.4g}, {x.above:+.2g} over {x.rows} rows", where=s.where)
                    for x in sorted(found.spikes, key=lambda x: -x.above)[:4]
                ),
                *_also_there(s, found, series),
            ),
            why="bad or repetitive documents in a batch, most of the time; spikes at the same tokens in two runs are "
            "the data's",
            fixes=(
                Fix(do="look at the documents of these batches: repeated n-grams, other languages or formats"),
                Fix(do="clip gradients; no weight decay on embeddings; z-loss"),
            ),
            confirm="the gradient norm at these steps; whether a second run on the same data spikes there, too",
            sources=("Smol Training Playbook: loss spikes",),
        )


def _also_there(s: Series, found: model.Loss, series: Sequence[Series]) -> Iterator[Evidence]:
    """Other runs that spike at the same places."""
    for other in series:
        theirs = model.loss(other) if other is not s else None
        if theirs is None or theirs.axis != found.axis:
            continue
        shared = {x.at for x in found.spikes} & {x.at for x in theirs.spikes}
        if shared and not _equal(s, other):
            yield Evidence(
                text=f"{other.label} spikes at {len(shared)} of these {len(found.spikes)} {found.axis}, too: it is the "
                "data's",
                where=other.where,
            )


@rule("LOS004", Severity.WARNING)
def losses_differ_at_equal_tokens(series: tuple[Series, ...]) -> Iterator[Finding]:
    """One run learns worse than another from the same number of tokens.

    Paired at equal tokens the noise of the data cancels out, so that gaps far below the noise of one run show.

    Fix: list what differs between the two; compare the weights of all ranks right after initialisation.
    """
    gaps = [g for a, b in _pairs(series) if (g := model.gap(a, b))]
    for found in sorted(gaps, key=lambda g: -g.mean):
        if found.sigmas < GAP_SIGMAS or not GAP_LEAST <= found.mean <= ONE_RECIPE * found.levels[1]:
            continue
        yield Finding(
            message=f"{found.above} lies {found.mean:.4f} +- {found.std:.3f} above {found.below} at equal "
            f"{found.axis} (in {found.positive:.1%} of {found.pairs} pairs), {found.shape}",
            cause="loss-gap",
            subject=f"{found.above} / {found.below}",
            severity=Severity.WARNING if found.mean >= GAP_WARNING else Severity.INFO,
            confidence=Confidence.CERTAIN,
            evidence=(
                Evidence(
                    text=f"first quarter {found.early:+.4f}, last quarter {found.late:+.4f}; noise of each alone "
                    f"{found.noises[0]:.3f} and {found.noises[1]:.3f}",
                    where=found.where,
                ),
            ),
            why=GAP_WHY[found.shape],
            cost=f"{found.mean:.4f} nats ({found.mean / found.levels[1]:.1%} of the loss)",
            fixes=(
                Fix(
                    do="right after initialisation compare the shards of all ranks: equal ones across tensor-parallel "
                    "ranks are one seed for all, replicas that differ are several"
                ),
                Fix(do="list what differs between the two configurations, and change one thing at a time"),
            ),
            confirm="both for a few hundred steps on the same batches with one difference less: the gap shows early",
            sources=("Smol Training Playbook, the training marathon: mystery 4",),
        )


GAP_WHY = {
    "constant": "a gap that is there early and does not grow is in the start or the data: seeds (shards that are equal "
    "across ranks), initialisation, the mixture or order of the data, how documents are masked",
    "growing": "a gap that grows is in each update: learning rate, weights or gradients kept in bfloat16 without a "
    "float32 copy, the optimizer's settings, other batches",
    "shrinking": "a gap that shrinks is in the start: warm-up, initialisation, the first data",
}


@rule("LOS005", Severity.WARNING)
def one_loss_is_noisier(series: tuple[Series, ...]) -> Iterator[Finding]:
    """Two runs reach the same loss, but one scatters more from step to step.

    Fix: shuffle sequences, not only documents; compare the batch sizes.
    """
    for a, b in _pairs(series):
        first, second = model.loss(a), model.loss(b)
        if first is None or second is None or min(first.rows, second.rows) < NOISE_LEAST:
            continue
        if first.rises_from is not None or second.rises_from is not None or min(first.noise, second.noise) <= 0:
            continue
        (loud, noisy), (calm, quiet) = sorted(((a, first), (b, second)), key=lambda x: -x[1].noise)
        ratio = noisy.noise / quiet.noise
        found = model.gap(a, b)
        levels = found.levels if found else (first.last, second.last)
        if ratio < NOISE_RATIO or abs(levels[0] - levels[1]) > SAME_LEVEL * min(levels):
            continue
        batches = [_batch(s) for s in (loud, calm)]
        explained = batches[0] is not None and batches[1] is not None and batches[0] < 0.8 * batches[1]
        yield Finding(
            message=f"the loss of {loud.label} scatters {ratio:.2f} times as much as that of {calm.label} "
            f"({noisy.noise:.4f} against {quiet.noise:.4f}) at the same level",
            cause="loss-noise",
            subject=f"{loud.label} / {calm.label}",
            severity=Severity.INFO if explained else Severity.WARNING,
            confidence=Confidence.CERTAIN,
            evidence=(
                Evidence(
                    text=f"standard deviation from the running median; correlation from row to row {noisy.lag1:.2f}",
                    where=loud.where,
                ),
            ),
            why="its batches are smaller: noise falls with the square root of the batch"
            if explained
            else "its batches are less mixed: sequences of one document that are read one after the other, documents "
            "shuffled but not sequences; or else: a smaller batch, another mixture",
            fixes=(Fix(do="shuffle sequences within and across documents before training"),),
            confirm="how many sequences of one batch come from the same document; the tokens per step of both",
            sources=("Smol Training Playbook, the training marathon: mystery 3",),
        )


@rule("LOS006", Severity.WARNING)
def loss_jumps_where_a_run_goes_on(series: tuple[Series, ...]) -> Iterator[Finding]:
    """After a restart the loss is higher than before it.

    Fix: save and load everything: optimizer, schedule, loss scale, the loader's place, random states.
    """
    joins = [(s, j) for s in series for j in model.joins(s)]
    joins += [(b, j) for a, b in list(permutations(series, 2))[: 2 * MAX_PAIRS] if (j := model.resumed(a, b))]
    for s, join in joins:
        names = f"{join.b} goes on with {join.a}" if join.a != join.b else f"the run{_of(s)} goes on"
        unit = "steps" if s.has("step") else "tokens"
        yield Finding(
            message=f"{names} at {join.at:.10g} ({join.repeated:.10g} {unit} are repeated); the loss "
            f"{'joins within its noise' if join.is_clean else f'jumps by {join.jump:+.3g}'}: {join.before:.4f} before, "
            f"{join.after:.4f} after ({join.rows} rows each)",
            cause="resume-loss-jump" if not join.is_clean else "resume-joins",
            subject=f"{join.a} {join.b}",
            severity=Severity.INFO if join.is_clean else Severity.WARNING,
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text=f"noise of the loss {join.noise:.3g}", where=s.where),),
            why="" if join.is_clean else "something of the state was not restored, or the data starts over",
            fixes=()
            if join.is_clean
            else (
                Fix(do="restore optimizer, learning-rate schedule, loss scale, random states and the loader's place"),
            ),
            confirm="save and load at once: the next loss must be the same to the last digit",
        )


def _pairs(series: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    """Of different runs that neither go on with each other nor left their trend."""
    told = [s for s in series if (found := model.loss(s)) and found.rises_from is None and found.lost_from is None]
    for a, b in list(combinations(told, 2))[:MAX_PAIRS]:
        if not (model.resumed(a, b) or model.resumed(b, a) or _equal(a, b)):
            yield a, b


def _batch(s: Series) -> float | None:
    """Tokens per step where both are told, else what the run's name says of its batch."""
    if told := pacing.tokens_per_step(s):
        return told.per_step
    match = _BATCH.search(s.name)
    return float(match[1]) * {"k": 1e3, "m": 1e6}.get(match[2].lower(), 1.0) if match else None


_BATCH = re.compile(r"(?:gbs|bs|batch(?:[ _-]?size)?)[ _=:-]{0,3}(\d+(?:\.\d+)?) ?([km]?)", re.IGNORECASE)


def _equal(a: Series, b: Series) -> bool:
    """One run in two files."""
    return set(model.points(a)[-20:]) & set(model.points(b)) != set()


def _at(found: model.Loss, x: float) -> str:
    if found.axis == "tokens":
        return f"{x / 1e9:.4g}B tokens" if x >= 1e8 else f"{x:.10g} tokens"
    return f"{found.axis} {x:.0f}"


def _of(s: Series) -> str:
    return f" of {s.name}" if s.name else ""
