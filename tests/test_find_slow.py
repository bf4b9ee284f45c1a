"""`smoldiag find-slow FILE`: tables of pairs and sweeps, from the command line."""

import json
from pathlib import Path

import pytest

from smoldiag import explain, find_slow
from smoldiag.errors import SmoldiagError
from smoldiag.findings import Report
from smoldiag.model import growth
from smoldiag.parse import pair_tables, tables
from tests.rules import slow_pairs
from tests.test_cli import smoldiag

PUBLISHED = Path(__file__).parent.parent.parent / "shared/facts/playbook/data/nccl-multinode-bandwidth.json"
PAIRS = """host_a,host_b,busbw_gbs
gpu01,gpu02,91.2
gpu01,gpu03,90.7
gpu02,gpu03,91.9
gpu01,gpu04,52.3
gpu04,gpu03,51.8
"""
MATRIX = """GB/s,gpu01,gpu02,gpu03,gpu04
gpu01,-,44.1,44.6,44.0
gpu02,44.9,-,44.3,44.7
gpu03,30.1,29.8,-,30.3
gpu04,44.2,44.8,44.5,-
"""


def report(folder: Path, *texts: str, ending: str = "csv") -> Report:
    for i, text in enumerate(texts):
        (folder / f"file{i}.{ending}").write_text(text)
    return find_slow.of_files([str(p) for p in sorted(folder.iterdir())])[0]


def test_a_table_of_pairs_names_the_slow_host_as_explain_does(tmp_path: Path) -> None:
    found = report(tmp_path, PAIRS)
    assert found.facts is not None
    assert found.facts["exclude"] == ["gpu04"]
    assert found.findings[0].where.hosts == ("gpu04",)
    told = explain.explain([str(tmp_path)]).report.findings[0]
    assert (told.cause, told.where.hosts) == ("slow-node", ("gpu04",))


def test_a_matrix_tells_sending_from_receiving(tmp_path: Path) -> None:
    (finding,) = report(tmp_path, MATRIX).findings
    assert "gpu03 sends 30.3 GB/s at best" in finding.message


def test_sound_pairs_name_nobody(tmp_path: Path) -> None:
    found = report(tmp_path, PAIRS.replace("52.3", "90.3").replace("51.8", "91.1"))
    assert (found.findings, found.verdict.value) == ((), "ok")


def test_a_sweep_says_which_count_and_that_it_is_a_node(tmp_path: Path) -> None:
    document = {
        op: {f"{n}_nodes": [{"size": 1 << p, "busbw": rate(op, n)} for p in (30, 31, 32, 33)] for n in range(1, 13)}
        for op in ("all_reduce", "alltoall")
    }  # fmt: skip
    (finding,) = report(tmp_path, json.dumps(document), ending="json").findings
    assert finding.code == "BWD065"
    assert "from 7 nodes on" in finding.message
    assert "not the network" in finding.message


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published sweep is not here")
@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("at", range(2, 17))
def test_a_slow_node_at_any_position_of_a_sound_sweep(at: int, ratio: float, tmp_path: Path) -> None:
    sweep = json.loads(PUBLISHED.read_text())
    for counts in sweep.values():
        for name, rows in counts.items():
            for row in rows if int(name.split("_")[0]) >= at else ():
                row["bandwidth"] *= ratio
    (finding,) = report(tmp_path, json.dumps(sweep), ending="json").findings
    assert (finding.cause, finding.severity.value) == ("slow-node", "warning")
    assert finding.message.startswith(f"from {at} nodes on")
    assert "not the network" in finding.message


ALONE, NICS = 480.0, 340.0  # GB/s of all_reduce: inside a node, and through the NICs of one


def reduces(at: int, network: float, node: float) -> float:
    """all_reduce over so many nodes: of a slower network, and of a second node that is slower in all that it does."""
    if at == 1:
        return ALONE
    return min(ALONE, NICS * network * (1.8 if at == 2 else 1.0)) * node


@pytest.mark.parametrize(
    ("network", "node", "found"),
    [(1.0, 0.8, True), (1.0, 0.6, True), (1.0, 1.0, False), (0.8, 1.0, False), (0.5, 1.0, False), (0.3, 1.0, False)],
)
def test_a_slow_second_node_is_told_from_a_slow_network_by_two_nodes(
    network: float, node: float, found: bool, tmp_path: Path
) -> None:
    document = {
        "all_reduce": {
            f"{n}_nodes": [{"size": 1 << p, "busbw": reduces(n, network, node)} for p in (31, 32, 33)]
            for n in range(1, 9)
        }
    }
    said = [f for f in report(tmp_path, json.dumps(document), ending="json").findings if f.code == "BWD065"]
    assert [(f.cause, f.subject) for f in said] == ([("slow-node", "2 nodes")] if found else [])


def test_a_network_that_lacks_a_nic_is_no_slow_node() -> None:
    """NVIDIA/nccl issue 527, all_reduce of 1 GiB over 1 to 4 nodes."""
    curves = {n: {2**30: busbw, 2**29: busbw} for n, busbw in ((1, 230.77), (2, 57.17), (3, 31.77), (4, 29.61))}
    assert growth.second(curves) is None


