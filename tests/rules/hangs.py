"""Cases of HNG020 and on: small jobs as their dumps and logs show them."""

from array import array

from smoldiag.facts import Evidence, Flight
from smoldiag.facts.flight import (
    ENDED,
    SCHEDULED,
    TIMED_OUT,
    Absence,
    Arrival,
    Call,
    Diagnostic,
    Dump,
    Fingerprint,
    Frame,
    Progress,
    RankState,
    Ras,
    RasComm,
    RasRank,
    SizesDiffer,
    Stack,
    Timer,
    Track,
    Watchdog,
)
from smoldiag.rules import Known
from tests.rules.known import Facts

START_S = 1_790_000_000
SEEN = Evidence(text="a line", where="log:1")
AT = {"gradients": 10, "metric": 20, "extra": 15, "end": 90}


def dump(
    rank: int, *names: str, open_: bool = False, state: int = SCHEDULED, world: int = 3, age_s: float = 30
) -> Dump:
    """A rank that made these collectives, a second apart; `open_`: the last has not ended."""
    kinds = list(dict.fromkeys(names))
    calls = tuple(
        Call(
            op="barrier" if name == "end" else "all_reduce",
            input_sizes=((AT[name] * 100,),),
            output_sizes=((AT[name] * 100,),),
            input_dtypes=("Float",),
            output_dtypes=("Float",),
            frames=(Frame("main", "train.py", AT[name]),),
        )
        for name in kinds
    )
    count = len(names)
    created = [(START_S + i) * 10**9 for i in range(count)]
    return Dump(
        where=f"rank_{rank}",
        rank=rank,
        calls=calls,
        tracks=(
            Track(
                group="0",
                desc="default_pg",
                ranks=tuple(range(world)),
                seqs=array("q", range(1, count + 1)),
                records=array("q", range(count)),
                created_ns=array("q", created),
                calls=array("l", [kinds.index(name) for name in names]),
                states=bytearray([ENDED] * (count - open_) + [state] * open_),
            ),
        ),
        world=world,
        entries=count,
        newest_ns=created[-1],
        written_s=START_S + count + age_s,
    )


def exchange(rank: int, op: str, *, ended: bool = False) -> Dump:
    """A send from 0 to 1, or its receive."""
    base = dump(rank, "gradients", "metric", open_=not ended, world=2)
    call = Call(op=op, peer=(0, 1), input_sizes=((4,),), frames=(Frame("main", "pipe.py", 5),))
    track = Track(
        group="1",
        desc="pp",
        ranks=(0, 1),
        p2p=True,
        seqs=array("q", [1]),
        records=array("q", [2]),
        created_ns=array("q", [(START_S + 2) * 10**9]),
        calls=array("l", [0]),
        states=bytearray([ENDED if ended else SCHEDULED]),
    )
    first = dump(rank, "gradients", world=2).tracks[0]
    return Dump(
        where=f"rank_{rank}",
        rank=rank,
        calls=(call,) if op == "send" else base.calls[:1],
        tracks=(track,) if op == "send" else (first,),
        world=2,
        entries=1,
        newest_ns=(START_S + 2) * 10**9,
        written_s=START_S + 60,
    )


STEP = ("gradients", "metric")
WAITS = [dump(r, *STEP * 8, "gradients", open_=True) for r in (0, 1)]
DIFFERS = (*WAITS, dump(2, *STEP * 8, "extra", open_=True))
LEFT = (*WAITS, dump(2, *STEP * 8, "end", open_=True))
ABSENT = (*WAITS, dump(2, *STEP * 8))
TOGETHER = tuple(dump(r, *STEP, "gradients", open_=True, state=TIMED_OUT) for r in range(3))
WELL = tuple(dump(r, *STEP * 8) for r in range(3))
MOVING = (*(dump(r, *STEP * 9, "gradients", open_=True, age_s=0) for r in (0, 1)), dump(2, *STEP * 8, age_s=0))


def dumps(*found: Dump) -> Known:
    return Known(flight=Flight(dumps=found))


def said(**what: object) -> Known:
    return Known(flight=Flight(watchdog=Watchdog(**what)))  # type: ignore[arg-type]


def waits(rank: int, seq: int, op: str = "ALLREDUCE", numel: int = 8, **more: object) -> RankState:
    given = {"rank": rank, "seq": seq, "op": op, "numel_in": numel, "timeout_ms": 600_000, "evidence": SEEN}
    return RankState(**(given | more))  # type: ignore[arg-type]


BAR = Progress(label="Tokenizing", percent=39, elapsed_s=1500, evidence=SEEN)
BARRIER = tuple(waits(r, 3, numel=1, ran_ms=1_800_000) for r in (1, 2))


def ras(*ranks: RasRank, errors: str = "MISMATCH", times: int = 1) -> Known:
    comm = RasComm(id="#0-0 (cf26)", errors=errors, ranks=ranks)
    return Known(flight=Flight(ras=(Ras(where="ras.txt", comms=(comm,)),) * times))


def counts(*made: int) -> list[RasRank]:
    return [RasRank(rank=r, host=f"node{r}", counts={"AllReduce": n}) for r, n in enumerate(made)]


