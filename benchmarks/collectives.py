"""Time collectives over a range of sizes, check every element, and say which rank the others wait for.

The time of one iteration is that of its last rank. Iterations run back to back with one barrier before them: a barrier
at each would hide a rank that comes late and lengthen small messages. What each rank does between two collectives is
timed, too: there a late rank shows.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import pairs, patterns
from smoldiag import ranks
from smoldiag.facts import Group, RankTime, RankTimeUs, Result, TimeUs
from smoldiag.model import bus, sizes
from smoldiag.model.stats import median, percentile
from smoldiag.ranks import Rank

FEW, ENOUGH_S = 5, 0.02  # warm-up calls at most; seconds of them that are enough
IN_PLACE = ("all_reduce", "reduce")  # the result takes the place of what this rank gives
MIN_ITERATIONS = 5
MAX_ITERATIONS = ((1e-4, 1000), (1e-3, 200), (2e-2, 50))  # (seconds per call, iterations); 20 above the last
MEMORY_SHARE = 4  # a message takes at most a quarter of the free memory
LATE_SHARE, LATE_TIMES, LATE_US = 0.10, 5.0, 50.0  # of the call's time; times the others' median; at least


@dataclass(frozen=True, kw_only=True)
class Team:
    """The ranks of one group, and this rank's view of it."""

    kind: str
    members: tuple[int, ...]
    nodes: int
    group: Any  # torch's process group; None: the world
    me: int  # index of this rank among the members

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass(kw_only=True)
class Message:
    """The buffers of one size. `whole` is what nccl-tests calls size, `part` one rank's share of it."""

    collective: str
    team: Team
    dtype: str
    part_elements: int
    whole: Tensor
    part: Tensor
    values: Tensor = field(repr=False)
    weights: list[int] = field(repr=False)


Call = Callable[[Message], object]


def all_gather(m: Message) -> object:
    run = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    return run(m.whole, m.part, group=m.team.group)


def reduce_scatter(m: Message) -> object:
    run = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return run(m.part, m.whole, group=m.team.group)


def send_recv(m: Message) -> None:
    """Each rank to the next, all at once."""
    to, of = m.team.members[(m.team.me + 1) % m.team.size], m.team.members[m.team.me - 1]
    swap = [dist.P2POp(dist.isend, m.part, to, m.team.group), dist.P2POp(dist.irecv, m.whole, of, m.team.group)]
    for work in dist.batch_isend_irecv(swap):
        work.wait()


CALLS: dict[str, Call] = {
    "all_reduce": lambda m: dist.all_reduce(m.whole, group=m.team.group),
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "broadcast": lambda m: dist.broadcast(m.whole, src=m.team.members[0], group=m.team.group),
    "reduce": lambda m: dist.reduce(m.whole, dst=m.team.members[0], group=m.team.group),
    "all_to_all": lambda m: dist.all_to_all_single(m.part, m.whole, group=m.team.group),
    "send_recv": send_recv,
}


