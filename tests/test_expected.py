"""What is expected of a result, and from where it is known."""

import json
from dataclasses import replace

import pytest

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Bench, Gpu, Group, Host, Nic, RankTimeUs, Result, TimeUs, World
from smoldiag.facts.reference import Hardware, Reference
from smoldiag.knowledge import busbw
from smoldiag.model.expected import expected, for_results, make_references, parse_references, upper_bound
from smoldiag.profiles import find, hardware

MIB, GIB = 2**20, 2**30


def machine(gpu: str, profile: str | None = None, gpus: int = 8, nics: tuple[Nic, ...] = ()) -> Hardware:
    host = Host(name="n0", gpus=tuple(Gpu(index=i, name=gpu) for i in range(gpus)), nics=nics)
    return hardware([host], backend="nccl", profile=find(profile) if profile else None)


NDR = tuple(Nic(name=f"mlx5_{i}", kind="infiniband", gbit_per_s=400, up=True) for i in range(8))
P5 = machine("NVIDIA H100 80GB HBM3", "aws-p5")
H100 = machine("NVIDIA H100 80GB HBM3")
H100_NDR = machine("NVIDIA H100 80GB HBM3", nics=NDR)
H200 = machine("NVIDIA H200")
A100 = machine("NVIDIA A100-SXM4-40GB")
A3_MEGA = machine("NVIDIA H100 80GB HBM3", "gcp-a3-mega")
TWO_HOSTS = Hardware(nic_gb_per_s=0.125, nics="1 x 1 Gb/s ethernet")