def diagnostic(level: str, check: str, text: str) -> Known:
    return Known(flight=Flight(diagnostics=(Diagnostic(level=level, check=check, text=text, evidence=SEEN),)))


def arrivals(*medians: float, last: int) -> Known:
    of = [
        Arrival(
            comm="c",
            ranks=len(medians),
            rank=r,
            host=f"n{r}",
            collectives=100,
            median_us=us,
            last=last if r == 0 else 0,
        )
        for r, us in enumerate(medians)
    ]
    return Known(flight=Flight(arrivals=tuple(of)))


def stack(rank: int, *places: str) -> Stack:
    frames = tuple(Frame("f", place, 7) for place in places)
    return Stack(where="stacks.txt", rank=rank, pid=rank, thread="MainThread", frames=frames)


IN_A_COLLECTIVE = [stack(r, "/env/torch/distributed/distributed_c10d.py", "train.py") for r in (0, 1)]


CASES: list[tuple[str, Facts, list[str]]] = [
    ("HNG020", dumps(*DIFFERS), ["error"]),
    ("HNG020", dumps(*WELL), []),
    ("HNG020", dumps(*ABSENT), []),
    ("HNG021", dumps(*LEFT), ["error"]),
    ("HNG021", dumps(*DIFFERS), []),
    ("HNG022", dumps(*ABSENT), ["error"]),
    ("HNG022", dumps(*MOVING), []),
    ("HNG022", dumps(*WELL), []),
    ("HNG023", dumps(*WAITS), ["error"]),
    ("HNG023", dumps(*ABSENT), []),
    ("HNG024", dumps(*TOGETHER), ["error"]),
    ("HNG024", dumps(*WELL), []),
    ("HNG025", dumps(exchange(0, "send"), exchange(1, "recv", ended=True)), ["error"]),
    ("HNG025", dumps(exchange(0, "send", ended=True), exchange(1, "recv", ended=True)), []),
    ("HNG026", dumps(*MOVING), ["info"]),
    ("HNG026", dumps(*ABSENT), []),
    ("HNG027", said(states=(waits(0, 5), waits(1, 5), waits(2, 5, op="BROADCAST"))), ["error"]),
    ("HNG027", said(states=(waits(0, 126, op="ALLGATHER"), waits(1, 122, op="REDUCE_SCATTER"))), ["error"]),
    ("HNG027", said(states=(waits(0, 5), waits(1, 5))), []),
    ("HNG028", said(states=BARRIER, busy=(BAR,)), ["error"]),
    ("HNG028", said(states=(waits(1, 500),)), ["warning"]),
    ("HNG028", said(states=(waits(0, 5), waits(1, 5, op="BROADCAST"))), []),
    (
        "HNG029",
        said(
            fingerprints=(
                Fingerprint(rank=0, op="ALLGATHER", shape="[41]", evidence=SEEN),
                Fingerprint(rank=1, op="ALLGATHER", shape="[40]", evidence=SEEN),
            )
        ),
        ["error"],
    ),
    ("HNG029", said(), []),
    ("HNG030", said(sizes_differ=(SizesDiffer(rank=2, received=2048, expected=4, evidence=SEEN),)), ["error"]),
    ("HNG030", said(), []),
    ("HNG031", said(absent=(Absence(ranks=(3,), what="monitored barrier", evidence=SEEN),)), ["error"]),
    ("HNG031", said(absent=(Absence(ranks=(), what="store barrier", evidence=SEEN),)), []),
    ("HNG032", said(timers=(Timer(name="heartbeat-monitor", value_ms=480_000, evidence=SEEN),)), ["info"]),
    ("HNG032", said(), []),
    ("HNG033", said(gil=(SEEN,)), ["warning"]),
    ("HNG033", said(), []),
    ("HNG034", ras(RasRank(rank=21, host="n3", pid=7, state="dead"), errors="INCOMPLETE"), ["error"]),
    ("HNG034", ras(*counts(9, 9, 8), times=2), ["info", "error"]),
    ("HNG034", ras(*counts(9, 9, 8)), ["info"]),
    ("HNG034", ras(*counts(9, 9, 9), errors=""), []),
    ("HNG035", diagnostic("INFO", "ECC", "2 uncorrected volatile errors on rank(s) {3}"), ["warning"]),
    ("HNG035", diagnostic("INFO", "NCCL environment", "NCCL_DEBUG=INFO on rank(s) {0,1}"), ["info"]),
    ("HNG035", diagnostic("OK", "NVLink", "found 18 link(s) per device, all active"), []),
    ("HNG036", arrivals(40.0, 200.0, 210.0, 190.0, last=90), ["warning"]),
    ("HNG036", arrivals(180.0, 200.0, 210.0, 190.0, last=40), []),
    ("HNG037", Known(flight=Flight(stacks=(*IN_A_COLLECTIVE, stack(2, "data.py", "train.py")))), ["warning"]),
    ("HNG037", Known(flight=Flight(stacks=(*IN_A_COLLECTIVE, stack(2, "/env/torch/distributed/x.py")))), []),
]
