"""From rates between pairs to who is slow: a host that sends or receives slowly, one link, a rail, or nobody.

A transfer is as fast as the slower of its two ends and the way between them: rate(a, b) = min(send a, receive b,
link a-b) times noise. A slow host is slow with all its partners, so its median tells, and its best transfer must not
be faster than such a host could be by luck. The slowest host is named first, and its transfers count no more against
its partners; what is slow between two hosts that are sound with others is the link.

How far below the usual rate is too far follows from the noise between the pairs themselves.
"""

import math
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from statistics import NormalDist

from smoldiag.facts.tables import HostCompute, Pair
from smoldiag.model.stats import median, percentile

SLOW_RATIO = 0.85  # of the usual rate; sound pairs of one cluster repeat to within 10 % (nccl-tests issue 106)
LUCK_SIGMAS = 4.0  # beyond the expected best of so many transfers; the noise itself is known to a fifth
SUSPECT_SIGMAS = 2.5  # a link that deserves a second look
FALSE_ALARMS = 1e-4  # per verdict, of sound hosts or links that noise would make slow
SHOWS_SIGMA = 20  # so many rates show it
LEAST_SIGMA = 0.05  # assumed where too few sound pairs show the noise
FLOOR_SIGMA = 0.02  # and however even the others are: single transfers are off by more (docs/measurements)
MAD_TO_SIGMA = 1.4826  # of a normal distribution
FEW_SHARE = 4  # up to a quarter of the hosts may be slow, and the usual rate is still that of the others
JITTER_SPREAD = 1.5  # slowest repeat over the median one
JITTER_SHARE = 0.6  # of a host's transfers, with at least MIN_PARTNERS
MIN_PARTNERS = 3
LEVELS_APART = 3.0  # of the noise within a level, between the least of one and the best of the next
MAX_LINKS_SHARE = 8  # more slow links than an eighth of the hosts are a level of the network, not faults

Link = tuple[str, str]


class Kind(str, Enum):  # StrEnum came with Python 3.11
    COMPUTE = "slow compute"
    SEND = "slow send"
    RECEIVE = "slow receive"
    BOTH_WAYS = "slow both ways"
    LINK = "slow link"
    DEAD_LINK = "dead link"
    DEAD = "dead host"
    HANG = "hang"
    JITTER = "jitter"
    RAIL = "slow rail"


