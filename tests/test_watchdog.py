"""What torch's watchdogs print, in the words of its versions."""

import pytest

from smoldiag.facts.flight import Fingerprint, RankState, Watchdog
from smoldiag.parse import watchdog

CAUGHT = "Watchdog caught collective operation timeout: WorkNCCL("
RAN = "ran for 600029 milliseconds before timing out."
STATUS = "failure detected by watchdog at work sequence id: 5 PG status: last enqueued work: {}, last completed work: 4"
PREFIX = "node1: [rank3]:[E1123 08:05:03.195 ProcessGroupNCCL.cpp:632] [Rank 3] "
SCATTER = "SeqNum=122, OpType=_REDUCE_SCATTER_BASE, NumelIn=64, NumelOut=8, Timeout(ms)=600000"
GATHER = "SeqNum=7, OpType=ALLGATHER, NumelIn=4, NumelOut=8, Timeout(ms)=600000"
SHAPED = "SeqNum=12, OpType=BROADCAST, TensorShape=[2, 6], Timeout(ms)=600000"


def said(*lines: str, where: str = "log") -> Watchdog:
    return watchdog.parse(lines, where=where)


def state(*lines: str) -> RankState:
    (only,) = said(*lines).states
    return only


@pytest.mark.parametrize(
    ("line", "rank", "seq", "op", "numel", "timeout"),
    [
        (f"[Rank 6] {CAUGHT}OpType=ALLREDUCE, Timeout(ms)=1800000) {RAN}", 6, None, "ALLREDUCE", None, 1_800_000),
        (f"[E ProcessGroupNCCL.cpp:821] [Rank 2] {CAUGHT}{SHAPED}) {RAN}", 2, 12, "BROADCAST", 12, 600_000),
        (f"{PREFIX}{CAUGHT}{SCATTER}) {RAN}", 3, 122, "_REDUCE_SCATTER_BASE", 64, 600_000),
        (f"[rank9]:[E] [PG ID 2 PG GUID 5(s) Rank 1] {CAUGHT}{GATHER}) {RAN}", 9, 7, "ALLGATHER", 4, 600_000),
    ],
)
def test_the_timeout_in_every_version(
    line: str, rank: int, seq: int | None, op: str, numel: int | None, timeout: int
) -> None:
    made = state(line)
    assert (made.rank, made.seq, made.op, made.numel_in, made.timeout_ms) == (rank, seq, op, numel, timeout)
    assert made.ran_ms == 600_029


@pytest.mark.parametrize(
    "line",
    [
        "[PG 0 Rank 1] Timeout at NCCL work: 5, last enqueued NCCL work: 7, last completed NCCL work: 4.",
        "[PG ID 0 PG GUID 0 Rank 1] Exception (either an error or timeout) detected by watchdog at work: 5, "
        "last enqueued NCCL work: 7, last completed NCCL work: 4.",
        f"[PG ID 0 PG GUID 0(default_pg) Rank 1]  {STATUS.format(7)}",
    ],
)
def test_the_state_of_the_group_in_every_version(line: str) -> None:
    made = state(line)
    assert (made.seq, made.last_enqueued, made.last_completed) == (5, 7, 4)


def test_lines_of_one_rank_and_group_add_up_and_the_stack_is_kept() -> None:
    group = "[rank0]:[E] [PG ID 0 PG GUID 0(default_pg) Rank 0]"
    made = state(
        f"{group} {CAUGHT}SeqNum=5, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=1000) {RAN}",
        f"{group} {STATUS.format(5)}",
        "[rank0]:[E] Stack trace of the failed collective: ",
        "#0 all_reduce from /env/torch/distributed/distributed_c10d.py:2696",
        "#1 main from train.py:44",
    )
    assert (made.op, made.last_enqueued, made.group) == ("ALLREDUCE", 5, "default_pg")
    assert [str(f) for f in made.frames] == ["/env/torch/distributed/distributed_c10d.py:2696", "train.py:44"]


