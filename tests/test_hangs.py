"""Who keeps a job, from the dumps of its ranks: simulated jobs with one fault, and healthy ones."""

import random
from dataclasses import replace

import pytest

from smoldiag import rules
from smoldiag.facts.flight import TIMED_OUT, Dump, Flight, Frame, Stack
from smoldiag.findings import Finding, Severity, ranked
from smoldiag.model.hangs import diagnosis
from smoldiag.model.streams import agreement
from smoldiag.model.watchdogs import readings
from smoldiag.parse import watchdog
from smoldiag.rules import Known
from tests.hangs.faults import CAUSES, put
from tests.hangs.simulated import LAYOUTS, Job, Op, Rank, _call, job

STEP = {"flat": 63, "hsdp": 151, "pipeline": 18}  # operations until everything has come once
LATE_MS = 9000  # the dumps are written so long after the last tick
ABOVE_INFO = (Severity.ERROR, Severity.WARNING)


def findings(*dumps: Dump, **more: object) -> tuple[Finding, ...]:
    known = Known(flight=Flight(dumps=dumps, **more))  # type: ignore[arg-type]
    outcomes = list(rules.run(known, [r for r in rules.RULES.values() if r.needs == ("flight",)]))
    assert not any(o.crashed for o in outcomes), [o.crashed for o in outcomes]
    return ranked(tuple(f for o in outcomes for f in o.findings))


def alarms(*dumps: Dump, **more: object) -> list[Finding]:
    return [f for f in findings(*dumps, **more) if f.severity in ABOVE_INFO]


def hung(layout: str, fault: str, seed: int) -> tuple[Job, int, int]:
    """A job that ran into its fault, the rank, and when to look."""
    chance = random.Random(seed)
    groups, program = LAYOUTS[layout]()
    made = job(groups, program, ahead=chance.choice([1, 5, 50]), compute=chance.choice([0, 3]), seed=seed)
    rank = chance.choice(groups["default"])
    put(fault, made, rank, step=STEP[layout], chance=chance)
    ticks = 4000 if made.compute else 2500
    made.run(ticks)
    return made, rank, ticks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fault", CAUSES)
@pytest.mark.parametrize("layout", ["flat", "hsdp"])
def test_cause_and_rank_are_named(layout: str, fault: str, seed: int) -> None:
    made, rank, now = hung(layout, fault, seed)
    kept = 400 if seed % 2 else 2000
    seen = [r for r in made.ranks if not (fault == "killed" and r == rank)]
    first = findings(*(made.dump(r, now, written=now + LATE_MS, keep=kept) for r in seen))[0]
    assert (first.cause, first.where.ranks) == (CAUSES[fault], (rank,)), first.message
    assert first.severity is Severity.ERROR
    assert "train.py:" in first.message


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", ["branch", "slow", "killed", "uneven"])
def test_in_a_pipeline_too(fault: str, seed: int) -> None:
    made, rank, now = hung("pipeline", fault, seed)
    seen = [r for r in made.ranks if not (fault == "killed" and r == rank)]
    first = findings(*(made.dump(r, now, written=now + LATE_MS) for r in seen))[0]
    assert first.where.ranks == (rank,), first.message


