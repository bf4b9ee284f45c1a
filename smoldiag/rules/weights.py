"""LOS: what optimizers update, as the monitor saw it around the first step: equal shards, low precision."""

from collections.abc import Iterator, Mapping, Sequence

from smoldiag.facts import Evidence
from smoldiag.facts.run import Run
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model import folded, weights
from smoldiag.rules import rule

MAX_SHOWN = 8
HALF_OF = {"bfloat16": 512, "float16": 4096}  # 2 to the number of its bits, and one: half of the last place


@rule("LOS007", Severity.ERROR)
def shards_start_equal(run: Run) -> Iterator[Finding]:
    """Ranks hold different shards of a matrix, and these start with the same values.

    Every rank has drawn its shard from the same seed: the matrix repeats itself, and the model learns worse than the
    same one on a single GPU (Smol Training Playbook: 0.04 in the loss, constant over 20 billion tokens).

    Fix: a seed of its own for each rank of a tensor-parallel group, or the whole matrix drawn and then sharded.
    """
    equal = weights.equal_shards(run.beside.weights)
    if not equal:
        return
    looked_at = {name for w in run.beside.weights.values() for name in w.shards}
    ranks = sorted({rank for found in equal.values() for rank in found})
    yield Finding(
        message=f"{len(equal)} of {len(looked_at)} sharded matrices start with the same values on {_named(ranks)}, "
        "which hold different shards of them",
        cause="shards-start-equal",
        severity=Severity.ERROR,
        where=Where(ranks=tuple(ranks)),
        evidence=tuple(
            Evidence(
                text=f"parameter {name} of the optimizer: sum {total:.6g}, sum of squares {squares:.6g} of its first "
                f"{count:.0f} values on {_named(found)}",
                where=run.where or "run",
            )
            for name, found in list(equal.items())[:MAX_SHOWN]
            for total, squares, _, count in (run.beside.weights[found[0]].shards[name],)
        ),
        why="each rank has drawn its shard from the same seed: the whole matrix repeats itself",
        cost="a constant gap of the loss: 0.04 in the Smol Training Playbook's run",
        fixes=(
            Fix(do="another seed on each rank of the group", command="torch.manual_seed(seed + tensor_parallel_rank)"),
            Fix(do="or draw through DTensor, which gives each shard its own part: torch.nn.init on the parameter"),
        ),
        confirm="compare the first values of two shards right after initialising",
    )


@rule("LOS008", Severity.INFO)
def weights_are_updated_in_low_precision(run: Run) -> Iterator[Finding]:
    """The optimizer updates weights in bfloat16 or float16, and keeps no copy in float32.

    bfloat16 has 8 bits: an update below 1/512 of a weight is rounded away (Zamirai and others, Revisiting BFloat16
    Training, arXiv 2010.06192). With warm learning rates a run does not show it, at small ones it stops learning.

    Fix: weights in float32 and mixed precision, an optimizer with float32 copies, or stochastic rounding.
    """
    for rank, w in sorted(run.beside.weights.items())[:1]:  # all ranks have the same kinds
        low = {dtype: n for dtype, n in w.parameters.items() if dtype in HALF_OF}
        copies = w.state.get("float32", 0)
        if not low or sum(low.values()) < sum(w.parameters.values()) / 2 or copies >= sum(low.values()):
            return
        dtype = max(low, key=low.__getitem__)
        yield Finding(
            message=f"{w.optimizer} updates weights in {dtype} and keeps no copy of them in float32",
            cause="weights-in-low-precision",
            severity=Severity.INFO,
            confidence=Confidence.POSSIBLE,
            evidence=(
                Evidence(
                    text=f"rank {rank}: parameters {_counts(w.parameters)}; state {_counts(w.state)}",
                    where=run.where or "run",
                ),
            ),
            why=f"an update below 1/{HALF_OF[dtype]} of a weight is rounded away: at a learning rate of "
            f"{w.learning_rate:g}, which is about what Adam adds, in each weight above "
            f"{w.learning_rate * HALF_OF[dtype]:.3g}",
            fixes=(
                Fix(
                    do="FSDP2: weights in float32, computation in bfloat16",
                    command="fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))",
                ),
                Fix(do="in Accelerate and the Hugging Face Trainer, weights loaded in float32", command="--bf16"),
                Fix(do="in torchtitan", command="--training.dtype float32"),
                Fix(do="in Lightning", command='Trainer(precision="bf16-mixed")'),
            ),
            confirm="the loss of both at the same tokens: smoldiag compare A B",
        )


def _counts(of: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {dtype}" for dtype, n in of.items()) or "none"


def _named(ranks: Sequence[int]) -> str:
    return f"ranks {folded.ranges(ranks, most=MAX_SHOWN)}"
