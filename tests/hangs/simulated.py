"""Jobs of NCCL ranks, simulated: each CPU runs ahead of its GPU, an operation ends when all members have enqueued it.

What Flight Recorder would hold at some moment comes out as Dump, so that hundreds of healthy and faulty jobs can be
looked at in seconds. Times are ticks of a millisecond.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from smoldiag.facts.flight import ENDED, SCHEDULED, Call, Dump, Frame, Track

START_NS = 1_790_000_000_000_000_000


@dataclass(frozen=True)
class Op:
    group: str
    op: str
    elements: int
    line: int
    name: str = "main"
    to: int | None = None  # of a send
    source: int | None = None  # of a recv

    @property
    def agreed(self) -> tuple[str, int]:
        return self.op, 0 if self.op == "all_to_all" else self.elements

    @property
    def p2p(self) -> bool:
        return self.op in ("send", "recv")


Program = Callable[[int], list[Op]]
Groups = dict[str, tuple[int, ...]]  # by name; desc is what stands before the first "_"


@dataclass
class Rank:
    program: list[Op]
    next: int = 0
    busy_until: int = 0
    gone_at: int | None = None  # the operation before which it ends
    enqueued: list[tuple[int, int]] = field(default_factory=list)  # (tick, place in the program)
    ended: dict[int, int] = field(default_factory=dict)  # place -> tick


@dataclass
class Job:
    groups: Groups
    ranks: dict[int, Rank]
    ahead: int = 20  # operations that a CPU may be ahead of its GPU
    compute: int = 3  # ticks between two operations, at most
    seed: int = 0
    counts: dict[object, int] = field(default_factory=dict)
    arrived: dict[object, dict[int, int]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)

    def run(self, ticks: int) -> None:
        """Every tick each CPU may enqueue one operation; what all have enqueued ends a tick later."""
        chance = random.Random(self.seed)
        for now in range(ticks):
            for r, rank in self.ranks.items():
                ahead = len(rank.enqueued) - len(rank.ended)
                over = rank.next >= (len(rank.program) if rank.gone_at is None else rank.gone_at)
                if over or now < rank.busy_until or ahead >= self.ahead:
                    continue
                rank.enqueued.append((now, rank.next))
                self._arrive(r, rank.program[rank.next], now)
                rank.next += 1
                rank.busy_until = now + chance.randint(0, self.compute)

    def _arrive(self, rank: int, op: Op, now: int) -> None:
        pair = (rank, op.to) if op.op == "send" else (op.source, rank)
        meeting = (op.group, pair) if op.p2p else (op.group, None)
        side = (*meeting, rank)
        number = self.counts[side] = self.counts.get(side, -1) + 1
        here = self.arrived.setdefault((*meeting, number), {})
        here[rank] = self.ranks[rank].next
        if len(here) < (2 if op.p2p else len(self.groups[op.group])) or op.group in self.stuck:
            return
        if not op.p2p and len({self.ranks[m].program[place].agreed for m, place in here.items()}) > 1:
            self.stuck.add(op.group)  # what does not fit never ends, nor does what comes after it
            return
        for member, place in here.items():
            self.ranks[member].ended[place] = now + 1

    def dump(self, rank: int, at: int, *, written: int | None = None, keep: int = 2000) -> Dump:
        """What the rank's buffer held at tick `at`; `written`: the tick of the file's time."""
        own = self.ranks[rank]
        calls: dict[Call, int] = {}
        tracks: dict[tuple[str, bool], Track] = {}
        seqs: dict[tuple[str, bool], int] = {}
        newest = START_NS
        rows = [(tick, place) for tick, place in own.enqueued if tick <= at]
        for record, (tick, place) in enumerate(rows):
            op = own.program[place]
            key = (op.group, op.p2p)
            seqs[key] = seqs.get(key, 0) + 1
            if record < len(rows) - keep:
                continue
            members = self.groups[op.group]
            track = tracks.setdefault(
                key, Track(group=op.group, desc=op.group.partition("_")[0], ranks=members, p2p=op.p2p)
            )
            call = _call(op, rank, members)
            ended = own.ended.get(place)
            done = ended is not None and ended <= at
            track.seqs.append(seqs[key])
            track.records.append(record)
            track.created_ns.append(START_NS + tick * 1_000_000)
            track.calls.append(calls.setdefault(call, len(calls)))
            track.states.append(ENDED if done else SCHEDULED)
            newest = max(newest, START_NS + (ended if done and ended else tick) * 1_000_000)
        return Dump(
            where=f"rank_{rank}",
            rank=rank,
            version="2.10",
            calls=tuple(calls),
            tracks=tuple(tracks.values()),
            groups={name: ranks for name, ranks in self.groups.items() if rank in ranks},
            world=len(self.ranks),
            entries=min(len(rows), keep),
            newest_ns=newest,
            written_s=None if written is None else (START_NS + written * 1_000_000) / 1e9,
        )


def _call(op: Op, rank: int, members: Sequence[int]) -> Call:
    peer = None
    if op.op == "send" and op.to is not None:
        peer = (members.index(rank), members.index(op.to))
    if op.op == "recv" and op.source is not None:
        peer = (members.index(op.source), members.index(rank))
    out = op.elements * len(members) if op.op == "all_gather" else op.elements
    return Call(
        op=op.op,
        peer=peer,
        input_sizes=((op.elements,),),
        output_sizes=((out,),),
        input_dtypes=("Float",),
        output_dtypes=("Float",),
        frames=(
            Frame(op.op, "/env/lib/python3.12/site-packages/torch/distributed/distributed_c10d.py", 1),
            Frame(op.name, "train.py", op.line),
        ),
    )


def job(groups: Groups, program: Program, *, ahead: int = 20, compute: int = 3, seed: int = 0) -> Job:
    ranks = {r: Rank(program=program(r)) for r in groups["default"]}
    return Job(groups=groups, ranks=ranks, ahead=ahead, compute=compute, seed=seed)


def flat(world: int, steps: int) -> tuple[Groups, Program]:
    """Data parallel: three buckets of gradients, a metric every tenth step, a broadcast every twentieth."""

    def program(rank: int) -> list[Op]:
        ops = []
        for step in range(steps):
            ops += [Op("default", "all_reduce", 1000 + i, 10) for i in range(3)]
            if step % 10 == 9:
                ops.append(Op("default", "all_reduce", 1, 20))
            if step % 20 == 19:
                ops.append(Op("default", "broadcast", 7, 30 + (rank == 0)))  # the source calls it from another line
        return [*ops, Op("default", "barrier", 0, 90)]

    return {"default": tuple(range(world))}, program


def hsdp(replicas: int, shards: int, steps: int) -> tuple[Groups, Program]:
    """Sharded inside, replicated across; all layers gathered, scattered, reduced; the norm over all ranks."""
    world = replicas * shards
    groups: Groups = {"default": tuple(range(world))}
    for r in range(replicas):
        groups[f"shard_{r}"] = tuple(range(r * shards, (r + 1) * shards))
    for s in range(shards):
        groups[f"replicate_{s}"] = tuple(range(s, world, shards))

    def program(rank: int) -> list[Op]:
        shard, replicate = f"shard_{rank // shards}", f"replicate_{rank % shards}"
        ops = []
        for step in range(steps):
            ops += [Op(shard, "all_gather", 500 + layer, 40) for layer in range(4)]
            for layer in reversed(range(4)):
                ops += [Op(shard, "reduce_scatter", 500 + layer, 41), Op(replicate, "all_reduce", 500 + layer, 41)]
            ops.append(Op("default", "all_reduce", 1, 45))
            if step % 10 == 9:
                ops += [Op(shard, "all_to_all", 100 + rank + step, 50), Op("default", "all_gather", 3, 51)]
        return [*ops, Op("default", "barrier", 0, 90)]

    return groups, program


def pipeline(stages: int, replicas: int, steps: int, micro: int = 4) -> tuple[Groups, Program]:
    """Stages send activations on and gradients back; replicas of a stage reduce their gradients."""
    world = stages * replicas
    groups: Groups = {"default": tuple(range(world))}
    for d in range(replicas):
        groups[f"pp_{d}"] = tuple(range(d, world, replicas))
    for s in range(stages):
        groups[f"dp_{s}"] = tuple(range(s * replicas, (s + 1) * replicas))

    def program(rank: int) -> list[Op]:
        stage, replica = divmod(rank, replicas)
        pp, dp = f"pp_{replica}", f"dp_{stage}"
        up, down = rank - replicas, rank + replicas
        ops = []
        for _ in range(steps):
            for _ in range(micro):
                if stage > 0:
                    ops.append(Op(pp, "recv", 64, 60, source=up))
                if stage < stages - 1:
                    ops.append(Op(pp, "send", 64, 61, to=down))
            for _ in range(micro):
                if stage < stages - 1:
                    ops.append(Op(pp, "recv", 64, 62, source=down))
                if stage > 0:
                    ops.append(Op(pp, "send", 64, 63, to=up))
            ops.append(Op(dp, "all_reduce", 900 + stage, 65))
            ops.append(Op("default", "all_reduce", 1, 66))
        return [*ops, Op("default", "barrier", 0, 90)]

    return groups, program


LAYOUTS: dict[str, Callable[[], tuple[Groups, Program]]] = {
    "flat": lambda: flat(8, 200),
    "hsdp": lambda: hsdp(2, 4, 60),
    "pipeline": lambda: pipeline(4, 2, 40),
}
