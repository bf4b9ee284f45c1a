"""A crew: rank processes that stay on their hosts and are given one job after the other by the head.

They are started once. A job is a module of ours with `measure(me, config)`, run by all of its members in a process
group of their own, or by each alone. Who does not answer is found and left out; those that only waited for it get a
fresh process and go on.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from smoldiag.facts import Evidence, Fault, Host
from smoldiag.launch import survey

if TYPE_CHECKING:
    from smoldiag.launch.head import Exit, Head, Place

GRACE_S = 2.0  # for the others, once it is clear who keeps a job from ending
TICK_S = 0.1
READY_FACTOR = 3.0  # of the time in which most ranks have loaded torch
OF_SEATS = ("interface", "versions")  # records that the head keeps with the seats; the others are of jobs
SHARE_TO_BLAME = 0.5  # of the members: what befalls more of them is not a fault of hosts


class Interrupted(Exception):
    """The run was interrupted: no more jobs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    module: str  # benchmarks.compute
    members: tuple[int, ...]  # ranks of the crew
    config: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = 30.0  # who has not answered then is to blame
    cut_s: float | None = None  # from then on nobody waits for it any more, and nobody is to blame
    group: bool = True  # the members meet in a process group; False: each measures alone


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What became of a job."""

    job: Job
    results: Mapping[int, dict[str, Any]]  # by rank of the crew: what `measure` returned there
    records: tuple[dict[str, Any], ...] = ()  # what members recorded meanwhile; "rank" says who
    failed: Mapping[int, str] = field(default_factory=dict)  # by rank: the error that `measure` raised
    faults: tuple[Fault, ...] = ()  # who kept it from ending
    cut: bool = False  # its time was over before its deadline
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        return set(self.results) == set(self.job.members)


@dataclass(kw_only=True)
class Doing:
    """A job while it is done."""

    number: int
    job: Job
    began: float
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    failed_at: float = math.inf  # the first of them
    records: list[dict[str, Any]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)  # members that were left out meanwhile
    cut: bool = False

    @property
    def waiting(self) -> set[int]:
        return set(self.job.members) - set(self.results) - set(self.failed) - self.gone


class Crew:
    """The head's side: who is there, and the jobs."""

    def __init__(self, head: "Head") -> None:
        self.head = head
        self.dropped: dict[str, str] = {}  # host -> why it takes no part any more
        self.place_of: dict[int, Place] = {}
        self._seats: dict[str, tuple[int, ...]] | None = None
        self.ready: set[int] = set()
        self.exits: dict[int, Exit] = {}
        self.doing: dict[int, Doing] = {}
        self.numbers = itertools.count(1)

    # -- who is there

    @property
    def backend(self) -> str:
        return self.head.backend

    @property
    def seats(self) -> dict[str, tuple[int, ...]]:
        """The hosts that still take part, in their order, and their ranks."""
        if self._seats is None:
            found: dict[str, list[int]] = {}
            for rank, place in sorted(self.place_of.items()):
                if place.host.name not in self.dropped:
                    found.setdefault(place.host.name, []).append(rank)
            self._seats = {host: tuple(ranks) for host, ranks in found.items()}
        return self._seats

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.seats)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(r for ranks in self.seats.values() for r in ranks))

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first rank of each host."""
        return tuple(ranks[0] for ranks in self.seats.values())

    def host_of(self, rank: int) -> str:
        return self.place_of[rank].host.name

    def on(self, host: str) -> tuple[int, ...]:
        return self.seats.get(host, ())

    def addresses(self, host: str) -> list[str]:
        """IPv4, the likeliest to be reached first."""
        return self.head.addresses(self.place_of[self.on(host)[0]])

    @property
    def facts(self) -> dict[str, Host]:
        """What the hosts have answered so far, with the offset of their clocks."""
        bundle = survey.finished(self.head).bundle
        assert bundle is not None
        return {h.name: h for h in bundle.hosts}

    async def surveyed(self, seconds: float) -> None:
        """Until the facts of all hosts have come, or the time is over."""
        places = [p for p in self.place_of.values() if survey.takes_part(p)]

        def answered() -> bool:
            return all(p.agent in self.head.answers.read or p.host.name in self.dropped for p in places)

        await self.head.until(lambda: answered() or bool(self.head.interrupted), seconds)
        self._go_on()

    # -- jobs

    async def do(
        self,
        module: str,
        config: Mapping[str, Any] | None = None,
        members: Sequence[int] | None = None,
        deadline_s: float = 30.0,
        *,
        cut_s: float | None = None,
        group: bool = True,
    ) -> Answers:
        """One job; without members, of all ranks. Raises Interrupted."""
        wanted = self.ranks if members is None else tuple(members)
        job = Job(module=module, config=config or {}, members=wanted, deadline_s=deadline_s, cut_s=cut_s, group=group)
        return (await self.do_all([job]))[0]

    async def do_all(self, jobs: Sequence[Job]) -> list[Answers]:
        """Jobs of different ranks at the same time. Raises Interrupted."""
        self._go_on()
        self._drop_silent()
        there = set(self.ranks)
        jobs = [replace(job, members=tuple(m for m in job.members if m in there)) for job in jobs]
        cuts = [job.cut_s for job in jobs if job.cut_s is not None]
        if not await self._all_ready({m for job in jobs for m in job.members}, min(cuts, default=math.inf)):
            return [Answers(job=job, results={}, cut=True) for job in jobs]
        return list(await asyncio.gather(*(self._done(job) for job in jobs)))

    async def _done(self, job: Job) -> Answers:
        there = set(self.ranks)
        members = tuple(m for m in job.members if m in there)
        d = Doing(number=next(self.numbers), job=replace(job, members=members), began=time.monotonic())
        self.doing[d.number] = d
        line = {
            "job": d.number,
            "module": job.module,
            "config": dict(job.config),
            "members": list(members),
            "group": job.group,
            "deadline_s": job.deadline_s,
        }
        faults: list[Fault] = []
        try:
            self._tell(members, line)
            faults = await self._ended(d)
        finally:
            del self.doing[d.number]
        faults += self._of_failed(d)
        return Answers(
            job=d.job,
            results=d.results,
            records=tuple(d.records),
            failed=d.failed,
            faults=tuple(faults),
            cut=d.cut,
            seconds=time.monotonic() - d.began,
        )

    async def _ended(self, d: Doing) -> list[Fault]:
        """Until all members have answered, or those that keep it from ending are known and left out."""
        faults: list[Fault] = []
        while d.waiting and not d.cut and not self._waits_in_vain(d):
            await self.head.until(lambda: not d.waiting or bool(self.head.interrupted), TICK_S)
            self._go_on()
            if found := self._culprits(d):
                faults += found
                self._leave_out(found)
                if d.job.group:  # the others have lost a member: they hear of it, or hang
                    await self.head.until(lambda: not d.waiting or bool(self.head.interrupted), GRACE_S)
                    self._go_on()
                    break
            d.cut = bool(d.waiting) and d.job.cut_s is not None and time.monotonic() - d.began > d.job.cut_s
        self._restart(d.waiting | self._spoilt(d), again=True)
        return faults

    def _leave_out(self, faults: Sequence[Fault]) -> None:
        self.head.faults += faults
        for f in faults:
            if f.certain:
                self._drop_for(f)

    def _spoilt(self, d: Doing) -> set[int]:
        """Members whose communicator was aborted: NCCL leaves its kernels behind."""
        return set(d.failed) - d.gone if d.job.group and self.backend == "nccl" else set()

    def _waits_in_vain(self, d: Doing) -> bool:
        """For a member of its group that has failed."""
        return d.job.group and time.monotonic() - d.failed_at > GRACE_S

    def _tell(self, ranks: Iterable[int], line: Mapping[str, Any]) -> None:
        """A line for these ranks: once for each stream, whatever the number of agents behind it."""
        by_channel: dict[int, list[int]] = {}
        for r in ranks:
            by_channel.setdefault(id(self.place_of[r].channel), []).append(r)
        for mine in by_channel.values():
            self.place_of[mine[0]].channel.send({"do": "tell", "ranks": mine, "line": line})

    def _restart(self, ranks: Iterable[int], *, again: bool) -> None:
        for r in ranks:
            self.ready.discard(r)
            self.exits.pop(r, None)
            place = self.place_of[r]
            place.stopped_since.pop(r, None)
            place.channel.send({"do": "restart", "to": place.agent, "ranks": [r], "again": again})

    async def _all_ready(self, ranks: set[int], cut_s: float) -> bool:
        """Whether they have loaded torch before `cut_s`. Who can't, or takes far longer than most, is left out."""
        began = time.monotonic()
        most_s = math.inf  # how long half of them took
        while missing := {r for r in ranks if r in self.ranks} - self.ready:
            await self.head.until(lambda m=missing: m <= self.ready or bool(self.head.interrupted), TICK_S)  # type: ignore[misc]
            self._go_on()
            self._drop_silent()
            waited = time.monotonic() - began
            if waited > cut_s:
                return False
            if 2 * len(missing - self.ready) <= len(ranks):
                most_s = min(most_s, waited)
            gone = [self.head.of_exit(e) for r in missing if (e := self.exits.get(r))]
            late = []
            if waited > max(self.head.limit_s, READY_FACTOR * most_s):
                words = f"has not loaded torch within {waited:.0f} s; most have within {most_s:.0f} s"
                late = [self.head.of_rank(self.place_of[r], r, "stalled", words) for r in missing - set(self.exits)]
            for f in [*gone, *self._stopped(missing), *late]:
                self.head.faults.append(f)
                self._drop_for(f)
        return True

    # -- who keeps a job from ending?

    def _culprits(self, d: Doing) -> list[Fault]:
        waiting = d.waiting
        silent = self._silent({self.place_of[r].agent for r in waiting})
        if silent:
            return silent
        exits = [e for r in waiting if (e := self.exits.get(r))]
        own = [e for e in exits if e.signal is not None or not is_consequence("\n".join(e.said))]
        if exits:
            return [self.head.of_exit(e) for e in own or exits]
        if stopped := self._stopped(waiting):
            return stopped
        if waiting and time.monotonic() - d.began > d.job.deadline_s:
            return self._late(d)
        return []

    def _stopped(self, ranks: Iterable[int]) -> list[Fault]:
        now = time.monotonic()
        return [
            self.head.of_rank(
                p, r, "stopped", "stopped (process state T): somebody sent SIGSTOP, or a debugger holds it"
            )
            for r in ranks
            if now - (p := self.place_of[r]).stopped_since.get(r, now) >= self.head.stopped_s
        ]

    def _silent(self, agents: set[str]) -> list[Fault]:
        return [f for f in self.head.lost(time.monotonic()) if {self.place_of[r].agent for r in f.ranks} & agents]

    def _late(self, d: Doing) -> list[Fault]:
        """The deadline is over: who has not come as far as the others is named, for certain where these are few."""
        waited = f"has not answered within {d.job.deadline_s:.0f} s"
        rows = {r: self.place_of[r].rows.get(r) for r in d.waiting}
        if blocked := [r for r, row in rows.items() if row and row[4] == "D"]:
            words = f"blocked in the kernel (process state D); {waited}"
            return [self.head.of_rank(self.place_of[r], r, "stopped", words) for r in blocked]
        if not d.job.group:
            return [self.head.of_rank(self.place_of[r], r, "stalled", waited) for r in d.waiting]
        far = {r: tuple(row[1:3]) for r, row in rows.items() if row}
        furthest = max(far.values(), default=(0, 0))
        behind = [r for r, count in far.items() if count < furthest]
        hosts = {self.host_of(r) for r in d.job.members}
        few = bool(behind) and len({self.host_of(r) for r in behind}) < SHARE_TO_BLAME * len(hosts)
        words = f"{waited}, nor come as far as the others" if few else f"{waited}, all ranks wait in the same place"
        return [
            self.head.of_rank(self.place_of[r], r, "stalled", words, certain=few)
            for r in (behind if few else sorted(d.waiting))
        ]

    def _of_failed(self, d: Doing) -> list[Fault]:
        """Members whose measurement raised an error of its own. What befalls most of them is nobody's fault."""
        own = {r: said for r, said in d.failed.items() if not (d.job.group and is_consequence(said))}
        hosts = {self.host_of(r) for r in own}
        if not own or len(hosts) > SHARE_TO_BLAME * len({self.host_of(r) for r in d.job.members}):
            return []
        faults = [
            replace(
                self.head.of_rank(self.place_of[r], r, "crashed", said.splitlines()[0][:300]),
                evidence=(Evidence(text=said[:300], where=f"rank {r} on {self.host_of(r)}"),),
                stage=d.job.module,
            )
            for r, said in own.items()
        ]
        self.head.faults += faults
        return faults

    def _drop_silent(self) -> None:
        for f in self.head.lost(time.monotonic()):
            if any(h not in self.dropped for h in f.hosts):
                self.head.faults.append(f)
                self._drop_for(f)

    def _drop_for(self, f: Fault) -> None:
        for host in f.hosts:
            self.drop(host, f.detail)

    def drop(self, host: str, why: str) -> None:
        """It takes no part any more: its ranks are ended."""
        if host in self.dropped:
            return
        ranks = self.on(host)
        self.dropped[host] = why
        self._seats = None
        self._restart(ranks, again=False)
        for d in self.doing.values():
            d.gone |= set(ranks)

    def _go_on(self) -> None:
        if self.head.interrupted:
            raise Interrupted(self.head.interrupted)

    # -- what the agents say

    def heard(self, place: "Place", said: Mapping[str, Any]) -> None:
        if said["say"] == "exit":
            exit_ = self.head.exits[-1]
            self.exits[exit_.rank] = exit_
        elif said["say"] == "record":
            self._record(place, said["rank"], said["record"])

    def _record(self, place: "Place", rank: int, record: dict[str, Any]) -> None:
        kind, d = record["kind"], self.doing.get(record.get("job", 0))
        if kind == "ready":
            self.ready.add(rank)
        elif kind == "job" and d is not None:
            if record["ok"]:
                d.results[rank] = record["result"]
            else:
                d.failed[rank] = str(record["error"])
                d.failed_at = min(d.failed_at, time.monotonic())
        elif kind == "store" and d is not None:
            where = {"port": record["port"], "addresses": self.head.addresses(place)}
            self._tell([m for m in d.job.members if m != rank], {"store": where, "job": d.number})
        elif kind not in (*OF_SEATS, "job", "store"):
            for d in self.doing.values():
                if rank in d.job.members:
                    d.records.append({**record, "rank": rank})


def is_consequence(text: str) -> bool:
    """Whether these are the words of a rank whose peer has gone."""
    from smoldiag.launch.head import CONSEQUENCE

    return CONSEQUENCE.search(text) is not None


async def conduct(head: "Head", connecting: "asyncio.Future[Any] | None") -> None:
    """Reach the hosts, start the ranks on those that answer, and hand them to whoever gives the jobs."""
    crew = head.crew
    assert crew is not None
    assert head.request.crew is not None
    await head.reach_some(connecting)
    if head.interrupted or not head.seat_some():
        return
    for place in head.seated:
        for rank in range(place.first, place.first + place.count):
            crew.place_of[rank] = place
    head.start()
    with suppress(Interrupted):
        await head.request.crew(crew)
