"""Facts of many hosts: no ranks are started; an agent on each host reads, answers and goes.

Hosts that can't be reached are faults, and the others are kept. The clocks are compared over the same channel.
"""

import asyncio
import base64
import re
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from smoldiag.facts import Clock, Evidence, Fault, Host, Launch
from smoldiag.launch.channels import Channel, closed
from smoldiag.launch.request import Event, Finished, Survey

if TYPE_CHECKING:
    from smoldiag.bundle import Read
    from smoldiag.launch.head import Head, Place

SHARED = ("srun", "joined")  # channels with the agents of many hosts behind them
MAX_ANSWER_BYTES = 64 * 2**20
CLOCK_READINGS = 5  # the one with the shortest way there and back counts
TICK_S = 0.25
MISSING_PYTHON = re.compile(r"(?i)python\S*: (?:command )?not found|no such file or directory")
EVIDENCE_LINES = 3


@dataclass
class Answers:
    """What has come back so far, by agent."""

    read: dict[str, "Read"] = field(default_factory=dict)
    clocks: dict[str, list[Clock]] = field(default_factory=dict)
    places: dict[int, "Place"] = field(default_factory=dict)  # by the identity of the channel
    refused: list[int] = field(default_factory=list)  # channels whose Python is too old, once for each host


def ask(head: "Head", place: "Place") -> None:
    """An agent has said hello: what it is asked for."""
    survey = head.request.survey
    head.answers.places[id(place.channel)] = place
    if survey is not None and takes_part(place):
        _read_clock(place, 1)
        place.channel.send({"do": "collect", "to": place.agent, **asdict(survey), "env": head.forwarded})


def heard(head: "Head", place: "Place", said: dict[str, Any]) -> None:
    """An agent has answered."""
    now = time.time()
    if said["say"] == "pong" and "sent" in said:
        readings = head.answers.clocks.setdefault(place.agent, [])
        there, back = float(said["sent"]), now
        offset = float(said["clock"]) - (there + back) / 2
        readings.append(Clock(offset_s=offset, uncertainty_s=(back - there) / 2))
        if len(readings) < CLOCK_READINGS:
            _read_clock(place, len(readings) + 1)
    elif said["say"] == "facts":
        if (read := answer(said)) is not None:
            head.answers.read[place.agent] = read
        head.on_event(Event(text=f"read {len(head.answers.read)} of {_expected(head)} hosts"))


def answer(said: dict[str, Any]) -> "Read | None":
    """Of a message with facts; a host that says nonsense has not answered."""
    from smoldiag.bundle import read_answer

    with suppress(zlib.error, msgspec.DecodeError, RecursionError):
        return read_answer(zlib.decompressobj().decompress(base64.b64decode(said["z"]), MAX_ANSWER_BYTES))
    return None


def ask_beside(head: "Head", place: "Place") -> None:
    """While its ranks run: the facts of this host, once."""
    asked = {p.host.name for p in head.places.values() if p.facts_asked}
    if head.request.on_host is not None and place.host.name not in asked and takes_part(place):
        place.facts_asked = time.monotonic()
        place.channel.send({"do": "collect", "to": place.agent, **asdict(Survey()), "env": head.forwarded})


def heard_beside(head: "Head", place: "Place", said: dict[str, Any]) -> None:
    place.facts_answered = True
    if (read := answer(said)) is not None and head.request.on_host is not None:
        head.request.on_host(replace(read.host, name=place.host.name))


def outstanding(head: "Head") -> bool:
    """Whether a host that was asked beside its ranks may still answer."""
    since = [p.facts_asked for p in head.places.values() if p.facts_asked and not p.facts_answered]
    return any(time.monotonic() - asked < Survey.seconds for asked in since)


def _read_clock(place: "Place", n: int) -> None:
    place.channel.send({"do": "ping", "to": place.agent, "n": n, "sent": time.time()})


async def conduct(head: "Head", connecting: "asyncio.Future[Any] | None") -> None:
    """Until every host has answered, or its time is over."""
    if connecting is not None:  # a channel per host, each with a deadline of its own
        connecting.add_done_callback(lambda _: head.changed.set())
        while not connecting.done() and not head.interrupted:
            await head.until(lambda: connecting.done() or bool(head.interrupted), TICK_S)
    else:
        began = time.monotonic()
        while not _all_answered(head) and time.monotonic() - began < head.limit_s:
            await head.until(lambda: _all_answered(head), TICK_S)
            if head.pending:
                began = time.monotonic()  # the deadline starts with the allocation
    if not head.interrupted:
        head.faults += _faults(head)