def message(collective: str, size_bytes: int, dtype: str, team: Team, device: torch.device) -> Message:
    """Buffers of that size, rounded down to whole parts, at least one element per rank."""
    element = patterns.DTYPES[dtype]
    parts = team.size if collective in bus.TOTAL_OVER_RANKS else 1
    part_elements = max(size_bytes // element.itemsize // parts, 1)
    weights = patterns.weights(team.size, dtype)
    values = patterns.table(dtype, sum(weights) if collective in bus.REDUCING else 1, device)
    whole = torch.empty(part_elements * parts, dtype=element, device=device)
    needs_part = collective in (*bus.TOTAL_OVER_RANKS, "send_recv")
    part_length = part_elements * (parts if collective == "all_to_all" else 1)
    part = torch.empty(part_length, dtype=element, device=device) if needs_part else whole
    return Message(
        collective=collective,
        team=team,
        dtype=dtype,
        part_elements=part_elements,
        whole=whole,
        part=part,
        values=values,
        weights=weights,
    )


def fill(m: Message) -> None:
    """What this rank gives; and nothing right where it receives."""
    me = m.team.me
    if m.collective in IN_PLACE:
        patterns.write(m.whole, m.values * m.weights[me], 0)
    elif m.collective == "reduce_scatter":
        patterns.write(m.whole, m.values * m.weights[me], 0)
        m.part.zero_()
    elif m.collective in ("all_gather", "send_recv"):
        patterns.write(m.part, m.values, me * m.part_elements)
        m.whole.zero_()
    elif m.collective == "all_to_all":
        patterns.write(m.whole, m.values, me * m.whole.numel())
        m.part.zero_()
    elif me == 0:
        patterns.write(m.whole, m.values, 0)
    else:
        m.whole.zero_()


def wrong(m: Message) -> int:
    """How many elements differ from what must be here now."""
    n, me, size = m.part_elements, m.team.me, m.team.size
    if m.collective == "reduce" and me != 0:
        return 0
    if m.collective in IN_PLACE:
        return patterns.differing(m.whole, m.values * sum(m.weights), 0)
    if m.collective == "reduce_scatter":
        return patterns.differing(m.part, m.values * sum(m.weights), me * n)
    if m.collective == "all_to_all":
        blocks = m.part.view(size, n)
        return sum(patterns.differing(blocks[sender], m.values, (sender * size + me) * n) for sender in range(size))
    if m.collective == "send_recv":
        return patterns.differing(m.whole, m.values, ((me - 1) % size) * n)
    return patterns.differing(m.whole, m.values, 0)


class Bench:
    """One run: its teams, its clock, and how the ranks agree."""

    def __init__(self, me: Rank) -> None:
        self.me, self.config = me, me.config
        self.began = time.monotonic()
        self.budget_s = float(self.config.get("budget_s", 30.0))
        self.broken = self.config.get("break") or {}
        self.world = Team(
            kind="world", members=tuple(range(me.world_size)), nodes=len(set(me.host_of_rank)), group=None, me=me.rank
        )

    def run(self) -> None:
        config = self.config
        collectives: list[str] = config.get("collectives") or ["all_reduce", "all_gather", "reduce_scatter"]
        typed, verdict = bool(config.get("typed_sizes", True)), config.get("verdict_size")
        plan = [(c, int(verdict), "verdict") for c in collectives] if verdict else []
        sweep = [(c, int(s), "") for s in config.get("sizes", [1 << 20]) for c in collectives]
        for team in self.teams():
            if typed:
                self.measure_all(team, sweep, all_of_them=True)
            else:
                self.measure_all(team, plan, all_of_them=True)
        if config.get("suspects"):
            pairs.probe(self.me)
        if config.get("sets"):
            self.measure_sets(config["sets"])
        if not typed and not config.get("sets"):
            done = {(c, s) for c, s, _ in plan}
            for team in self.teams():
                self.measure_all(team, [p for p in sweep if p[:2] not in done], all_of_them=False)
        for a, b in config.get("pairs", []):
            self.measure_pair((a, b), [int(verdict)] if verdict else [s for _, s, _ in sweep])

    # -- teams

    def teams(self) -> list[Team]:
        """In the order in which they are measured; the same on every rank."""
        if not hasattr(self, "_teams"):
            self._teams = self._all_teams()
        return self._teams

    def _all_teams(self) -> list[Team]:
        host_of_rank, wanted = self.me.host_of_rank, self.config.get("groups") or ["all"]
        hosts = sorted(set(host_of_rank))
        found: list[Team] = []
        if "all" in wanted:
            if self.config.get("scale"):
                counts = sorted({*(2**i for i in range(len(hosts).bit_length()) if 2**i < len(hosts))})
                found += [
                    self.team("world", [r for r, h in enumerate(host_of_rank) if h in hosts[:n]], n) for n in counts
                ]
            found.append(self.world)
        if "intra" in wanted:
            mine = None
            for h in hosts:  # every rank takes part in making every group
                team = self.team("node", [r for r, at in enumerate(host_of_rank) if at == h], 1)
                mine = team if self.me.rank in team.members else mine
            if mine is not None:
                found.append(mine)
        if "inter" in wanted:
            found.append(self.team("inter", [host_of_rank.index(h) for h in hosts], len(hosts)))
        return found

    def team(self, kind: str, members: Sequence[int], nodes: int) -> Team:
        me = members.index(self.me.rank) if self.me.rank in members else -1
        return Team(kind=kind, members=tuple(members), nodes=nodes, group=dist.new_group(list(members)), me=me)

    def measure_pair(self, pair: tuple[int, int], wanted: Sequence[int]) -> None:
        team = self.team("pair", pair, len({self.me.host_of_rank[r] for r in pair}))
        self.measure_all(team, [("send_recv", s, "") for s in dict.fromkeys(wanted)], all_of_them=True)

    # -- measuring

    def measure_all(self, team: Team, plan: Sequence[tuple[str, int, str]], *, all_of_them: bool) -> None:
        """All ranks come here; those outside of the team wait for it at the end."""
        if team.size == 1 and (team.kind != "world" or self.me.world_size > 1):
            if self.me.rank == 0:
                ranks.record("note", {"text": f"{team.kind}: one rank alone has nobody to talk to: not measured"})
            return
        self.wait_for_all()
        if team.me >= 0:
            fits = self.largest(team)
            for left, (collective, size_bytes, purpose) in zip(range(len(plan), 0, -1), plan, strict=True):
                if size_bytes > fits:
                    self.note(
                        team, f"{collective} {sizes.human(size_bytes)} not measured: above a quarter of the free memory"
                    )
                elif collective == "send_recv" and team.size == 1:
                    self.note(team, "send_recv needs two ranks: not measured")
                elif all_of_them or not self.late(team):
                    self.measure(team, collective, size_bytes, purpose, left=left)
        self.wait_for_all()

    def measure(
        self, team: Team, collective: str, size_bytes: int, purpose: str, *, left: int, dtype: str | None = None
    ) -> Result | None:
        dtype = dtype or str(self.config.get("dtype", "float32"))
        ranks.stage(f"{collective} {sizes.human(size_bytes)}")
        if self.broken.get("kind") == "exit" and self.broken.get("rank") == self.me.rank:
            os._exit(int(self.broken.get("code", 7)))
        m = message(collective, size_bytes, dtype, team, self.me.device)
        bad, seconds = self.verified(m)
        seconds = self.warmed_up(m, seconds)
        iterations = self.iterations(team, seconds, left=left)
        inside, between = self.timed(m, iterations)
        bad += self.verified(m)[0] if collective in IN_PLACE else wrong(m)
        result = self.result(m, purpose, bad, inside, between)
        if team.me == 0:
            ranks.record("result", result)
        return result

    def verified(self, m: Message) -> tuple[int, float]:
        """Wrong elements on this rank, and the seconds of the call."""
        fill(m)
        self.synchronise()
        start = time.perf_counter()
        self.call(m)
        self.synchronise()
        seconds = time.perf_counter() - start
        self.swap_blocks(m)
        return wrong(m), seconds

    def warmed_up(self, m: Message, seconds: float) -> float:
        """Seconds of one call when warm, this rank's view."""
        slowest = self.agree(m.team, [seconds])[0]
        for _ in range(min(max(math.ceil(ENOUGH_S / max(slowest, 1e-7)), 1), FEW)):
            start = time.perf_counter()
            self.call(m)
            self.synchronise()
            seconds = time.perf_counter() - start
        return seconds

    def iterations(self, team: Team, seconds: float, *, left: int) -> int:
        """The same on all ranks: what was asked for, else this size's share of the budget."""
        slowest, elapsed = self.agree(team, [seconds, time.monotonic() - self.began])
        if self.config.get("iterations"):
            return int(self.config["iterations"])
        most = next((n for limit, n in MAX_ITERATIONS if slowest < limit), 20)
        share = max(self.budget_s - elapsed, 0) / max(left, 1)
        return max(min(int(share / max(slowest, 1e-7)), most), MIN_ITERATIONS)

    def timed(self, m: Message, iterations: int) -> tuple[list[float], list[float]]:
        """Microseconds inside each call and between it and the next, on this rank."""
        self.barrier(m.team)
        if m.whole.is_cuda:
            return self._timed_on_gpu(m, iterations)
        run, clock = CALLS[m.collective], time.perf_counter_ns
        late_s = self.late_by()
        marks = []
        for _ in range(iterations):
            if late_s:
                time.sleep(late_s)
            ranks.entering()
            start = clock()
            run(m)
            marks.append((start, clock()))
            ranks.left()
        return _inside_and_between(marks, 1e-3)

    def _timed_on_gpu(self, m: Message, iterations: int) -> tuple[list[float], list[float]]:
        run, late_s = CALLS[m.collective], self.late_by()
        event: Any = torch.cuda.Event
        events = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(iterations)]
        torch.cuda.synchronize()
        began = time.perf_counter()
        for start, end in events:
            if late_s:
                time.sleep(late_s)
            ranks.entering()
            start.record()
            run(m)
            end.record()
        torch.cuda.synchronize()
        host_us = (time.perf_counter() - began) * 1e6
        for _ in events:
            ranks.left()
        zero = events[0][0]
        marks = [(zero.elapsed_time(start), zero.elapsed_time(end)) for start, end in events]
        inside, between = _inside_and_between(marks, 1e3)
        device_us = marks[-1][1] * 1e3
        if host_us > 2 * device_us + 1000 and m.team.me == 0:
            ranks.record(
                "note",
                {
                    "text": f"{m.collective} {sizes.human(m.whole.nbytes)}: host clock {host_us:.0f} us, "
                    f"device events {device_us:.0f} us"
                },
            )
        return inside, between

    def result(self, m: Message, purpose: str, bad: int, inside: list[float], between: list[float]) -> Result:
        team, device = m.team, self.me.device
        slowest = torch.tensor(inside, dtype=torch.float64, device=device)
        ranks.entering()
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=team.group)
        bad_sum = torch.tensor([bad], dtype=torch.int64, device=device)
        dist.all_reduce(bad_sum, group=team.group)
        own = torch.tensor([median(inside), median(between) if between else 0.0], dtype=torch.float64, device=device)
        gathered = torch.empty(2 * team.size, dtype=torch.float64, device=device)
        (getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor)(gathered, own, group=team.group)
        ranks.left()
        times = slowest.tolist()
        per_rank = [
            RankTime(rank=r, time_us=inside_us, late_us=between_us)
            for r, (inside_us, between_us) in zip(team.members, gathered.view(-1, 2).tolist(), strict=True)
        ]
        p50 = median(times)
        size_bytes = m.whole.numel() * m.whole.element_size()
        late = the_late_one(per_rank, p50)
        waited_for = late or max(per_rank, key=lambda t: t.time_us)
        medians = [t.time_us for t in per_rank]
        return Result(
            collective=m.collective,
            group=Group(kind=team.kind, ranks=team.members, nodes=team.nodes),
            dtype=m.dtype,
            op="sum" if m.collective in bus.REDUCING else "none",
            size_bytes=size_bytes,
            count=bus.count(m.collective, size_bytes, m.whole.element_size(), team.size),
            iterations=len(times),
            time_us=TimeUs(
                min=min(times), p50=p50, p95=percentile(times, 95), p99=percentile(times, 99), max=max(times)
            ),
            algbw_gbs=bus.algbw_gbs(size_bytes, p50),
            busbw_gbs=bus.busbw_gbs(m.collective, size_bytes, p50, team.size),
            wrong=int(bad_sum.item()),
            slowest_rank=waited_for.rank,
            rank_time_us=RankTimeUs(min=min(medians), p50=median(medians), max=max(medians)),
            late_us=late.late_us if late else 0.0,
            purpose=purpose,
            per_rank=tuple(per_rank) if self.config.get("per_rank") else None,
        )

    # -- the collectives of a training step

    def measure_sets(self, sets: Sequence[dict[str, Any]]) -> None:
        """Each different size on its own, then all of them in their order, as a step sends them."""
        team = self.world
        self.wait_for_all()
        fits = self.largest(team)
        distinct = {(s["collective"], int(s["size_bytes"]), s.get("dtype")): s["purpose"] for s in sets}
        if any(size_bytes > fits for _, size_bytes, _ in distinct):
            self.note(team, "the model's collectives are larger than a quarter of the free memory: not measured")
            return
        for left, ((collective, size_bytes, dtype), purpose) in zip(
            range(len(distinct), 0, -1), distinct.items(), strict=True
        ):
            self.measure(team, collective, size_bytes, purpose, left=left, dtype=dtype)
        self.measure_step(team, sets)

    def measure_step(self, team: Team, sets: Sequence[dict[str, Any]]) -> None:
        name = sets[0]["purpose"].partition(" ")[0]
        ranks.stage(f"{name} in order")
        made = {
            (s["collective"], int(s["size_bytes"])): message(
                s["collective"], int(s["size_bytes"]), s.get("dtype") or "float32", team, self.me.device
            )
            for s in sets
        }
        order = [made[s["collective"], int(s["size_bytes"])] for s in sets for _ in range(int(s.get("repeat", 1)))]
        steps = []
        for _ in range(4):  # the first warms up
            self.barrier(team)
            start = time.perf_counter()
            for m in order:
                self.call(m)
            self.synchronise()
            steps.append(self.agree(team, [time.perf_counter() - start])[0])
        if team.me == 0:
            total = sum(m.whole.nbytes for m in order)
            ranks.record(
                "set",
                {"purpose": name, "collectives": len(order), "total_bytes": total, "time_us": median(steps[1:]) * 1e6},
            )

    # -- together

    def call(self, m: Message) -> None:
        ranks.entering()
        CALLS[m.collective](m)
        ranks.left()

    def barrier(self, team: Team) -> None:
        ranks.barrier(self.me, team.group)

    def wait_for_all(self) -> None:
        self.barrier(self.world)

    def agree(self, team: Team, values: list[float]) -> list[float]:
        """The largest of all ranks, the same on all of them."""
        shared = torch.tensor(values, dtype=torch.float64, device=self.me.device)
        ranks.entering()
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=team.group)
        ranks.left()
        agreed: list[float] = shared.tolist()
        return agreed

    def late(self, team: Team) -> bool:
        """Whether the budget is spent, as seen by the rank whose clock is furthest."""
        return self.agree(team, [time.monotonic() - self.began])[0] > self.budget_s

    def largest(self, team: Team) -> int:
        """Bytes of the largest message that fits on every rank."""
        if self.config.get("any_size"):
            return 2**60
        if self.me.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.me.device)[0]
        else:
            free = free_memory() // max(self.me.host_of_rank.count(self.me.host_of_rank[self.me.rank]), 1)
        return int(-self.agree(team, [-float(free)])[0]) // MEMORY_SHARE

    def synchronise(self) -> None:
        if self.me.device.type == "cuda":
            torch.cuda.synchronize()

    def note(self, team: Team, text: str) -> None:
        if team.me == 0:
            ranks.record("note", {"text": text})

    # -- deliberate faults, for tests

    def late_by(self) -> float:
        mine = self.broken.get("kind") == "late" and self.broken.get("rank") == self.me.rank
        return float(self.broken.get("ms", 0)) / 1e3 if mine else 0.0

    def swap_blocks(self, m: Message) -> None:
        wanted = self.broken.get("collective") in (None, m.collective)
        if self.broken.get("kind") == "swap_block" and wanted and self.broken.get("rank", 0) == self.me.rank:
            got = m.part if m.collective in ("reduce_scatter", "all_to_all") else m.whole
            half = got.numel() // 2
            first = got[:half].clone()
            got[:half] = got[half : 2 * half]
            got[half : 2 * half] = first


def the_late_one(per_rank: Sequence[RankTime], p50_us: float) -> RankTime | None:
    """The rank that comes late to the calls, where one does and the others wait for it."""
    if len(per_rank) < 2:
        return None
    *others, last = sorted(per_rank, key=lambda t: t.late_us)
    usual = median([t.late_us for t in others])
    late = last.late_us > max(LATE_SHARE * p50_us, LATE_TIMES * usual, LATE_US)
    return last if late else None


def _inside_and_between(marks: Sequence[tuple[float, float]], to_us: float) -> tuple[list[float], list[float]]:
    inside = [(end - start) * to_us for start, end in marks]
    between = [(after[0] - before[1]) * to_us for before, after in pairwise(marks)]
    return inside, between


def free_memory() -> int:
    """Bytes that this host, or this cgroup, still has."""
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit) as most, open(used) as now:
                free = min(free, max(int(most.read()) - int(now.read()), 0))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return free


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    """As a job of a crew: results are recorded as they come."""
    Bench(replace(me, config=config)).run()
    return {}


def main() -> None:
    Bench(ranks.join()).run()
    ranks.leave()


if __name__ == "__main__":
    main()