@dataclass(frozen=True, kw_only=True)
class Fault:
    kind: Kind
    hosts: tuple[str, ...]  # one, or the two ends of a link: the sender first
    ratio: float  # of the usual rate or speed; 0 = nothing arrives. Of jitter: the slowest repeat over the median
    partners: int  # with so many the host was measured; of a link: how often
    confirmed: bool  # measured again, and the same
    lanes: tuple[int, ...] = ()  # local ranks that have it, where others of the host do not
    pairs: tuple[Pair, ...] = ()  # what shows it


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a host reaches, as ratio of the usual: 1 is like the others. None = not measured."""

    send: float | None
    receive: float | None
    compute: float | None


@dataclass(frozen=True, kw_only=True)
class Explained:
    usual_gbs: float
    sigma: float  # noise between sound pairs, of the logarithm: 0.05 is 5 %
    faults: tuple[Fault, ...]
    terms: Mapping[str, Terms]
    unclear: tuple[Pair, ...] = ()  # slow, and neither end was measured with anybody sound
    slow_links: tuple[Link, ...] = ()  # of sound hosts, the slowest first: to be measured again
    single: tuple[Fault, ...] = ()  # links that were measured once only, and are far too slow for noise
    levels: tuple[float, float] | None = None  # the network has a second, lower level: (it, the usual)

    @property
    def suspects(self) -> tuple[str, ...]:
        """Hosts to be measured again."""
        hosts = (h for f in self.faults if f.kind not in (Kind.LINK, Kind.DEAD_LINK, Kind.RAIL) for h in f.hosts)
        return tuple(dict.fromkeys((*hosts, *(h for p in self.unclear for h in (p.a, p.b)))))


def explain(pairs: Sequence[Pair], *, directed: bool, computes: Sequence[HostCompute] = ()) -> Explained | None:
    """What the rates between hosts say; None without a rate. Each lane is judged by itself, then they are joined."""
    lanes = sorted({p.lane for p in pairs})
    judged = {lane: _lane([p for p in pairs if p.lane == lane], directed) for lane in lanes}
    sound = {lane: e for lane, e in judged.items() if e is not None}
    if not sound:
        return None
    slow_computes, compute_of = _computes(computes)
    first = sound[min(sound)]
    faults = _joined(sound) if len(sound) > 1 else list(first.faults)
    faults = [*slow_computes, *(f for f in faults if not _follows(f, slow_computes)), *_rails(sound)]
    terms = {h: _worst([e.terms[h] for e in sound.values() if h in e.terms], compute_of.get(h)) for h in _hosts(pairs)}
    return Explained(
        usual_gbs=median([e.usual_gbs for e in sound.values()]),
        sigma=max(e.sigma for e in sound.values()),
        faults=tuple(sorted(faults, key=lambda f: (f.kind is Kind.JITTER, f.ratio))),
        terms=terms,
        unclear=tuple(p for e in sound.values() for p in e.unclear),
        slow_links=tuple(dict.fromkeys(link for e in sound.values() for link in e.slow_links)),
        single=tuple(f for e in sound.values() for f in e.single),
        levels=next((e.levels for e in sound.values() if e.levels), None),
    )


@dataclass
class _Ends:
    """Transfers by the host that sends, by the one that receives, and by both."""

    out: dict[str, list[Pair]] = field(default_factory=dict)
    into: dict[str, list[Pair]] = field(default_factory=dict)
    link: dict[Link, list[Pair]] = field(default_factory=dict)


def _lane(pairs: Sequence[Pair], directed: bool) -> Explained | None:
    both = pairs if directed else [*pairs, *(replace(p, a=p.b, b=p.a) for p in pairs)]
    ends = _Ends()
    for p in both:
        ends.out.setdefault(p.a, []).append(p)
        ends.into.setdefault(p.b, []).append(p)
        ends.link.setdefault((p.a, p.b), []).append(p)
    hosts = tuple(dict.fromkeys((*ends.out, *ends.into)))
    usual, sigma = _usual(both, ends, len(hosts))
    if usual <= 0:
        return None
    roles, left, unclear = _slow_roles(ends, usual, sigma, num_hosts=len(hosts))
    accused_send = {h: shown for (of_sender, h), shown in roles.items() if of_sender}
    accused_receive = {h: shown for (of_sender, h), shown in roles.items() if not of_sender}
    if not directed:
        unclear = [p for p in unclear if p.a < p.b]
    faults = _host_faults(accused_send, accused_receive, usual, directed=directed)
    named = {h for f in faults for h in f.hosts}
    many = max(MIN_PARTNERS, len(hosts) // MAX_LINKS_SHARE)
    others = [p.gb_per_s for p in both if p.a not in accused_send and p.b not in accused_receive]
    tail = max(sigma, _slow_end(others, usual, leaving_out=2 * many))
    links = _links(ends, usual, (sigma, tail), accused_send, accused_receive, unclear, directed=directed)
    confirmed = [f for f in links if f.confirmed]
    once = [f for f in links if f.ratio < _limit_of_best(tail, 1, of=len(ends.link))]
    lower = {frozenset(f.hosts) for f in links if f.confirmed or f.ratio < _limit_of_best(sigma, 1, of=len(ends.link))}
    levels = None
    if len(named) > (len(hosts) - 1) // 2 or len(lower) > many:
        slow = [p.gb_per_s for f in (*faults, *links) for p in f.pairs]
        levels = (median(slow), usual)
        links = [f for f in links if f.ratio * usual < levels[0] * _limit_in_level(slow, sigma, of=len(ends.link))]
        confirmed = [f for f in confirmed if f in links]
        faults = faults if len(named) <= (len(hosts) - 1) // 2 else []
    if not directed:
        confirmed, once = ([f for f in some if f.hosts[0] < f.hosts[1]] for some in (confirmed, once))
    return Explained(
        usual_gbs=usual,
        sigma=sigma,
        faults=(*faults, *confirmed, *_jitters(ends, hosts, named)),
        terms={
            h: Terms(
                send=_term(roles.get((True, h)) or left.get((True, h)), usual),
                receive=_term(roles.get((False, h)) or left.get((False, h)), usual),
                compute=None,
            )
            for h in hosts
        },
        unclear=tuple(unclear),
        slow_links=tuple((f.hosts[0], f.hosts[1]) for f in sorted(links, key=lambda f: f.ratio)),
        single=tuple(f for f in once if f in links and f.hosts not in {c.hosts for c in confirmed}),
        levels=levels,
    )


@lru_cache(maxsize=64)
def limit(sigma: float, count: int, *, of: int) -> float:
    """The ratio to the usual rate below which the median of `count` transfers is slow, where `of` are judged so.

    Noise alone brings one of `of` below it with a chance of FALSE_ALARMS; the error of a median is that of a normal
    distribution, pi/2 times the variance of a mean.
    """
    error = sigma * (math.sqrt(math.pi / 2 / count) if count > 2 else 1 / math.sqrt(count))
    return min(SLOW_RATIO, math.exp(error * NormalDist().inv_cdf(FALSE_ALARMS / max(of, 1))))


def is_slow(ratios: Sequence[float], sigma: float, *, of: int) -> bool:
    """Whether all of it is slow: the median is, and the best is no better than noise makes it of such a median.

    What scatters by itself more than others do is judged by its own scatter.
    """
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if high >= SLOW_RATIO:
        return False
    own = MAD_TO_SIGMA * median([abs(r / high - 1) for r in ordered]) if high > 0 else 0.0
    if high >= limit(round(max(sigma, own), 3), len(ordered), of=of):
        return False
    return ordered[-1] <= low * math.exp(sigma * (LUCK_SIGMAS - NormalDist().inv_cdf(1 / (len(ordered) + 1))))


_Role = tuple[bool, str]  # (as sender, host); False: as receiver


def _slow_roles(
    ends: "_Ends", usual: float, sigma: float, *, num_hosts: int
) -> tuple[dict[_Role, list[Pair]], dict[_Role, list[Pair]], list[Pair]]:
    """Who sends or receives slowly, by what; what is left of the others without those; pairs of which nobody can say.

    The slowest is named first.
    """
    left: dict[_Role, list[Pair]] = {(True, h): list(met) for h, met in ends.out.items()}
    left |= {(False, h): list(met) for h, met in ends.into.items()}
    found: dict[_Role, list[Pair]] = {}
    unclear: list[Pair] = []
    slow = {
        role: median(of) for role, met in left.items() if is_slow(of := _ratios(met, usual), sigma, of=2 * num_hosts)
    }
    while slow:
        role = min(slow, key=lambda r: (round(slow[r], 1), -len(_others(left[r], r)), slow[r]))
        met = left.pop(role)
        del slow[role]
        others = {(not role[0], h) for h in _others(met, role)}
        if len(others) == 1 and others <= set(slow) and len(_others(left[next(iter(others))], next(iter(others)))) == 1:
            unclear += met
        else:
            found[role] = met
        for other in others:
            left[other] = [p for p in left.get(other, ()) if (p.a if role[0] else p.b) != role[1]]
            slow.pop(other, None)
            if left[other] and is_slow(of := _ratios(left[other], usual), sigma, of=2 * num_hosts):
                slow[other] = median(of)
    return found, left, unclear


def _others(pairs: Iterable[Pair], role: _Role) -> set[str]:
    return {p.b if role[0] else p.a for p in pairs}


def _ratios(pairs: Iterable[Pair], usual: float) -> list[float]:
    return [p.gb_per_s / usual for p in pairs]


def _term(pairs: Sequence[Pair] | None, usual: float) -> float | None:
    return median(_ratios(pairs, usual)) if pairs else None


def _usual(pairs: Sequence[Pair], ends: _Ends, num_hosts: int) -> tuple[float, float]:
    """The rate of sound pairs, and the noise of its logarithm.

    First from the share of the pairs that a quarter of slow hosts would leave alone; then from all pairs of hosts
    that reach it. Where more than a quarter of those are far below, that is a second level of the network, not noise.
    """
    alive = [p.gb_per_s for p in pairs if p.gb_per_s > 0]
    if not alive:
        return 0.0, 0.0
    few = max(1, num_hosts // FEW_SHARE)
    left = (num_hosts - few) * (num_hosts - few - 1) / max(num_hosts * (num_hosts - 1), 1)
    usual = percentile(alive, 100 * (1 - left / 2))
    slow = {h for of in (ends.out, ends.into) for h, met in of.items() if _best(met, usual) < SLOW_RATIO}
    above = [math.log(rate / usual) for rate in alive if rate >= usual]
    least = usual * min(SLOW_RATIO, math.exp(-3 * MAD_TO_SIGMA * median(above)))
    all_sound = [p.gb_per_s for p in pairs if p.gb_per_s > 0 and p.a not in slow and p.b not in slow]
    sound = _upper_level(all_sound, least) or all_sound
    if len(sound) < MIN_PARTNERS:
        return usual, LEAST_SIGMA
    usual = median(sound)
    sigma = MAD_TO_SIGMA * median([abs(math.log(rate / usual)) for rate in sound])
    sigma *= 1 + 1 / math.sqrt(len(sound))  # as well as so many rates tell it
    return usual, max(sigma, FLOOR_SIGMA if len(sound) >= SHOWS_SIGMA else LEAST_SIGMA)


def _slow_end(rates: Sequence[float], usual: float, *, leaving_out: int) -> float:
    """The normal noise of which the slowest transfers would be as far off as they are.

    Noise is not normal where now and then a transfer takes twice as long; single pairs are judged by this. As many are
    left out as slow links would make.
    """
    alive = sorted(rate for rate in rates if rate > 0)
    at = min(leaving_out, len(alive) // FEW_SHARE)
    return math.log(alive[at] / usual) / NormalDist().inv_cdf((at + 0.5) / len(alive)) if len(alive) > 1 else 0.0


def _upper_level(rates: Sequence[float], least: float) -> list[float]:
    """Those above `least`, where the others are so many and so far below that both are levels; else none."""
    upper, lower = [r for r in rates if r > least], [r for r in rates if r <= least]
    if not upper or len(lower) <= len(rates) / FEW_SHARE:
        return []
    usual = median(upper)
    sigma = MAD_TO_SIGMA * median([abs(math.log(rate / usual)) for rate in upper])
    apart = math.log(percentile(upper, 5) / percentile(lower, 95))
    return upper if apart > LEVELS_APART * max(sigma, LEAST_SIGMA) else []


def _best(pairs: Iterable[Pair], usual: float) -> float:
    return max((p.gb_per_s for p in pairs), default=0.0) / usual


def _host_faults(
    send: Mapping[str, list[Pair]], receive: Mapping[str, list[Pair]], usual: float, *, directed: bool
) -> list[Fault]:
    faults = []
    for host in dict.fromkeys((*send, *receive)):
        pairs = [*send.get(host, ()), *(receive.get(host, ()) if directed else ())]
        partners = {p.b if p.a == host else p.a for p in pairs}
        kind = Kind.BOTH_WAYS if host in send and host in receive else Kind.SEND if host in send else Kind.RECEIVE
        if all(p.gb_per_s <= 0 for p in pairs):
            kind = Kind.HANG if any(p.fate == "hung" for p in pairs) else Kind.DEAD
        faults.append(
            Fault(
                kind=kind,
                hosts=(host,),
                ratio=median([p.gb_per_s for p in pairs]) / usual,
                partners=len(partners),
                confirmed=any(p.confirming for p in pairs),
                pairs=tuple(pairs),
            )
        )
    return faults


def _links(
    ends: _Ends,
    usual: float,
    noise: tuple[float, float],
    slow_send: Container[str],
    slow_receive: Container[str],
    unclear: Collection[Pair],
    *,
    directed: bool,
) -> list[Fault]:
    """Slow transfers between hosts that are fast with others; confirmed where a second one says the same.

    noise: of sound pairs, and at its slow end.
    """
    sigma, tail = noise
    once = min(SLOW_RATIO, math.exp(-SUSPECT_SIGMAS * sigma)) * usual
    found = []
    for (a, b), met in ends.link.items():
        best = max(p.gb_per_s for p in met)
        if best >= once or met[0] in unclear:
            continue
        of_host = [*(ends.out[a] if a in slow_send else ()), *(ends.into[b] if b in slow_receive else ())]
        if of_host and best >= median([p.gb_per_s for p in of_host]) * _limit_of_best(tail, 1, of=len(ends.link)):
            continue
        if len(_others(ends.out[a], (True, a))) < 2 or len(_others(ends.into[b], (False, b))) < 2:
            continue
        dead = best <= 0
        back = [p for p in ends.link.get((b, a), ()) if p.gb_per_s < once]  # the other direction speaks for it, too
        said_by = ((*met, *back), met) if directed else (met,)
        confirmed = any(_is_confirmed(shown, usual, tail, of=len(ends.link)) for shown in said_by)
        found.append(
            Fault(
                kind=Kind.DEAD_LINK if dead else Kind.LINK,
                hosts=(a, b),
                ratio=median([p.gb_per_s for p in met]) / usual,
                partners=len(met),
                confirmed=confirmed,
                pairs=tuple(met),
            )
        )
    return found


def _is_confirmed(shown: Sequence[Pair], usual: float, tail: float, *, of: int) -> bool:
    """Whether all of several transfers are too slow. What slows a pair for a moment slows all of its round."""
    rounds = {p.round for p in shown}
    count = len(shown) if None in rounds else len(rounds)
    return count > 1 and max(p.gb_per_s for p in shown) < usual * _limit_of_best(tail, count, of=of)


def _limit_of_best(sigma: float, count: int, *, of: int) -> float:
    """As `limit`, of the best instead of the median: few repeats of one pair."""
    chance = (FALSE_ALARMS / max(of, 1)) ** (1 / count)
    return min(SLOW_RATIO, math.exp(sigma * NormalDist().inv_cdf(chance)))


def _limit_in_level(rates: Sequence[float], sigma: float, *, of: int) -> float:
    """As `_limit_of_best` of one transfer, relative to the median of a level that has these rates."""
    logs = [math.log(rate) for rate in rates if rate > 0] or [0.0]
    middle = median(logs)
    own = MAD_TO_SIGMA * median([abs(log - middle) for log in logs])
    return _limit_of_best(max(own, sigma), 1, of=of)


def _jitters(ends: _Ends, hosts: Sequence[str], named: set[str]) -> list[Fault]:
    """Hosts most of whose transfers have a repeat far above the median, where those of others do not."""
    faults = []
    timed = {h: [p for p in met if _tells_spread(p, named)] for h, met in ends.out.items()}
    num_timed = sum(map(len, timed.values()))
    num_uneven = sum(_is_uneven(p) for met in timed.values() for p in met)
    for host in hosts:
        met = [*timed.get(host, ()), *(p for p in ends.into.get(host, ()) if _tells_spread(p, named))]
        partners = {p.b if p.a == host else p.a for p in met}
        uneven = [p for p in met if _is_uneven(p)]
        if len(partners) < MIN_PARTNERS or len(uneven) < JITTER_SHARE * len(met):
            continue
        of_others = (num_uneven - len(uneven) + 1) / (num_timed - len(met) + 2)  # Laplace's rule of succession
        if _at_least(len(uneven), len(met), of_others) > FALSE_ALARMS / len(hosts):
            continue
        faults.append(
            Fault(
                kind=Kind.JITTER,
                hosts=(host,),
                ratio=median([p.spread or 0.0 for p in uneven]),
                partners=len(partners),
                confirmed=any(p.confirming for p in uneven),
                pairs=tuple(uneven),
            )
        )
    return faults if len(faults) <= max(1, len(hosts) // FEW_SHARE) else []


def _tells_spread(pair: Pair, named: Collection[str]) -> bool:
    return pair.spread is not None and pair.a not in named and pair.b not in named


def _is_uneven(pair: Pair) -> bool:
    return (pair.spread or 0.0) > JITTER_SPREAD


def _at_least(k: int, n: int, chance: float) -> float:
    """Of n independent events, k or more: the binomial distribution."""
    return math.fsum(math.comb(n, i) * chance**i * (1 - chance) ** (n - i) for i in range(k, n + 1))


def _computes(computes: Sequence[HostCompute]) -> tuple[list[Fault], dict[str, float]]:
    """Hosts whose time for the common work is far above that of the others, and everybody's speed as a ratio."""
    times: dict[tuple[str, int], list[float]] = {}
    for c in computes:
        times.setdefault((c.host, c.lane), []).append(c.seconds)
    usual_of = {key: median(of) for key, of in times.items()}
    if len(usual_of) < MIN_PARTNERS:
        return [], {}
    usual = median(list(usual_of.values()))
    repeated = any(len(of) > 1 for of in times.values())
    about = usual_of if repeated else dict.fromkeys(usual_of, usual)
    off = [abs(math.log(t / about[key])) for key, of in times.items() for t in of if t != about[key]]
    sigma = max(MAD_TO_SIGMA * median(off or [0.0]), LEAST_SIGMA)
    slow: dict[str, list[int]] = {}
    for (host, lane), of in times.items():
        if is_slow([usual / t for t in of], sigma, of=len(times)):
            slow.setdefault(host, []).append(lane)
    lanes = {h: {lane for host, lane in times if host == h} for h in slow}
    faults = [
        Fault(
            kind=Kind.COMPUTE,
            hosts=(host,),
            ratio=usual / max(usual_of[host, lane] for lane in of),
            partners=len(times[host, of[0]]),
            confirmed=len(times[host, of[0]]) > 1,
            lanes=tuple(of) if len(of) < len(lanes[host]) else (),
        )
        for host, of in slow.items()
    ]
    speed: dict[str, float] = {}
    for (host, _), seconds in usual_of.items():
        speed[host] = min(speed.get(host, math.inf), usual / seconds)
    return faults if len(faults) <= max(1, len(speed) // FEW_SHARE) else [], speed


def _follows(fault: Fault, computes: Sequence[Fault]) -> bool:
    """A host that computes slowly also sends and receives slowly: its processor is behind both."""
    of_hosts = (Kind.BOTH_WAYS, Kind.SEND, Kind.RECEIVE, Kind.JITTER)
    return fault.kind in of_hosts and any(fault.hosts == c.hosts for c in computes)


def _joined(lanes: Mapping[int, Explained]) -> list[Fault]:
    """Faults of all lanes: one that every lane of its host has is the host's."""
    groups: dict[tuple[Kind, tuple[str, ...]], list[tuple[int, Fault]]] = {}
    for lane, explained in lanes.items():
        for fault in explained.faults:
            groups.setdefault((fault.kind, fault.hosts), []).append((lane, fault))
    joined = []
    for (kind, hosts), group in groups.items():
        of_host = sum(all(h in e.terms for h in hosts) for e in lanes.values())
        joined.append(
            Fault(
                kind=kind,
                hosts=hosts,
                ratio=median([f.ratio for _, f in group]),
                partners=max(f.partners for _, f in group),
                confirmed=all(f.confirmed for _, f in group),
                lanes=() if len(group) == of_host else tuple(lane for lane, _ in group),
                pairs=tuple(p for _, f in group for p in f.pairs),
            )
        )
    return joined


def _rails(lanes: Mapping[int, Explained]) -> list[Fault]:
    """A lane that is slow on all hosts, against the other lanes."""
    if len(lanes) < MIN_PARTNERS:
        return []
    usual = median([e.usual_gbs for e in lanes.values()])
    return [
        Fault(kind=Kind.RAIL, hosts=(), ratio=e.usual_gbs / usual, partners=0, confirmed=True, lanes=(lane,))
        for lane, e in lanes.items()
        if e.usual_gbs < SLOW_RATIO * usual
    ]


def _worst(terms: Sequence[Terms], compute: float | None) -> Terms:
    sends = [t.send for t in terms if t.send is not None]
    receives = [t.receive for t in terms if t.receive is not None]
    return Terms(send=min(sends, default=None), receive=min(receives, default=None), compute=compute)


def _hosts(pairs: Iterable[Pair]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(h for p in pairs for h in (p.a, p.b)))