def _all_answered(head: "Head") -> bool:
    ended = bool(head.channels) and all(c.ended for c in head.channels)
    return len(head.answers.read) >= _expected(head) or ended or bool(head.interrupted)


async def answered(head: "Head", channel: Channel) -> None:
    """Until the host behind this channel has answered, or its time is over; then its process is ended."""

    def has_answered() -> bool:
        place = head.answers.places.get(id(channel))
        whole = place is not None and place.agent in head.answers.read and _has_clock(head, place)
        return whole or channel.ended or bool(head.interrupted)

    await head.until(has_answered, head.request.timeout_s)
    channel.send({"do": "stop"})
    await closed([channel], patience_s=1.0)


def _has_clock(head: "Head", place: "Place") -> bool:
    return len(head.answers.clocks.get(place.agent, ())) >= CLOCK_READINGS


def takes_part(place: "Place") -> bool:
    """One agent per host: where a launcher started several, that of the first local rank."""
    fixed = place.hello.get("fixed")
    return not fixed or fixed.split(":")[1] == "0"


def _expected(head: "Head") -> int:
    return head.agents - sum(not takes_part(p) for p in head.places.values()) - len(head.answers.refused)


def _faults(head: "Head") -> list[Fault]:
    return [f for c in head.channels if (f := _shared_fault(head, c) if c.name in SHARED else _fault(head, c))]


def _fault(head: "Head", channel: Channel) -> Fault | None:
    place = head.answers.places.get(id(channel))
    if id(channel) in head.answers.refused or (place is not None and place.agent in head.answers.read):
        return None
    words = [*channel.said, *channel.noise]
    why = words[-1] if words else f"no answer within {head.request.timeout_s:.0f} s"
    if place is not None:
        why = f"it was reached, but its facts did not come within {head.request.timeout_s:.0f} s"
    return _unreachable((channel.name,), why, words, channel)


def _shared_fault(head: "Head", channel: Channel) -> Fault | None:
    missing = _expected(head) - len(head.answers.read)
    if missing <= 0 or channel is not head.channels[0]:
        return None
    words = [*channel.said, *channel.noise]
    names = tuple(sorted(set(head.names) - {p.host.name for p in head.places.values() if p.agent in head.answers.read}))
    why = f"{missing} of {_expected(head)} hosts did not answer" + (
        "" if channel.ended else f" in {head.limit_s:.0f} s"
    )
    return _unreachable(names, f"{why}: {words[-1]}" if words else why, words, channel)


def _unreachable(hosts: tuple[str, ...], why: str, words: Sequence[str], channel: Channel) -> Fault:
    return Fault(
        kind="no-python" if MISSING_PYTHON.search(why) else "unreachable",
        hosts=hosts,
        stage="reach hosts",
        detail=why,
        evidence=tuple(Evidence(text=w, where=f"{channel.name}: stderr") for w in words[-EVIDENCE_LINES:]),
    )


def finished(head: "Head") -> Finished:
    """The hosts in their order, each under a name of its own."""
    places = [p for p in sorted(head.places.values(), key=head.order) if p.agent in head.answers.read]
    launch = Launch(
        launcher=head.launcher,
        seats=(),
        faults=tuple(head.faults),
        interrupted=head.interrupted,
        warnings=tuple(head.warnings),
    )
    from smoldiag.bundle import of_answers

    bundle = of_answers([head.answers.read[p.agent] for p in places], launch=launch)
    taken = Counter(h.name for h in bundle.hosts)
    hosts = tuple(_named(_with_clock(head, p, h), p, taken) for p, h in zip(places, bundle.hosts, strict=True))
    return Finished(launch=launch, backend="", bundle=replace(bundle, hosts=hosts))


def _with_clock(head: "Head", place: "Place", host: Host) -> Host:
    readings = head.answers.clocks.get(place.agent)
    if not readings:
        return host
    best = min(readings, key=lambda c: c.uncertainty_s or 0.0)
    known = host.clock or Clock()
    return replace(host, clock=replace(known, offset_s=best.offset_s, uncertainty_s=best.uncertainty_s))


def _named(host: Host, place: "Place", taken: Counter[str]) -> Host:
    """By the name that the host was called by where its own is also another's; the other one is an alias."""
    called = place.channel.name.rpartition("@")[2] if place.channel.name not in SHARED else ""
    name = host.name
    if taken[name] > 1:
        address = next(iter(place.hello["addresses"].values()), "")
        name = called or f"{name} ({address or place.agent})"
    aliases = dict.fromkeys((*host.aliases, host.name, called))
    return replace(host, name=name, aliases=tuple(a for a in aliases if a and a != name))