def test_fingerprints_of_both_forms_even_where_a_terminal_broke_the_line() -> None:
    old = said(
        "RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running inconsistent collective: "
        "CollectiveFingerPrint(OpType=ALLGATHER, TensorShape",
        "=[41, 256], TensorDtypes=Float, TensorDeviceTypes=TensorOptions(dtype=float (default), device=cuda))",
    )
    assert old.fingerprints[0].shape == "[41, 256]"
    new = said(
        "RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: "
        "CollectiveFingerPrint(SequenceNumber=31, OpType=ALLREDUCE, TensorShape=[5], TensorDtypes=BFloat16, "
        "TensorDeviceTypes=TensorOptions(dtype=float (default))), but Rank 0 is running collective: "
        "CollectiveFingerPrint(SequenceNumber=31, OpType=BROADCAST, TensorShape=[6], TensorDtypes=BFloat16, X)."
    )
    made = [(f.rank, f.op, f.shape, f.seq) for f in new.fingerprints]
    assert made == [(1, "ALLREDUCE", "[5]", 31), (0, "BROADCAST", "[6]", 31)]
    assert isinstance(new.fingerprints[0], Fingerprint)


STUCK = "[rank0]:[E] ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress"
MONITOR = "[Rank 2] Heartbeat monitor timed out! Process will be terminated after dumping debug info."
GLOO = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"
STORE = (
    "Timed out initializing process group in store based barrier on rank: 1, for key: k "
    "(world_size=2, worker_count=1, timeout=0:30:00)"
)
BLOCKING = "[Rank 1] Work WorkNCCL(SeqNum=3, OpType=ALLREDUCE, Timeout(ms)=9) timed out in blocking wait"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (STUCK, "heartbeat-monitor", 480_000),
        (MONITOR, "heartbeat-monitor", None),
        (GLOO, "gloo", 4000),
        ("RuntimeError: Rank 1 failed to pass monitoredBarrier in 2000 ms", "monitored-barrier", 2000),
        (STORE, "store", 1_800_000),
        (BLOCKING, "blocking-wait", 9),
    ],
)
def test_which_timer_fired_and_its_value(line: str, name: str, value: int | None) -> None:
    (timer,) = said(line).timers
    assert (timer.name, timer.value_ms) == (name, value)


def test_ranks_that_did_not_come() -> None:
    made = said(
        "RuntimeError: Ranks 1, 3 failed to pass monitoredBarrier in 30000 ms",
        "\t   - [2] finished collective #4, but didn't join collective #5 (count from 1)",
        "- To our best knowledge, ranks [6, 7] are the lagging ranks that caused this timeout.",
    )
    assert [a.ranks for a in made.absent] == [(1, 3), (2,), (6, 7)]


def test_messages_of_another_size_name_the_rank_of_their_file() -> None:
    made = said(
        "  what():  [enforce fail at gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 2048 vs 2044. ",
        where="logs/rank_2.log",
    )
    (found,) = made.sizes_differ
    assert (found.rank, found.received, found.expected) == (2, 2048, 2044)


def test_the_world_is_known_from_the_set_up() -> None:
    assert said("[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3").world == 4
    line = "[I] [PG 0 Rank 0] ProcessGroupNCCL initialization options: size: 16, global rank: 0, TIMEOUT(ms): 600000"
    assert said(line).world == 16


def test_progress_of_preparations_is_kept_of_training_not() -> None:
    made = said(
        "Preparing test set...:  36%|###5      | 24/67 [23:16<30:00, 41.87s/it]",
        "Preparing test set...:  39%|###8      | 26/67 [24:51<30:30, 44.65s/it]",
        "Epoch 3:  39%|###8      | 26/67 [24:51<30:30, 44.65s/it]",
        "Map: 100%|##########| 67/67 [24:51<00:00, 44.65s/it]",
    )
    assert [(p.label, p.percent, p.elapsed_s) for p in made.busy] == [("Preparing test set...", 39, 1491)]


def test_files_of_several_ranks_are_one() -> None:
    a, b = (said(f"[Rank {r}] {CAUGHT}OpType=ALLREDUCE, Timeout(ms)=9) {RAN}") for r in (0, 1))
    both = watchdog.merged([a, b])
    assert [s.rank for s in both.states] == [0, 1]
    assert [t.ranks for t in both.timers] == [(0, 1)]


def test_an_ordinary_log_says_nothing() -> None:
    assert not said("step 3 loss 2.1", "Epoch 1:  39%|###8      | 26/67 [24:51<30:30, 44.65s/it]").speaks
