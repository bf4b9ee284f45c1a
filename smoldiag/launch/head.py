"""The head: seats hosts, starts ranks, watches them, and says who kept the run from finishing.

One asyncio loop, no thread per host; traffic is a few hundred bytes per host and second. It never raises for what
happens on a host: that is a Fault. What was measured before is kept.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from smoldiag import redact
from smoldiag.facts import Evidence, Fault, Host, Launch, Seat, World
from smoldiag.launch import ahead, carry, crew, survey
from smoldiag.launch.channels import Channel, Frames, closed
from smoldiag.launch.request import Event, Finished, Request

BESIDE = ("sample",)  # records that come as long as a rank lives, whether it gets on or not
PING_S = 1.0
TICK_S = 0.25
HOSTS_PER_SECOND = 32  # a stage gets a second more for each so many hosts
STALL_SHARE = 0.75  # of --timeout: the rest is for ending the ranks and for the report
LEASE_SHARE, MIN_LEASE_S = 0.5, 5.0  # an agent that hears nothing for so long ends its ranks
LOST_AFTER_LEASE_S = 2.0  # a host counts as lost only when its own agent has ended the ranks there
STOPPED_S = 5.0  # in state T; a debugger that looks for a moment is not a fault
SETTLE_S = 1.0  # after the first exit, so that the cause and its consequences are seen together
LOGS_S, BYE_S, END_AGENT_S = 3.0, 2.0, 2.5
FACTS_S = 3.0  # at the end of a short run, for facts that are under way
EVIDENCE_LINES = 6
# What the peers of a dead rank say; it is never the cause.
CONSEQUENCE = re.compile(
    r"(?i)connection (?:was )?(?:closed|reset|refused)|broken pipe|socket closed|remote process exited|ncclRemoteError"
    r"|timed out waiting|Socket Timeout|store->get|heartbeat|peer .{0,80}(?:closed|gone)"
)
UNREACHED_STORE = "rank 0's store answers on none of its addresses"  # these two: as smoldiag.ranks says them
NO_CUDA = "torch finds no CUDA device"
VIRTUAL = re.compile(r"^(docker|br-|virbr|veth|cni|flannel|cali|kube|podman|lxc|tun|tap)")


@dataclass
class Place:
    """One agent and what is known of its host."""

    agent: str
    channel: Channel
    hello: dict[str, Any]
    host: Host
    heard: float
    index: int = 0  # of the host
    first: int = 0
    count: int = 0
    first_local: int = 0
    local_world: int = 0
    visible: str | None = None
    rows: dict[int, list[Any]] = field(default_factory=dict)  # rank -> the last row of a pong
    stopped_since: dict[int, float] = field(default_factory=dict)
    lost_carrier: list[str] = field(default_factory=list)
    done: bool = False
    bye: bool = False
    log: str | None = None
    interface: str | None = None
    address: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    facts_asked: float | None = None  # when; of hosts that are read beside their ranks
    facts_answered: bool = False


@dataclass
class Exit:
    place: Place
    rank: int
    code: int | None
    signal: int | None
    stage: str
    finished: str | None
    said: list[str]


class Head:
    def __init__(
        self,
        request: Request,
        *,
        launcher: str,
        agents: int,
        env: Mapping[str, str],
        on_event: Callable[[Event], None],
        configure: Callable[[Sequence[Host], World, str], dict[str, Any]],
        order: Callable[[Place], Any] = lambda place: 0,
        end_agent: Callable[[Place], Awaitable[None]] | None = None,
        fixed_world: int | None = None,
        extra_addresses: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        self.request, self.launcher, self.agents, self.env = request, launcher, agents, env
        self.on_event, self.configure, self.order = on_event, configure, order
        self.end_agent = end_agent  # another way to a host whose agent does not answer
        self.fixed_world, self.extra_addresses = fixed_world, tuple(extra_addresses)
        self.names = tuple(names)  # of the hosts, where the launcher knows them beforehand
        self.answers = survey.Answers()
        self.channels: list[Channel] = []
        self.places: dict[str, Place] = {}
        self.readers: list[asyncio.Task[None]] = []
        self.changed = asyncio.Event()
        self.records: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self.exits: list[Exit] = []
        self.first_exit = 0.0
        self.interrupted: str | None = None
        self.pending: str | None = None  # why the scheduler lets us wait
        self.backend = "gloo" if request.backend == "auto" else request.backend
        self.world: World | None = None
        self.seated: list[Place] = []
        self.stage = "reach hosts"
        self.stages: list[str] = []
        self.progressed = time.monotonic()
        self.counted = -1
        self.limit_s = request.timeout_s + agents / HOSTS_PER_SECOND
        self.lease_s = max(self.limit_s * LEASE_SHARE, MIN_LEASE_S)
        self.forwarded = {**ahead.forwarded(env), **request.variables}
        self.first_line = b""
        self.crew = crew.Crew(self) if request.crew is not None else None
        self.stopped_s = STOPPED_S

    # -- streams

    def add(self, channel: Channel, *, has_program: bool = False) -> None:
        """A stream to one or more agents: they get their program, and are listened to."""
        self.channels.append(channel)
        settings = {"do": "settings", "lease_s": max(self.lease_s, self.limit_s)}
        if not has_program:
            self.first_line = self.first_line or carry.first_line()
            with suppress(OSError, RuntimeError):
                channel.writer.write(self.first_line)
            settings |= self._ahead()
        channel.send(settings)
        self.readers.append(asyncio.ensure_future(self._listen(channel)))

    def _ahead(self) -> dict[str, Any]:
        """What an agent needs to know before it says hello: its ranks load torch meanwhile."""
        if self.request.survey is not None and self.crew is None:
            return {"facts": False}
        alone = self.agents == 1 and self.fixed_world is None
        count = self.request.ranks_per_node if self.fixed_world is None else 1
        return {"prepare": ahead.prepare(count, self.forwarded, alone=alone)}

    async def _listen(self, channel: Channel) -> None:
        frames = Frames()
        while True:
            try:
                line = await channel.reader.readline()
            except ValueError:  # longer than the limit: no frame of ours
                continue
            except OSError:
                break
            if not line:
                break
            message = frames.message(line)
            if message is None:
                if b"\x1e" not in line:
                    channel.noise = [*channel.noise, redact.text(line.decode("utf-8", "replace").strip())[:300]][-20:]
                continue
            with suppress(KeyError, TypeError, ValueError, msgspec.ValidationError):
                self._heard(channel, *message)
            self.changed.set()
        channel.ended = True
        self.changed.set()

    def _heard(self, channel: Channel, agent: str, said: dict[str, Any]) -> None:
        say = said["say"]
        if say == "old-python":
            self.answers.refused.append(id(channel))
            self._fault(
                "no-python",
                (str(said["host"]),),
                "reach hosts",
                f"Python {said['python']} ({said['executable']}) is too old; 3.10 or newer is needed",
            )
        elif say == "hello":
            host = msgspec.convert(said["host"], Host)
            self.places[agent] = Place(agent=agent, channel=channel, hello=said, host=host, heard=time.monotonic())
            self.on_event(Event(text=f"reached {len(self.places)} of {self.agents} hosts"))
            survey.ask(self, self.places[agent])
        place = self.places.get(agent)
        if place is None:
            return
        place.heard = time.monotonic()
        if self.request.survey is not None:
            survey.heard(self, place, said)
        elif say == "facts":
            survey.heard_beside(self, place, said)
        if say == "pong":
            self._pong(place, said)
        elif say == "stage" and self.crew is None:
            self.stage = str(said["name"])
            self.stages.append(self.stage)
            self.progressed = time.monotonic()
            self.on_event(Event(text=self.stage))
        elif say == "record":
            self._record(place, said["record"])
        elif say == "exit":
            self.first_exit = self.first_exit or time.monotonic()
            self.exits.append(
                Exit(
                    place,
                    said["rank"],
                    said["code"],
                    said["signal"],
                    said["stage"],
                    said["finished"],
                    list(said["said"]),
                )
            )
        elif say == "done":
            place.done = True
        elif say == "log":
            place.log = str(said["text"])
        elif say == "bye":
            place.bye = True
        if self.crew is not None:
            self.crew.heard(place, said)

    def _record(self, place: Place, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind not in BESIDE:
            self.progressed = time.monotonic()
        if self.crew is not None and kind not in crew.OF_SEATS:
            return
        if kind == "store":
            addresses = self.addresses(place)
            self.broadcast({"do": "store", "store": {"port": record["port"], "addresses": addresses}})
        elif kind == "interface":
            place.interface, place.address = record["interface"], record["address"]
        elif kind == "versions":
            place.versions = {k: str(v) for k, v in record.items() if k != "kind"}
        elif self.request.on_record is None or not self.request.on_record(place.host.name, record):
            self.records.append(record)
            if kind == "result":
                self.on_event(
                    Event(text=f"{record['collective']} {record['size_bytes']} B: {record['busbw_gbs']:.4g} GB/s busbw")
                )
        else:
            survey.ask_beside(self, place)

    def addresses(self, place: Place) -> list[str]:
        """Of a host, the likeliest first."""
        known: dict[str, str] = place.hello["addresses"]
        if self.request.interface:
            return [known[self.request.interface]] if self.request.interface in known else list(known.values())
        names = sorted(known, key=lambda name: bool(VIRTUAL.match(name)))
        extra = self.extra_addresses if place.first == 0 else ()  # they are of the host of rank 0
        return list(dict.fromkeys([*extra, *(known[n] for n in names)]))

    def _pong(self, place: Place, said: dict[str, Any]) -> None:
        now = time.monotonic()
        place.rows = {row[0]: row for row in said["ranks"]}
        started_down = set(place.hello["no_carrier"])
        place.lost_carrier = [name for name in said["no_carrier"] if name not in started_down]
        for rank, row in place.rows.items():
            if row[4] in ("T", "t"):
                place.stopped_since.setdefault(rank, now)
            else:
                place.stopped_since.pop(rank, None)
        counted = sum(row[1] + row[2] + row[3] for p in self.places.values() for row in p.rows.values())
        if counted != self.counted:
            self.counted, self.progressed = counted, now

    def broadcast(self, message: Mapping[str, Any]) -> None:
        for c in self.channels:
            c.send(message)

    # -- the run

    async def conduct(self, *, connecting: "asyncio.Future[Any] | None" = None) -> Finished:
        """From the first hello to the last good-bye."""
        pinger = asyncio.ensure_future(self._ping())
        try:
            if self.crew is not None:
                await crew.conduct(self, connecting)
            elif self.request.survey is not None:
                await survey.conduct(self, connecting)
            elif await self._reach() and self._seat() and self.start():
                await self._watch()
            if self.backend == "nccl" and self.seated:
                await self._logs()
        finally:
            pinger.cancel()
            if connecting is not None:
                connecting.cancel()
            self.broadcast({"do": "stop"})
            await self.until(lambda: all(p.bye or p.channel.ended for p in self._answering()), BYE_S)
            await self._end_silent_agents()
            await closed(self.channels, patience_s=0.5 if self.faults else 2.0)
            for task in self.readers:
                task.cancel()
        if self.request.survey is None:
            return self._finished()
        surveyed = survey.finished(self)
        return surveyed if self.crew is None else replace(self._finished(), bundle=surveyed.bundle)

    async def _end_silent_agents(self) -> None:
        """An agent that was itself stopped can't end its ranks; they die with it."""
        silent = [p for p in self.places.values() if not p.bye and not p.channel.ended]
        if self.end_agent is not None and silent:
            await asyncio.wait([asyncio.ensure_future(self.end_agent(p)) for p in silent], timeout=END_AGENT_S)

    def _answering(self) -> list[Place]:
        return [p for p in self.places.values() if time.monotonic() - p.heard < self.lease_s]

    async def _ping(self) -> None:
        n = 0
        while True:
            n += 1
            self.broadcast({"do": "ping", "n": n})
            await asyncio.sleep(PING_S)

    async def until(self, happened: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not happened():
            left = until - time.monotonic()
            if left <= 0:
                return False
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), min(left, TICK_S))
        return True

    async def _reach(self) -> bool:
        """All agents have said hello. Otherwise faults say which hosts did not, and why."""
        began = time.monotonic()
        while len(self.places) < self.agents and not self.interrupted and not self.faults:
            if self.pending:
                began = time.monotonic()  # the deadline starts with the allocation
            if time.monotonic() - began > self.limit_s * STALL_SHARE:
                break
            if any(c.ended for c in self.channels) and not await self.until(
                lambda: len(self.places) >= self.agents or not any(c.ended for c in self.channels), SETTLE_S
            ):
                break
            await self.until(lambda: len(self.places) >= self.agents, TICK_S)
        if self.interrupted or self.faults:
            return False
        if len(self.places) < self.agents:
            self._unreached()
        return not self.faults

    def _unreached(self) -> None:
        reached = {p.channel.name for p in self.places.values()}
        for c in self.channels:
            shared = c.name in ("srun", "joined")
            if c.name in reached and not shared:
                continue
            words = [*c.said, *c.noise]
            evidence = tuple(Evidence(text=w, where=f"{c.name}: stderr") for w in words[-EVIDENCE_LINES:])
            why = words[-1] if words else f"no answer within {self.limit_s * STALL_SHARE:.0f} s"
            if shared and self.places:
                seen = ", ".join(sorted(p.host.name for p in self.places.values()))
                why = f"only {len(self.places)} of {self.agents} answered ({seen}); {why}"
            kind = "refused" if c.name == "srun" and not self.places else "unreachable"
            if survey.MISSING_PYTHON.search(why):
                kind = "no-python"
            hosts = () if shared else (c.name.rpartition("@")[2],)
            self._fault(kind, hosts, "reach hosts", why, evidence=evidence)

    async def reach_some(self, connecting: "asyncio.Future[Any] | None") -> None:
        """Hosts that do not answer in time are faults, and the others are kept."""

        def settled() -> bool:
            gone = sum(c.ended and not any(p.channel is c for p in self.places.values()) for c in self.channels)
            ended = bool(self.channels) and all(c.ended for c in self.channels)
            return len(self.places) + gone >= self.agents or ended or bool(self.interrupted)

        began = time.monotonic()
        while not settled() and time.monotonic() - began < self.limit_s * STALL_SHARE:
            await self.until(settled, TICK_S)
            if self.pending:
                began = time.monotonic()  # the deadline starts with the allocation
        if connecting is not None:
            connecting.cancel()
        if not self.interrupted and len(self.places) + len(self.answers.refused) < self.agents:
            self._unreached()

    def seat_some(self) -> bool:
        """As `_seat`, without the hosts that can't take part."""
        places = self._ordered()
        if self.request.backend == "auto":
            self.backend = "nccl" if 2 * sum(bool(p.host.gpus) for p in places) > len(places) else "gloo"
        unfit = [*self._without_torch(places), *self._without_interface(places)]
        fit = [p for p in places if p not in unfit]
        if self.fixed_world is None:
            unfit = self._counted(fit, single=len(places) == 1)
            fit = [p for p in fit if p not in unfit]
        return bool(fit) and self._seated(fit)

    def _seat(self) -> bool:
        """Hosts in their order, each with its ranks."""
        places = self._ordered()
        if self._without_torch(places) or self._without_interface(places):
            return False
        if self.request.backend == "auto":
            self.backend = "nccl" if all(p.host.gpus for p in places) else "gloo"
        if self.fixed_world is None and self._counted(places, single=len(places) == 1):
            return False
        return self._seated(places)

    def _ordered(self) -> list[Place]:
        places = sorted(self.places.values(), key=self.order)
        return places[: self.request.nodes] if self.fixed_world is None and self.request.nodes else places

    def _seated(self, places: Sequence[Place]) -> bool:
        names: dict[str, int] = {}
        first = 0
        for p in places:
            key = p.host.name if self.fixed_world is not None or self.launcher == "joined" else p.agent
            p.index = names.setdefault(key, len(names))
            if self.fixed_world is not None:  # somebody else gave out the ranks
                p.first, p.first_local, p.local_world = map(int, p.hello["fixed"].split(":"))
                p.count = 1
            else:
                p.first, p.local_world = first, p.count
                first += p.count
        self.seated = sorted((p for p in places if p.count), key=lambda p: p.first)
        ranks = sum(p.count for p in self.seated)
        per_host = [sum(p.count for p in self.seated if p.index == i) for i in range(len(names))]
        by_index = {p.index: p.host.name for p in self.seated}
        self.world = World(
            nodes=len(by_index),
            ranks=ranks,
            ranks_per_node=max(per_host),
            hosts=tuple(by_index[i] for i in sorted(by_index)),
        )
        return True

    def _without_torch(self, places: Sequence[Place]) -> list[Place]:
        without = [p for p in places if not p.hello["torch"]]
        for p in without:
            self._fault(
                "no-torch",
                (p.host.name,),
                "reach hosts",
                f"{p.hello['executable']} (Python {p.hello['python']}) has no torch",
            )
        return without

    def _without_interface(self, places: Sequence[Place]) -> list[Place]:
        wanted = self.request.interface
        if not wanted or (wanted == "lo" and len(places) == 1):
            return []
        bad = [p for p in places if wanted not in p.hello["addresses"]]
        for p in bad:
            has = ", ".join(f"{n} {a}" for n, a in p.hello["addresses"].items()) or "none"
            self._fault(
                "bad-interface",
                (p.host.name,),
                "reach hosts",
                f"no interface {wanted} with an IPv4 address; there are: {has}",
            )
        return bad

    def _counted(self, places: Sequence[Place], *, single: bool) -> list[Place]:
        """How many ranks each host gets; those whose GPUs are all in use, which get none."""
        unfit = []
        for p in places:
            count = self.request.ranks_per_node
            if self.backend == "nccl":
                free = self._free_gpus(p)
                if not free and p.host.gpus:
                    unfit.append(p)
                count = count or len(free)
            p.count = count or (ahead.RANKS_ON_CPU if single else 1)
        return unfit

    def _free_gpus(self, p: Place) -> list[int]:
        """GPUs that nobody else computes on; the others are named, and not measured."""
        gpus = p.host.gpus or ()
        busy = [] if self.request.busy_ok else [g for g in gpus if g.busy_pids]
        for g in busy:
            pids = ", ".join(map(str, (g.busy_pids or ())[:8]))
            self._fault(
                "busy",
                (p.host.name,),
                "reach hosts",
                f"GPU {g.index} ({g.name}) is in use by process {pids}: not measured",
            )
        free = [g for g in gpus if g not in busy]
        if busy and free:
            p.visible = ",".join(g.uuid or str(g.index) for g in free)
        return [g.index for g in free]

    def start(self) -> bool:
        assert self.world is not None
        host_of_rank = [0] * max(p.first + p.count for p in self.seated)
        for p in self.seated:
            host_of_rank[p.first : p.first + p.count] = [p.index] * p.count
        config = self.configure([p.host for p in self.seated], self.world, self.backend)
        seats = {
            p.agent: {
                "host_index": p.index,
                "first": p.first,
                "count": p.count,
                "first_local": p.first_local,
                "local_world": p.local_world,
                "visible": p.visible,
            }
            for p in self.places.values()
        }
        self.broadcast({"do": "settings", "lease_s": self.lease_s})
        self.broadcast(
            {
                "do": "start",
                "program": self.request.program,
                "config": config,
                "world_size": self.world.ranks,
                "host_of_rank": host_of_rank,
                "hosts": list(self.world.hosts),
                "backend": self.backend,
                "interface": self.request.interface,
                "timeout_s": self.limit_s,
                "env": self.forwarded,
                "seats": seats,
            }
        )
        w = self.world
        gpus = [g for p in self.seated for g in p.host.gpus or ()]
        busy = sum(bool(g.busy_pids) for g in gpus)
        seen = f"{len(gpus) - busy} GPUs free, {busy} in use" if gpus else "no GPUs seen"
        hosts = f"{w.nodes} host{'s' if w.nodes != 1 else ''} ({', '.join(w.hosts[:8])}{' ...' if w.nodes > 8 else ''})"
        self.on_event(Event(text=f"{w.ranks} {self.backend} ranks on {hosts}; {seen}", passing=False))
        self.stage = "import"
        self.progressed = time.monotonic()
        return True

    async def _watch(self) -> None:
        while not self.interrupted:
            await self.until(self._settled, TICK_S)
            if all(p.done for p in self.seated):
                await self.until(lambda: bool(self.interrupted) or not survey.outstanding(self), FACTS_S)
                return
            if found := self._culprits():
                self.faults += found
                return

    def _settled(self) -> bool:
        return all(p.done for p in self.seated) or bool(self.interrupted)

    async def _logs(self) -> None:
        self.broadcast({"do": "logs"})
        await self.until(lambda: all(p.log is not None for p in self.seated if p in self._answering()), LOGS_S)

    # -- who is it?

    def _culprits(self) -> list[Fault]:
        """Whoever keeps the run from going on; nothing while it may still go on by itself."""
        now = time.monotonic()
        died = self._died(now)
        if died:
            return died
        if stopped := [(p, r) for p in self.seated for r, since in p.stopped_since.items() if now - since >= STOPPED_S]:
            return [
                self.of_rank(
                    p, r, "stopped", "stopped (process state T): somebody sent SIGSTOP, or a debugger holds it"
                )
                for p, r in stopped
            ]
        if lost := self.lost(now):
            return lost
        if now - self.progressed > self.limit_s * STALL_SHARE and not self.exits:
            return self._stalled(now)
        return []

    def _died(self, now: float) -> list[Fault]:
        if not self.exits or now - self.first_exit < SETTLE_S:
            return []
        by_signal = [e for e in self.exits if e.signal is not None]
        own = [e for e in self.exits if e.signal is None and not CONSEQUENCE.search("\n".join(e.said))]
        unmet = [e for e in self.exits if UNREACHED_STORE in "\n".join(e.said)]
        if by_signal or own or unmet:
            return [self.of_exit(e) for e in by_signal or unmet or own]
        everybody = sum(p.count for p in self.seated) == len(self.exits)
        if not everybody and now - self.first_exit < self.lease_s + LOST_AFTER_LEASE_S:
            return []  # all say "connection closed": whoever closed it will show
        return self.lost(now) or [self.of_exit(self.exits[0])]

    def of_exit(self, e: Exit) -> Fault:
        last = e.said[-1] if e.said else "without a word"
        how = (
            f"killed by signal {e.signal} ({signal_name(e.signal)})"
            if e.signal
            else f"ended with exit code {e.code}: {last}"
        )
        text = "\n".join(e.said)
        if UNREACHED_STORE in text and self.request.interface:
            how += f" (on interface {self.request.interface}, which was asked for)"
        kind = "exited"
        if "No module named 'torch'" in text:
            kind = "no-torch"
        elif NO_CUDA in text:
            kind = "no-gpu"
        elif UNREACHED_STORE in text or (e.stage == "rendezvous" and e.signal is None):
            kind = "rendezvous"
        where = f"stderr of rank {e.rank} on {e.place.host.name}"
        return Fault(
            kind=kind,
            hosts=(e.place.host.name,),
            ranks=(e.rank,),
            stage=e.stage,
            detail=how,
            last_finished=e.finished,
            evidence=tuple(Evidence(text=line, where=where) for line in e.said[-EVIDENCE_LINES:]),
        )

    def of_rank(self, p: Place, rank: int, kind: str, detail: str, *, certain: bool = True) -> Fault:
        row = p.rows.get(rank)
        return Fault(
            kind=kind,
            hosts=(p.host.name,),
            ranks=(rank,),
            stage=str(row[5]) if row else self.stage,
            detail=detail,
            last_finished=row[6] if row else None,
            certain=certain,
        )

    def lost(self, now: float) -> list[Fault]:
        patience = self.lease_s + LOST_AFTER_LEASE_S
        silent = [
            p for p in self.seated if not p.done and (now - p.heard > patience or (p.channel.ended and not p.bye))
        ]
        if not silent:
            return []
        cut = [p for p in self.seated if p not in silent and p.lost_carrier]
        if cut and len(silent) + len(cut) >= len(self.seated):  # everybody else is gone: it is us
            return [
                self._of_place(
                    p,
                    "lost",
                    f"its interface {', '.join(p.lost_carrier)} lost its carrier; "
                    f"{len(silent)} other hosts can't be reached from it",
                )
                for p in cut
            ]
        return [
            self._of_place(
                p,
                "lost",
                f"its connection ended: {p.channel.said[-1] if p.channel.said else 'without a word'}"
                if p.channel.ended
                else f"has not answered for {now - p.heard:.0f} s",
            )
            for p in silent
        ]

    def _of_place(self, p: Place, kind: str, detail: str) -> Fault:
        rows = list(p.rows.values())
        evidence = tuple(Evidence(text=line, where=f"{p.channel.name}: stderr") for line in p.channel.said[-3:])
        return Fault(
            kind=kind,
            hosts=(p.host.name,),
            ranks=tuple(range(p.first, p.first + p.count)),
            stage=str(rows[0][5]) if rows else self.stage,
            detail=detail,
            last_finished=rows[0][6] if rows else None,
            evidence=evidence,
        )

    def _stalled(self, now: float) -> list[Fault]:
        """No progress for the stage's time: somebody is stuck in the kernel, silent, or behind the others."""
        waited = f"no progress for {now - self.progressed:.0f} s"
        rows = {row[0]: (p, row) for p in self.seated for row in p.rows.values()}
        if blocked := [(p, row) for p, row in rows.values() if row[4] == "D"]:
            return [
                self.of_rank(p, row[0], "stopped", f"blocked in the kernel (process state D); {waited}")
                for p, row in blocked
            ]
        quiet = [p for p in self.seated if now - p.heard > 3 * PING_S]
        if quiet and len(quiet) < len(self.seated):
            return [self._of_place(p, "lost", f"has not answered for {now - p.heard:.0f} s") for p in quiet]
        if ahead := [(p, row) for p, row in rows.values() if _left_one_out(row, [other for _, other in rows.values()])]:
            detail = f"is a stage ahead of others, yet has entered no more collectives: it left one out; {waited}"
            return [self.of_rank(p, row[0], "skipped", detail, certain=False) for p, row in ahead]
        furthest = max((tuple(row[1:4]) for _, row in rows.values()), default=(0, 0, 0))
        behind = [(p, row) for p, row in rows.values() if tuple(row[1:3]) < furthest[:2]]
        kind = "rendezvous" if self.stage in ("import", "rendezvous") else "stalled"
        if behind:
            return [
                self.of_rank(
                    p, row[0], kind, f"has not come as far as the others, which wait for it; {waited}", certain=False
                )
                for p, row in behind
            ]
        hosts = tuple(dict.fromkeys(p.host.name for p in self.seated))
        ranks = tuple(sorted(rows))
        last = next((row[6] for _, row in rows.values() if row[6]), None)
        return [
            Fault(
                kind=kind,
                hosts=hosts,
                ranks=ranks,
                stage=self.stage,
                detail=f"all ranks wait in the same place; {waited}",
                last_finished=last,
                certain=False,
            )
        ]

    def _fault(self, kind: str, hosts: tuple[str, ...], stage: str, detail: str, **more: Any) -> None:
        self.faults.append(Fault(kind=kind, hosts=hosts, stage=stage, detail=detail, **more))

    # -- the end

    def interrupt(self, name: str) -> None:
        if self.interrupted:  # the second time: at once
            for c in self.channels:
                if c.process is not None:
                    with suppress(ProcessLookupError):
                        c.process.kill()
            os._exit(130)
        self.interrupted = name
        self.changed.set()

    def _finished(self) -> Finished:
        seats = tuple(
            Seat(
                host=p.host.name,
                ranks=tuple(range(p.first, p.first + p.count)),
                address=p.address,
                interface=p.interface,
                python=p.hello["executable"],
                versions=p.versions,
            )
            for p in self.seated
        )
        host_of_rank = tuple(p.host.name for p in self.seated for _ in range(p.count))
        hosts = {p.host.name: p.host for p in self.seated or self.places.values()}
        return Finished(
            launch=Launch(
                launcher=self.launcher,
                seats=seats,
                faults=tuple(self.faults),
                interrupted=self.interrupted,
                warnings=tuple(self.warnings),
            ),
            backend=self.backend,
            world=self.world,
            host_of_rank=host_of_rank,
            hosts=tuple(hosts.values()),
            records=tuple(self.records),
            logs={p.host.name: p.log for p in self.seated if p.log},
            environment={k: redact.variable(k, v) for k, v in self.forwarded.items()},
            versions=next((p.versions for p in self.seated if p.versions), {}),
        )


def signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return "?"


def handle_signals(head: Head) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, head.interrupt, number.name)


def _left_one_out(row: Sequence[Any], others: Sequence[Sequence[Any]]) -> bool:
    """Whether a rank in a collective is further than another in stages, but not in collectives."""
    _, stages, entered, finished = row[:4]
    return entered > finished and any(
        stages > other[1] and entered <= other[2] and other[2] > other[3] for other in others
    )