@pytest.mark.parametrize(
    ("collective", "size_bytes", "nodes", "ranks_per_node", "hardware", "busbw_gbs", "kind"),
    [
        # published for the recognised instance; of two figures the lower
        ("all_reduce", GIB, 2, 8, P5, 430.52, "measured"),
        ("all_reduce", GIB, 16, 8, P5, 274.0, "measured"),
        ("all_to_all", 256 * MIB, 4, 8, P5, 54.08, "measured"),
        ("send_recv", GIB, 8, 8, P5, 21.4, "measured"),
        # one node with NVLink switches is the same machine everywhere
        ("all_reduce", GIB, 1, 8, H100, 445.5, "measured"),
        ("all_reduce", 8 * GIB, 1, 4, H200, 363.3, "measured"),  # four GPUs have their own figure
        ("reduce_scatter", GIB, 1, 8, A100, 223.54, "measured"),
        # within one percent of the published size
        ("all_reduce", GIB + GIB // 128, 2, 8, P5, 430.52, "measured"),
        # published, but of a size where figures of one machine differ by a factor of two
        ("all_reduce", MIB, 2, 8, P5, 15.95, "estimated"),
        # between two sizes, between two node counts, from another collective
        ("all_reduce", 64 * MIB, 4, 8, P5, 149.547, "estimated"),
        ("all_reduce", GIB, 6, 8, P5, 278.169, "estimated"),
        ("all_reduce", GIB, 2, 8, A3_MEGA, 341.25, "estimated"),
        ("all_gather", GIB, 2, 8, P5, 229.611, "estimated"),
        # never beyond what is published: other node counts, other sizes, other numbers of ranks
        ("all_reduce", GIB, 32, 8, P5, 400.0, "bound"),
        ("all_reduce", 64 * GIB, 4, 8, P5, 400.0, "bound"),
        ("all_reduce", GIB, 3, 4, P5, 252.0, "bound"),
        # an unknown cluster of known nodes
        ("all_reduce", GIB, 4, 8, H100_NDR, 400.0, "bound"),
        ("all_gather", GIB, 2, 8, H100_NDR, 400.0, "bound"),
    ],
)
def test_expected(
    collective: str,
    size_bytes: int,
    nodes: int,
    ranks_per_node: int,
    hardware: Hardware,
    busbw_gbs: float,
    kind: str,
) -> None:
    found = expected(
        collective,
        size_bytes,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        backend="nccl",
        hardware=hardware,
        published=busbw.rows(),
    )
    assert found is not None
    assert (round(found.busbw_gbs, 3), found.kind, found.nodes) == (busbw_gbs, kind, nodes)


def ask(collective: str, size_bytes: int, hardware: Hardware, nodes: int = 2, backend: str = "nccl") -> str:
    found = expected(
        collective,
        size_bytes,
        nodes=nodes,
        ranks_per_node=8,
        backend=backend,
        hardware=hardware,
        published=busbw.rows(),
    )
    return found.source if found else ""


def test_the_source_says_what_was_measured_and_where_it_is_published() -> None:
    assert ask("all_reduce", GIB, P5).startswith(
        "430.52 GB/s all_reduce of 1 GiB on AWS p5.48xlarge, 2 nodes x 8, EFA v2 32x100G [HF Smol Training Playbook"
    )


def test_an_estimate_shows_its_formula_and_its_rows() -> None:
    assert ask("all_reduce", GIB, A3_MEGA).startswith(
        "182 GB/s x 375 / 200 GB/s (bounds of all_reduce and all_gather); 182 GB/s all_gather of 1 GiB on GCP"
    )
    both = ask("all_reduce", 64 * MIB, P5, nodes=4)
    assert "81.87 GB/s all_reduce of 16 MiB" in both
    assert "273.17 GB/s all_reduce of 256 MiB" in both


def test_a_bound_shows_its_arithmetic() -> None:
    assert ask("all_gather", GIB, H100_NDR) == (
        "arithmetic on the hardware: NICs 400 GB/s per node (8 x 400 Gb/s infiniband)"
    )


@pytest.mark.parametrize(
    ("nodes", "hardware"),
    [(2, H100), (1, Hardware()), (2, Hardware()), (1, TWO_HOSTS)],
    ids=["NICs not known", "nothing known", "nothing known of two", "one CPU host"],
)
def test_unknown_stays_unknown(nodes: int, hardware: Hardware) -> None:
    found = expected("all_reduce", GIB, nodes=nodes, ranks_per_node=2, backend="gloo", hardware=hardware)
    assert found is None


def test_published_figures_of_nccl_are_not_held_against_gloo() -> None:
    cpu = replace(TWO_HOSTS, instances=("AWS p5.48xlarge",))
    found = expected(
        "all_reduce", 16 * MIB, nodes=2, ranks_per_node=1, backend="gloo", hardware=cpu, published=busbw.rows()
    )
    assert found is not None
    assert (found.kind, found.busbw_gbs) == ("bound", 0.125)


def reference(busbw_gbs: float = 300.0, created: str = "2026-11-01T00:00:00Z", **more: object) -> Reference:
    base = Reference(
        collective="all_reduce",
        size_bytes=GIB,
        nodes=2,
        ranks_per_node=8,
        backend="nccl",
        busbw_gbs=busbw_gbs,
        dtype="float32",
        gpu="NVIDIA H100 80GB HBM3",
        created=created,
    )
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("site", "busbw_gbs", "kind"),
    [
        ([reference()], 300.0, "site"),
        ([reference(300), reference(310), reference(350)], 310.0, "site"),
        ([reference(100, f"2026-01-0{d}T00:00:00Z") for d in range(1, 4)] + [reference(300)] * 5, 300.0, "site"),
        ([reference(size_bytes=GIB - 1000)], 300.0, "site"),
        ([reference(size_bytes=GIB // 2)], 430.52, "measured"),
        ([reference(nodes=4)], 430.52, "measured"),
        ([reference(backend="gloo")], 430.52, "measured"),
        ([reference(gpu="NVIDIA H200")], 430.52, "measured"),
        ([reference(dtype="bfloat16")], 430.52, "measured"),
    ],
)
def test_the_sites_own_reference_comes_first_where_it_is_the_same(
    site: list[Reference], busbw_gbs: float, kind: str
) -> None:
    found = expected(
        "all_reduce",
        GIB,
        nodes=2,
        ranks_per_node=8,
        backend="nccl",
        hardware=P5,
        published=busbw.rows(),
        site=site,
        dtype="float32",
    )
    assert found is not None
    assert (found.busbw_gbs, found.kind) == (busbw_gbs, kind)


def result(
    collective: str = "all_reduce", ranks: int = 16, nodes: int = 2, wrong: int = 0, kind: str = "world"
) -> Result:
    time_us = TimeUs(min=1, p50=1, p95=1, p99=1, max=1)
    return Result(
        collective=collective,
        group=Group(kind=kind, ranks=tuple(range(ranks)), nodes=nodes),
        dtype="float32",
        op="sum",
        size_bytes=GIB,
        count=GIB // 4,
        iterations=5,
        time_us=time_us,
        algbw_gbs=200,
        busbw_gbs=375,
        wrong=wrong,
        slowest_rank=0,
        rank_time_us=RankTimeUs(min=1, p50=1, max=1),
        late_us=0,
    )


def bench(*results: Result) -> Bench:
    world = World(nodes=2, ranks=16, ranks_per_node=8, hosts=("a", "b"))
    return Bench(
        backend="nccl", launcher="ssh", world=world, host_of_rank=("a",) * 8 + ("b",) * 8, results=tuple(results)
    )


def test_a_reference_comes_back_as_it_was_saved() -> None:
    document = make_references(
        bench(result(), result(wrong=3), result(kind="inter"), result(ranks=1, nodes=1)),
        gpu="NVIDIA H100 80GB HBM3",
        host_class="p5.48xlarge",
        created="2026-11-24T10:00:00Z",
        versions={"nccl": "2.28.9"},
    )
    (row,) = parse_references(json.dumps(document).encode())  # what is wrong, partial or alone is no reference
    assert row == reference(375.0, "2026-11-24T10:00:00Z", host_class="p5.48xlarge", versions={"nccl": "2.28.9"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "x.json is not JSON"),
        (b"\xff\xfe", "x.json is not JSON"),
        (b"[" * 100_000, "x.json is not JSON"),
        (b"[]", "x.json is not a smoldiag.reference/1 document"),
        (b'{"schema": "smoldiag.bench/1"}', "x.json is not a smoldiag.reference/1 document"),
        (b'{"schema": "smoldiag.reference/1", "rows": 3}', "x.json has no list of rows"),
        (b'{"schema": "smoldiag.reference/1", "rows": [{}]}', "row 1 of x.json is not usable"),
        (b'{"schema": "smoldiag.reference/1", "rows": [[1]]}', "row 1 of x.json is not usable"),
        (
            b'{"schema": "smoldiag.reference/1", "rows": [{"collective": "all_reduce", "size_bytes": 8, "nodes": 2,'
            b' "ranks_per_node": 1, "backend": "gloo", "busbw_gbs": NaN}]}',
            "row 1 of x.json is not usable",
        ),
    ],
)
def test_a_file_that_is_no_reference_is_said_in_a_sentence(data: bytes, message: str) -> None:
    with pytest.raises(SmoldiagError, match=message):
        parse_references(data, where="x.json")


def test_for_results_gives_one_figure_each_and_the_nic_rate_of_two_nodes() -> None:
    results = [result(), result(), result("all_gather"), result(ranks=8, nodes=1, kind="node"), result(kind="inter")]
    found = for_results(results, backend="nccl", hardware=P5, published=busbw.rows())
    assert [(e.collective, e.nodes, e.kind, round(e.busbw_gbs, 2)) for e in found] == [
        ("all_reduce", 2, "measured", 430.52),
        ("all_gather", 2, "estimated", 229.61),
        ("all_reduce", 1, "measured", 441.81),
        ("all_gather", 2, "bound", 400.0),
    ]


def test_the_bound_is_not_repeated_where_it_is_all_that_is_known() -> None:
    found = for_results([result(), result("all_gather")], backend="nccl", hardware=H100_NDR, published=busbw.rows())
    assert [(e.collective, e.kind, e.busbw_gbs) for e in found] == [
        ("all_reduce", "bound", 750.0),
        ("all_gather", "bound", 400.0),
    ]
    alone = upper_bound("all_gather", GIB, nodes=2, ranks_per_node=8, backend="nccl", hardware=H100_NDR)
    assert alone == found[1]