@pytest.mark.parametrize("fault", CAUSES)
@pytest.mark.parametrize("layout", ["flat", "hsdp"])
def test_half_of_the_dumps_name_it_or_a_shortlist_that_holds_it(layout: str, fault: str) -> None:
    for seed in range(4):
        made, rank, now = hung(layout, fault, seed)
        chance = random.Random(seed)
        seen = chance.sample(sorted(made.ranks), len(made.ranks) // 2)
        dumps = [made.dump(r, now, written=now + LATE_MS) for r in seen if not (fault == "killed" and r == rank)]
        found = alarms(*dumps)
        assert found
        named = {r for f in found for r in f.where.ranks}
        assert rank in named, [f.message for f in found]
        assert all(rank in f.where.ranks for f in found if f.confidence.value == "certain")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_that_goes_on_raises_no_alarm(layout: str, seed: int) -> None:
    chance = random.Random(seed)
    groups, program = LAYOUTS[layout]()
    made = job(groups, program, ahead=chance.choice([1, 5, 50, 500]), compute=chance.choice([0, 3, 30]), seed=seed)
    now, apart, kept = chance.randint(50, 1500), chance.choice([0, 2, 50]), chance.choice([2000, 40])
    made.run(now + apart + 1)
    at = {r: now + chance.randint(0, apart) for r in made.ranks}
    seen = [r for r in made.ranks if seed % 3 or chance.random() < 0.5]
    assert not alarms(*(made.dump(r, at[r], written=at[r] + 200, keep=kept) for r in seen))


def test_dumps_of_different_moments_are_no_hang_however_late_they_were_copied() -> None:
    groups, program = LAYOUTS["flat"]()
    made = job(groups, program)
    made.run(600)
    dumps = [made.dump(r, 300 + 40 * r, written=3_000_000) for r in made.ranks]
    assert not alarms(*dumps)
    assert "gone on" in diagnosis(Flight(dumps=tuple(dumps))).moved_on


def test_operations_in_flight_on_all_ranks_are_no_hang_until_a_timeout() -> None:
    made = job({"default": (0, 1)}, lambda rank: [Op("default", "all_reduce", 8, 10)] * 30)
    made.run(40)
    for rank in made.ranks.values():
        last = max(rank.ended)
        rank.ended.pop(last)
        rank.enqueued = [e for e in rank.enqueued if e[1] <= last]
    assert not alarms(*(made.dump(r, 40, written=20_040) for r in (0, 1)))
    dumps = [made.dump(r, 40, written=700_000) for r in (0, 1)]
    assert [f.cause for f in alarms(*dumps)] == ["network-wedged"]
    for d in dumps:
        d.tracks[0].states[-1] = TIMED_OUT
    assert [f.cause for f in alarms(*(replace(d, written_s=None) for d in dumps))] == ["network-wedged"]


def test_a_watchdog_that_fired_is_proof_of_standing_still() -> None:
    made, rank, now = hung("flat", "slow", 1)
    dumps = [made.dump(r, now, written=now + 20) for r in made.ranks]
    assert not alarms(*dumps)
    said = watchdog.parse(
        [
            "[rank0]:[E1 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective operation timeout: "
            "WorkNCCL(SeqNum=9, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600029 "
            "milliseconds before timing out."
        ],
        where="log",
    )
    first = alarms(*dumps, watchdog=said)[0]
    assert first.where.ranks == (rank,)


def test_two_sends_that_wait_for_each_other() -> None:
    made = Job(
        groups={"default": (0, 1), "pp_0": (0, 1)},
        ranks={
            0: Rank(program=[Op("pp_0", "send", 4, 20, to=1), Op("pp_0", "recv", 4, 21, source=1)]),
            1: Rank(program=[Op("default", "barrier", 0, 30)]),
        },
        ahead=1,
    )
    made.run(50)
    dumps = [made.dump(r, 50, written=50 + LATE_MS) for r in (0, 1)]
    assert not alarms(*dumps)  # it may be two moments of a run
    dumps[0].tracks[0].states[-1] = TIMED_OUT
    (found,) = alarms(*dumps)
    assert (found.cause, found.where.ranks) == ("collective-mismatch", (0, 1))


def test_a_receive_whose_send_never_comes() -> None:
    made = Job(
        groups={"default": (0, 1), "pp_0": (0, 1)},
        ranks={
            0: Rank(program=[Op("default", "all_reduce", 4, 10), Op("pp_0", "recv", 4, 21, source=1)]),
            1: Rank(program=[Op("default", "all_reduce", 4, 10)]),
        },
    )
    made.run(50)
    (found,) = alarms(*(made.dump(r, 50, written=50 + LATE_MS) for r in (0, 1)))
    assert (found.code, found.where.ranks) == ("HNG025", (1,))


def test_ranks_agree_on_elements_not_on_shapes() -> None:
    base = _call(Op("default", "all_reduce", 12, 1), 0, (0, 1))
    assert agreement(replace(base, input_sizes=((3, 4),), output_sizes=((3, 4),))) == agreement(base)
    assert agreement(replace(base, input_dtypes=("Half",))) != agreement(base)
    uneven = replace(base, op="all_to_all")
    assert agreement(replace(uneven, input_sizes=((5,),))) == agreement(uneven)
    gather = replace(base, op="all_gather", input_sizes=((3,),), output_sizes=((3,), (5,)))
    assert agreement(replace(gather, input_sizes=((5,),))) == agreement(gather)


def test_the_newest_of_several_dumps_of_a_rank_counts() -> None:
    made, rank, now = hung("flat", "slow", 2)
    old = [made.dump(r, now // 50, written=now) for r in made.ranks]
    new = [made.dump(r, now, written=now + LATE_MS) for r in made.ranks]
    assert alarms(*old, *new)[0].where.ranks == (rank,)


def test_a_dump_without_a_name_is_placed_where_its_groups_meet() -> None:
    made, rank, now = hung("hsdp", "slow", 3)
    dumps = [made.dump(r, now, written=now + LATE_MS) for r in made.ranks]
    assert alarms(*(replace(d, rank=None) for d in dumps))[0].where.ranks == (rank,)


def test_a_stack_of_the_rank_says_where_it_is() -> None:
    made, rank, now = hung("flat", "slow", 5)
    at = Stack(where="stacks.txt", rank=rank, thread="MainThread", frames=(Frame("read", "data/tokens.py", 41),))
    first = findings(*(made.dump(r, now, written=now + LATE_MS) for r in made.ranks), stacks=(at,))[0]
    assert "it is at data/tokens.py:41 (read)" in first.message


def test_thousand_ranks_in_seconds() -> None:
    made, rank, now = hung("flat", "slow", 4)
    few = [made.dump(r, now, written=now + LATE_MS) for r in made.ranks]
    world = tuple(range(1024))
    other = next(d for d in few if d.rank != rank)
    many = []
    for r in world:
        base = next(d for d in few if d.rank == rank) if r == 700 else other
        tracks = tuple(replace(t, ranks=world) for t in base.tracks)
        many.append(replace(base, rank=r, where=f"rank_{r}", tracks=tracks, groups={"default": world}, world=1024))
    (found,) = alarms(*many)
    assert found.where.ranks == (700,)
    assert len(found.message) < 600
    assert len(found.evidence) < 20


WORK = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum={}, OpType={}, NumelIn={}, NumelOut={}, "
END = "Timeout(ms)=600000) ran for 600029 milliseconds before timing out."


def lines(*states: tuple[int, int, str, int]) -> list[str]:
    return [f"[rank{r}]:[E1 P.cpp:6] [Rank {r}] {WORK.format(s, op, n, n)}{END}" for r, s, op, n in states]


@pytest.mark.parametrize(
    ("states", "kind", "ranks"),
    [
        ([(0, 5, "ALLREDUCE", 8), (1, 5, "ALLREDUCE", 8), (2, 5, "BROADCAST", 8)], "different-op", (2,)),
        ([(0, 5, "ALLREDUCE", 8), (1, 5, "ALLREDUCE", 9), (2, 5, "ALLREDUCE", 8)], "different-size", (1,)),
        ([(0, 5, "ALLREDUCE", 8), (1, 5, "ALLREDUCE", 9)], "different-size", (0, 1)),
        ([(0, 126, "ALLGATHER", 8), (1, 126, "ALLGATHER", 8), (2, 122, "REDUCE_SCATTER", 8)], "behind", (2,)),
        ([(0, 126, "ALLGATHER", 8), (1, 126, "ALLGATHER", 8)], "together", ()),
        ([(6, 5, "ALLREDUCE", 8)], "alone", ()),
    ],
)
def test_the_table_of_the_watchdogs_is_read(
    states: list[tuple[int, int, str, int]], kind: str, ranks: tuple[int, ...]
) -> None:
    (reading,) = readings(watchdog.parse(lines(*states), where="log"))
    assert (reading.kind, reading.ranks) == (kind, ranks)


def test_a_rank_that_says_nothing_is_named_where_the_world_is_known() -> None:
    said = watchdog.parse(
        [
            "[rank0]:[I1 ProcessGroupNCCL.cpp:9] [PG 0 Rank 0] ProcessGroupNCCL initialization options: size: 3, "
            "global rank: 0, TIMEOUT(ms): 600000",
            *lines((0, 126, "ALLGATHER", 8), (2, 126, "ALLGATHER", 8)),
        ],
        where="log",
    )
    (finding,) = [f for f in findings(watchdog=said) if f.code == "HNG028"]
    assert finding.where.ranks == (1,)
    assert finding.cause == "straggler-or-hung-rank"