@pytest.mark.parametrize(("lost_with_each", "cause"), [(0.0, "slow-node"), (0.05, "second-node-or-network")])
def test_what_all_counts_have_is_an_end_unless_more_nodes_make_it_worse(
    lost_with_each: float, cause: str, tmp_path: Path
) -> None:
    shares = {n: 0.7 * (1 - lost_with_each) ** (n - 2) for n in range(2, 13)}
    document = {
        "sendrecv": {f"{n}_nodes": [{"size": 1 << 33, "busbw": 42.0 * share}] for n, share in shares.items()},
        "alltoall": {
            f"{n}_nodes": [{"size": 1 << 33, "busbw": 42.0 * share * n / (n - 1)}] for n, share in shares.items()
        },
    }
    (finding,) = report(tmp_path, json.dumps(document), ending="json").findings
    assert (finding.code, finding.cause, finding.severity.value) == ("BWD066", cause, "info")
    assert ("not what lies between" in finding.message) == (cause == "slow-node")


def rate(op: str, nodes: int) -> float:
    usual = 340.0 if op == "all_reduce" else 45.0 * nodes / max(nodes - 1, 0.15)
    return usual * (0.4 if nodes >= 7 else 1.0)


def test_a_document_on_one_long_line_is_read(tmp_path: Path) -> None:
    sizes = [2**n for n in range(7, 35)]
    counts = {
        f"{n}_nodes": [
            {"messageSize": s, "bandwidth": 200.0 if n >= 9 else 300.0 - n, "note": "x" * 100} for s in sizes
        ]
        for n in range(1, 17)
    }
    text = json.dumps({"all_reduce": counts})
    assert len(text) > 50_000
    (finding,) = report(tmp_path, text, ending="json").findings
    assert (finding.code, finding.where.hosts) == ("BWD065", ())
    assert finding.message.startswith("from 9 nodes on")


def test_a_file_for_each_pair(tmp_path: Path) -> None:
    rates = {(0, 8): 46.0, (8, 16): 45.5, (0, 16): 46.2, (0, 24): 22.0, (8, 24): 22.3}
    benches = [
        {
            "schema": "smoldiag.bench/1",
            "backend": "nccl",
            "world": {"nodes": 4, "ranks": 32, "ranks_per_node": 8, "hosts": ["a1", "a2", "a3", "a4"]},
            "results": [
                {
                    "collective": "send_recv",
                    "group": {"kind": "pair", "ranks": list(pair), "nodes": 2},
                    "size_bytes": 1 << 30,
                    "busbw_gbs": gbs,
                }
            ],
        }
        for pair, gbs in rates.items()
    ]
    found = report(tmp_path, *(json.dumps(b) for b in benches), ending="json")
    assert found.findings[0].where.hosts == ("a4",)


def test_what_was_measured_live_is_read_again(tmp_path: Path) -> None:
    known = slow_pairs.pairs({("node2", "*"): 30.0})
    assert known.tables is not None
    saved = {
        "schema": "smoldiag.report/1",
        "command": "find-slow",
        "facts": {"pairs": [{"a": p.a, "b": p.b, "gb_per_s": p.gb_per_s} for p in known.tables.pairs[0].pairs]},
    }
    (finding,) = report(tmp_path, json.dumps(saved), ending="json").findings
    assert "node2 sends 30 GB/s" in finding.message


def test_nothing_that_is_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SmoldiagError):
        report(tmp_path, "nothing of the kind\n", ending="txt")


@pytest.mark.parametrize(
    ("header", "factor", "directed"),
    [
        ("src,dst,busbw_gbs", 1.0, True),
        ("from;to;Gbps", 0.125, True),
        ("| node1 | node2 | bandwidth (GB/s) |", 1.0, False),
        ("host_a  host_b  rate", 1.0, False),
    ],
)
def test_headers_that_people_write(header: str, factor: float, directed: bool) -> None:
    separator = next((s for s in ",;|" if s in header), " ")
    rows = [separator.join(cells) for cells in (("x", "y", "40"), ("y", "z", "41.5"), ("x", "z", "39"))]
    lines = [f"|{r}|" for r in rows] if separator == "|" else rows
    (table,) = tables.parse([header, *lines], where="t").pairs
    assert [p.gb_per_s for p in table.pairs] == [40 * factor, 41.5 * factor, 39 * factor]
    assert table.directed is directed


def test_of_several_sizes_the_largest_counts() -> None:
    lines = ["src,dst,size,busbw", "a,b,1MiB,3", "a,b,1GiB,40", "b,a,1GiB,41", "b,a,1MiB,2"]
    (table,) = tables.parse(lines, where="t").pairs
    assert [p.gb_per_s for p in table.pairs] == [40.0, 41.0]


def test_words_are_no_table_of_pairs() -> None:
    reader = pair_tables.Reader(where="t")
    for number, line in enumerate(("from here to there at a rate", "the host, a node, and its speed", "a b rate of c")):
        assert not reader.read(number, line)
    assert reader.finish() == ()


def test_the_command_prints_who_to_leave_out(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(PAIRS)
    done = smoldiag("find-slow", str(tmp_path / "pairs.csv"), "--fail-on", "warning")
    assert done.returncode == 1
    assert done.stdout.startswith("warning: leave out gpu04\n5 rates of pairs\n")
    assert "slurm: --exclude=gpu04" in done.stdout
    done = smoldiag("find-slow", str(tmp_path / "pairs.csv"), "--format", "json", "--plot", str(tmp_path / "map.svg"))
    assert json.loads(done.stdout)["findings"][0]["code"] == "BWD025"
    assert (tmp_path / "map.svg").stat().st_size > 1000
    done = smoldiag("find-slow", str(tmp_path / "pairs.csv"), "--format", "markdown")
    assert done.stdout.startswith("# smoldiag find-slow: warning")


def test_one_host_alone_is_not_compared() -> None:
    done = smoldiag("find-slow", "--launcher", "local")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 host: who is slow shows only beside 2 more")
