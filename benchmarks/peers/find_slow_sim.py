"""How often `smoldiag find-slow` is right, in how many rounds, beside the ways in which other tools search.

    python -m benchmarks.peers.find_slow_sim [--nodes 8,64,4096] [--trials 200] [--noise 0.05|wire-bound] [--faults 1]

A simulated cluster has nodes that send, receive or compute slowly, links between two that are slow or dead, nodes that
hang or are uneven; every measurement is off by noise: normal, or drawn from real transfers (docs/measurements). All
methods see the same cluster. A node or link that is named and is guilty counts for them, one that is not against.

The others, as read in their sources in 2026-11; each is given the healthy rate as its threshold, which people have to
know beforehand:
- two random passes: GoogleCloudPlatform/cluster-health-scanner, src/health_runner/nccl_runner.py: random disjoint
  pairs, a pair below the threshold makes both suspects, and each suspect is measured again with a random passed node.
- two-round check: intelligent-machine-learning/dlrover, master/elastic_training/rdzv_manager.py: neighbours, then the
  fastest with the slowest; a node whose better time is above twice the median is a straggler. Also with 1 / 0.85.
- reference, then growth: ROCm/cvs, tests/rccl/rccl_pairwise.py: every node with one reference node in turn,
  then the cluster grows by one survivor at a time; a node with which the bandwidth is below the threshold is dropped.
- all pairs: every node with every other; a node is slow whose median is below the threshold.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from smoldiag.facts.tables import HostCompute, Pair
from smoldiag.model import pair_schedule, slow_nodes, slow_search

NODES = "8,16,64,256,1024,4096"
NODE_KINDS = ("slow both ways", "slow send", "slow receive", "slow compute")
OTHER_KINDS = ("hang", "jitter", "slow link", "dead link")
RATE_GBS, COMPUTE_S = 50.0, 0.1
FAULT_RATIO = 0.7
THRESHOLD = 0.85
STRAGGLER = 2.0  # dlrover's _detect_stragglers
REPEATS = 5  # of a transfer, for its spread
# Assumed; six CPU hosts took 1.5 s for a round and 5 s to start, GPUs with NCCL take longer for both.
ROUND_S, START_S = 2.0, 12.0  # a round with both directions; starting ranks: once for us, each time for the others
NOISE = Path(__file__).parents[2] / "docs" / "measurements" / "pair-noise-gloo.json"

Guilty = frozenset[int]  # one node, or both ends of a link
Noise = Callable[[], float]


@dataclass
class Cluster:
    num_nodes: int
    rng: random.Random
    noise: Noise
    faults: dict[Guilty, str] = field(default_factory=dict)
    by_node: dict[int, str] = field(default_factory=dict)

    def rate(self, a: int, b: int) -> float:
        """GB/s from a to b, as one measurement shows it."""
        kinds = self.by_node.get(a, ""), self.by_node.get(b, "")
        link = self.faults.get(frozenset((a, b)), "")
        if "hang" in kinds or link == "dead link":
            return 0.0
        slow = kinds[0] in ("slow both ways", "slow send") or kinds[1] in ("slow both ways", "slow receive")
        return RATE_GBS * (FAULT_RATIO if slow or link == "slow link" else 1.0) * max(self.noise(), 0.05)

    def both(self, a: int, b: int) -> float:
        """What a collective between the two shows, the compute of both included, as most tools measure it."""
        compute = FAULT_RATIO if "slow compute" in (self.by_node.get(a), self.by_node.get(b)) else 1.0
        return min(self.rate(a, b), self.rate(b, a)) * compute

    def spread(self, a: int, b: int) -> float:
        if "jitter" in (self.by_node.get(a), self.by_node.get(b)):
            return self.rng.uniform(1.2, 4.0)
        return 1 + abs(1 - self.noise())

    def compute_s(self, node: int) -> float:
        return COMPUTE_S / (FAULT_RATIO if self.by_node.get(node) == "slow compute" else 1.0) / max(self.noise(), 0.05)


@dataclass
class Said:
    named: set[Guilty]
    rounds: int
    kinds: dict[Guilty, str] = field(default_factory=dict)
    starts: int = 1

    @property
    def minutes(self) -> float:
        return (self.rounds * ROUND_S + self.starts * START_S) / 60


def cluster(num_nodes: int, rng: random.Random, noise: Noise, kinds: Sequence[str], num_faults: int) -> Cluster:
    made = Cluster(num_nodes=num_nodes, rng=rng, noise=noise)
    for node in rng.sample(range(num_nodes), num_faults):
        kind = rng.choice(kinds)
        if kind.endswith("link"):
            other = rng.choice([n for n in range(num_nodes) if n != node])
            made.faults[frozenset((node, other))] = kind
        else:
            made.faults[frozenset((node,))] = kind
            made.by_node[node] = kind
    return made


def smoldiag(c: Cluster) -> Said:
    names = [f"node{i}" for i in range(c.num_nodes)]
    place = {name: i for i, name in enumerate(names)}
    pairs: list[Pair] = []
    computes: list[HostCompute] = []
    done = 0
    while met := slow_search.next_round(names, done=done, pairs=pairs, computes=computes):
        for x, y in met.pairs:
            for a, b in ((x, y), (y, x)):
                rate = c.rate(place[a], place[b])
                pairs.append(
                    Pair(
                        a=a,
                        b=b,
                        gb_per_s=rate,
                        where="",
                        fate="" if rate else "hung" if "hang" in c.by_node.values() else "failed",
                        spread=c.spread(place[a], place[b]) if rate else None,
                        round=done,
                        confirming=met.confirming,
                    )
                )
            computes += [HostCompute(host=h, lane=0, seconds=c.compute_s(place[h])) for h in (x, y)]
        done += 1
    explained = slow_nodes.explain(pairs, directed=True, computes=computes)
    kinds = {frozenset(place[h] for h in f.hosts): f.kind.value for f in explained.faults} if explained else {}
    return Said(named=set(kinds), rounds=done, kinds=kinds)


def all_pairs(c: Cluster) -> Said:
    rates: dict[int, list[float]] = {i: [] for i in range(c.num_nodes)}
    for a in range(c.num_nodes):
        for b in range(a):
            rate = c.both(a, b)
            rates[a].append(rate)
            rates[b].append(rate)
    named = {frozenset((n,)) for n, of in rates.items() if median(of) < THRESHOLD * RATE_GBS}
    rounds = c.num_nodes - 1
    return Said(named=named, rounds=rounds, starts=rounds)


def two_random_passes(c: Cluster) -> Said:
    order = c.rng.sample(range(c.num_nodes), c.num_nodes)
    good = {(a, b): c.both(a, b) >= THRESHOLD * RATE_GBS for a, b in zip(order[::2], order[1::2], strict=False)}
    passed = [n for pair, is_good in good.items() if is_good for n in pair]
    suspects = [n for pair, is_good in good.items() if not is_good for n in pair]
    again = {n: c.both(n, c.rng.choice(passed)) for n in suspects} if passed else {}
    named = {frozenset((n,)) for n, rate in again.items() if rate < THRESHOLD * RATE_GBS}
    rounds = 1 + bool(suspects)
    return Said(named=named, rounds=rounds, starts=rounds)


def two_round_check(c: Cluster, straggler: float = STRAGGLER) -> Said:
    times = {n: float("inf") for n in range(c.num_nodes)}
    order = list(range(c.num_nodes))
    for _ in range(2):
        for a, b in zip(order[::2], order[1::2], strict=False):
            rate = c.both(a, b)
            for n in (a, b):
                times[n] = min(times[n], 1 / rate if rate else float("inf"))
        fastest = sorted(times, key=lambda n: times[n])
        half = c.num_nodes // 2
        order = [n for pair in zip(fastest[:half], reversed(fastest[-half:]), strict=True) for n in pair]
    usual = median(times.values())
    return Said(named={frozenset((n,)) for n, t in times.items() if t > straggler * usual}, rounds=2, starts=2)


def two_round_check_sharp(c: Cluster) -> Said:
    return two_round_check(c, 1 / THRESHOLD)


def reference_and_growth(c: Cluster) -> Said:
    threshold = THRESHOLD * RATE_GBS
    rest = range(1, c.num_nodes)
    survivors = [n for n in rest if c.both(0, n) >= threshold]
    named = {frozenset((n,)) for n in rest if n not in set(survivors)}
    bad, runs = {n for n, kind in c.by_node.items() if kind != "jitter"}, len(rest)
    slowed = 0 in bad
    for n in survivors:
        runs += 1
        rate = FAULT_RATIO if slowed or n in bad else 1.0
        if rate * max(c.noise(), 0.05) * RATE_GBS < threshold:
            named.add(frozenset((n,)))
        else:
            slowed = slowed or n in bad
    return Said(named=named, rounds=runs, starts=runs)


METHODS: dict[str, Callable[[Cluster], Said]] = {
    "smoldiag find-slow": smoldiag,
    "all pairs": all_pairs,
    "two random passes": two_random_passes,
    "two-round check": two_round_check,
    "two-round check, 1/0.85": two_round_check_sharp,
    "reference, then growth": reference_and_growth,
}
MOST_FOR_ALL_PAIRS = 256  # above, all pairs of the simulation take too long


def normal(rng: random.Random, sigma: float) -> Noise:
    return lambda: rng.gauss(1.0, sigma)


def recorded(rng: random.Random, sample: str) -> Noise:
    ratios = json.loads(NOISE.read_text())["samples"][sample]
    return lambda: float(rng.choice(ratios))


def drawn(rng: random.Random, noise: str) -> Noise:
    """`noise`: a number, or the name of a recorded sample."""
    return normal(rng, float(noise)) if noise[0].isdecimal() else recorded(rng, noise)


@dataclass
class Score:
    right: int = 0  # guilty and named
    guilty: int = 0
    named: int = 0
    alarms: int = 0  # trials in which somebody innocent was named
    kinds: int = 0  # right, and of the right kind
    rounds: int = 0
    minutes: float = 0.0

    def add(self, c: Cluster, said: Said) -> None:
        guilty = set(c.faults)
        self.guilty += len(guilty)
        self.right += len(guilty & said.named)
        self.named += len(said.named)
        self.alarms += bool(said.named - guilty)
        self.kinds += sum(said.kinds.get(g) == c.faults[g] for g in guilty)
        self.rounds, self.minutes = max(self.rounds, said.rounds), max(self.minutes, said.minutes)

    def line(self, trials: int) -> str:
        recall = f"{self.right / self.guilty:.3f}" if self.guilty else "-"
        precision = f"{self.right / self.named:.3f}" if self.named else "-"
        kinds = f"{self.kinds / self.right:.3f}" if self.right and self.kinds else "-"
        alarms = f"{self.alarms}/{trials}"
        return f"{recall:>7} {precision:>9} {kinds:>6} {alarms:>9} {self.rounds:>7} {self.minutes:>8.1f}"


def compared(
    num_nodes: int, trials: int, noise: str, kinds: Sequence[str], num_faults: int, *, only_ours: bool
) -> Iterator[tuple[str, str]]:
    """A line per method: all see clusters from the same seeds."""
    for name, method in METHODS.items():
        ours = method is smoldiag
        if (only_ours and not ours) or (method is all_pairs and num_nodes > MOST_FOR_ALL_PAIRS):
            continue
        score = Score()
        for trial in range(trials):
            rng = random.Random(f"{num_nodes} {trial}")
            c = cluster(num_nodes, rng, drawn(rng, noise), kinds, num_faults)
            score.add(c, method(c))
        yield name, score.line(trials)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nodes", default=NODES)
    arguments.add_argument("--trials", type=int, default=200)
    arguments.add_argument("--noise", default="0.05", help="of a measurement: 0.05, wire-bound or processor-bound")
    arguments.add_argument("--faults", default="1", help="how many at a time, e.g. 0,1,2,3")
    arguments.add_argument("--kinds", default=",".join(NODE_KINDS), help=f"of {', '.join(NODE_KINDS + OTHER_KINDS)}")
    arguments.add_argument("--only-ours", action="store_true")
    options = arguments.parse_args()
    kinds = options.kinds.split(",")
    for num_faults in map(int, options.faults.split(",")):
        print(f"{num_faults} faults ({', '.join(kinds)}; {1 - FAULT_RATIO:.0%}), noise {options.noise}")
        print(f"{'nodes':>5} {'method':24} recall precision  kinds alarms in  rounds  minutes  bound")
        for num_nodes in map(int, options.nodes.split(",")):
            began = time.monotonic()
            found = compared(num_nodes, options.trials, options.noise, kinds, num_faults, only_ours=options.only_ours)
            for name, line in found:
                bound = f"{pair_schedule.most_rounds(num_nodes):>6}" if name in next(iter(METHODS)) else ""
                print(f"{num_nodes:>5} {name:24}{line} {bound}", flush=True)
            print(f"      ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
