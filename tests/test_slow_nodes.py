"""Pairs of hosts: which are measured together, who is slow by their rates, and from which node count a sweep is."""

import random
from collections.abc import Sequence
from itertools import combinations

import pytest

from benchmarks.peers import find_slow_sim as simulated
from smoldiag.facts.tables import Pair
from smoldiag.model import growth, pair_schedule, slow_nodes, slow_search

GIB = 2**30
COUNTS = range(1, 17)


@pytest.mark.parametrize("hosts", [2, 3, 6, 9, 16, 64, 1000])
def test_no_host_is_in_two_pairs_of_a_round(hosts: int) -> None:
    for met in pair_schedule.searching(hosts):
        named = [h for pair in met for h in pair]
        assert len(set(named)) == len(named) >= hosts - hosts % 2
        assert set(named) <= set(range(hosts))


@pytest.mark.parametrize("hosts", [2, 5, 6, 8, 33])
def test_all_pairs_are_met_once_where_that_is_asked_for(hosts: int) -> None:
    met = [pair for pairs in pair_schedule.searching(hosts, exhaustive=True) for pair in pairs]
    assert sorted(met) == list(combinations(range(hosts), 2))


@pytest.mark.parametrize("hosts", [8, 33, 100, 4096])
def test_rounds_that_are_picked_out_are_those_of_the_whole_tournament(hosts: int) -> None:
    picked = pair_schedule.searching(hosts)
    assert len(picked) <= pair_schedule.most_rounds(hosts) - pair_schedule.CONFIRMING_ROUNDS
    if hosts < 200:
        whole = [sorted(met) for met in pair_schedule.every_round(hosts)]
        assert all(sorted(met) in whole for met in picked)


def test_suspects_are_measured_again_with_hosts_they_have_not_met() -> None:
    pairs = pair_schedule.confirming(range(8), suspects=[3, 4], links=[(0, 1)], met=[(2, 3), (3, 5), (4, 2)])
    assert (0, 1) in pairs
    partners = {a if b == s else b for s in (3, 4) for a, b in pairs if s in (a, b)}
    assert partners == {6, 5}
    assert pair_schedule.confirming(range(4), suspects=[], links=[], met=[]) == []


@pytest.mark.parametrize("kind", [*simulated.NODE_KINDS, "hang", "jitter"])
@pytest.mark.parametrize("hosts", [6, 8, 40])
def test_a_fault_is_found_and_named_for_what_it_is(kind: str, hosts: int) -> None:
    for seed in range(5):
        said, c = searched(hosts, kind, seed)
        assert said.kinds == c.faults
        assert said.rounds <= pair_schedule.most_rounds(hosts)


@pytest.mark.parametrize("kind", ["slow link", "dead link"])
def test_every_link_of_six_hosts_is_looked_at(kind: str) -> None:
    for seed in range(5):
        said, c = searched(6, kind, seed)
        assert said.kinds == c.faults
        assert said.rounds <= 6


def two_speeds(rng: random.Random) -> simulated.Noise:
    """Now and then a transfer takes twice as long, as on hosts that share processors."""
    return lambda: rng.gauss(0.5 if rng.random() < 0.25 else 1.0, 0.06)


def nearly_cut(c: simulated.Cluster, a: int, b: int) -> simulated.Cluster:
    whole = c.rate
    c.rate = lambda x, y: 0.03 * whole(x, y) if (x, y) == (a, b) else whole(x, y)  # type: ignore[method-assign, assignment]
    return c


def test_a_link_that_is_nearly_cut_shows_among_transfers_that_take_twice_as_long_now_and_then() -> None:
    found = 0
    for seed in range(20):
        rng = random.Random(seed)
        said = simulated.smoldiag(nearly_cut(simulated.cluster(6, rng, two_speeds(rng), [""], 0), 1, 4))
        assert said.rounds <= 6
        found += said.named == {frozenset({1, 4})}
    assert found >= 18


def test_a_link_whose_transfers_take_twice_as_long_now_and_then_is_seldom_blamed() -> None:
    blamed = 0
    for seed in range(100):
        rng = random.Random(seed)
        said = simulated.smoldiag(simulated.cluster(6, rng, two_speeds(rng), [""], 0))
        blamed += "slow link" in said.kinds.values()
    assert blamed <= 4


def test_jitter_that_most_hosts_have_is_nobodys() -> None:
    def spreads(uneven: float) -> list[Pair]:
        rng = random.Random(3)
        return [
            Pair(
                a=f"node{a}",
                b=f"node{b}",
                gb_per_s=rng.gauss(1.0, 0.02),
                where="",
                spread=2.0 if 2 in (a, b) or rng.random() < uneven else 1.1,
            )
            for a in range(6)
            for b in range(6)
            if a != b
        ]

    def jittery(pairs: list[Pair]) -> list[tuple[str, ...]]:
        explained = slow_nodes.explain(pairs, directed=True)
        assert explained is not None
        return [f.hosts for f in explained.faults if f.kind is slow_nodes.Kind.JITTER]

    assert jittery(spreads(uneven=0.0)) == [("node2",)]
    assert jittery(spreads(uneven=0.45)) == []


def test_nobody_is_named_where_all_is_well() -> None:
    for hosts in (2, 3, 6, 8, 40):
        for noise in ("0.01", "0.1", "wire-bound", "processor-bound"):
            assert searched(hosts, "", 1, noise=noise)[0].named == set()


def test_two_slow_hosts_do_not_hide_each_other() -> None:
    for seed in range(5):
        rng = random.Random(seed)
        c = simulated.cluster(10, rng, simulated.normal(rng, 0.02), ["slow both ways"], 2)
        assert simulated.smoldiag(c).named == set(c.faults)


def test_hosts_that_were_lost_are_left_out_of_later_rounds() -> None:
    hosts = [f"node{i}" for i in range(6)]
    met = slow_search.next_round(hosts, done=2, pairs=[], lost=["node3"])
    assert met is not None
    assert len(met.pairs) == 2
    assert not any("node3" in pair for pair in met.pairs)


def test_the_wider_the_noise_the_lower_the_limit() -> None:
    limits = [slow_nodes.limit(sigma, 5, of=20) for sigma in (0.01, 0.05, 0.1, 0.3)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == slow_nodes.SLOW_RATIO


def searched(hosts: int, kind: str, seed: int, *, noise: str = "0.03") -> tuple[simulated.Said, simulated.Cluster]:
    rng = random.Random(seed)
    c = simulated.cluster(hosts, rng, simulated.drawn(rng, noise), [kind], 1 if kind else 0)
    return simulated.smoldiag(c), c


# -- sweeps over node counts


def swept(
    joined: int = 99,
    ratio: float = 1.0,
    *,
    noise: float = 0.0,
    names: Sequence[str] = ("all_reduce", "all_to_all", "send_recv"),
    lost_with_each: float = 0.0,
) -> dict[str, dict[int, dict[int, float]]]:
    """NICs of 45 GB/s per GPU; two nodes talk in a tree, and send_recv halves at five."""
    rng = random.Random(f"{joined} {ratio} {noise}")

    def usual(name: str, nodes: int) -> float:
        wire = 45.0 * (1 - lost_with_each) ** nodes
        if name == "all_to_all":
            return 340.0 if nodes == 1 else wire * nodes / (nodes - 1)
        if name == "send_recv":
            return wire if nodes < 5 else wire / 2
        return 480.0 if nodes <= 2 else 8 * wire

    return {
        name: {
            n: {
                size: usual(name, n) * (ratio if n >= joined else 1.0) * rng.gauss(1, noise)
                for size in (16 << 20, 256 << 20, GIB, 2 * GIB, 4 * GIB, 8 * GIB)
            }
            for n in COUNTS
            if n > 1 or name != "send_recv"
        }
        for name in names
    }


def without_one_node(series: dict[str, dict[int, dict[int, float]]]) -> dict[str, dict[int, dict[int, float]]]:
    return {name: {n: c for n, c in by_count.items() if n > 1} for name, by_count in series.items()}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("joined", range(3, 17))
def test_the_count_at_which_a_slow_node_joined_is_named(joined: int, ratio: float) -> None:
    for noise in (0.0, 0.03):
        found = growth.step(without_one_node(swept(joined, ratio, noise=noise)))
        assert found is not None
        assert (found.before, found.at) == (joined - 1, joined)
        assert found.ratio == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("joined", range(5, 17))
def test_one_collective_is_enough(joined: int) -> None:
    for name in ("all_reduce", "all_to_all", "send_recv"):
        found = growth.step(without_one_node(swept(joined, 0.6, names=[name])))
        assert found is not None
        assert found.at == joined


@pytest.mark.parametrize("names", [["all_reduce"], ["send_recv"], ["all_to_all"], ["all_reduce", "send_recv"]])
def test_a_sound_sweep_has_no_such_count(names: list[str]) -> None:
    for noise in (0.0, 0.02, 0.05):
        for lost in (0.0, 0.02, 0.06):
            assert growth.step(without_one_node(swept(noise=noise, names=names, lost_with_each=lost))) is None


def test_a_count_that_recovers_is_no_slow_node() -> None:
    series = without_one_node(swept())
    for by_count in series.values():
        by_count[7] = {size: rate / 3 for size, rate in by_count[7].items()}
    assert growth.step(series) is None


def test_a_node_that_slows_down_while_its_count_is_measured() -> None:
    series = {"all_reduce": without_one_node(swept(15, 0.25))["all_reduce"]}
    series["all_reduce"][14][8 * GIB] *= 0.26
    found = growth.step(series)
    assert found is not None
    assert (found.before, found.at, found.during) == (13, 14, True)


def test_one_collective_of_three_that_falls_is_no_slow_node() -> None:
    series = without_one_node(swept())
    fallen = without_one_node(swept(9, 0.5))
    assert growth.step({**series, "all_reduce": fallen["all_reduce"]}) is None
