"""Tables of other tools -> facts. Texts are ours, in the tools' formats (nccl-tests src/common.cu, src/util.cu)."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoldiag import rules
from smoldiag.facts import Tables
from smoldiag.facts.reference import Published
from smoldiag.facts.tables import BandwidthTable, Device, Measured, Row
from smoldiag.findings import Severity
from smoldiag.knowledge import busbw, hardware
from smoldiag.model.bus import bus_factor
from smoldiag.parse import kernel_text, nccl_tests, nvidia_smi, settings_text, tables, units
from smoldiag.rules import Known
from tests.rules.tables import GIB, GOOD, curve
from tests.rules.tables import nccl_tests as text_of

CASES = Path(__file__).parent.parent.parent / "shared" / "cases" / "slow"


def parsed(text: str, where: str = "bench.txt") -> Tables:
    return tables.parse(text.splitlines(), where=where)


def only(text: str, where: str = "bench.txt") -> BandwidthTable:
    (table,) = parsed(text, where).bandwidth
    return table


def test_todays_nccl_tests() -> None:
    table = only(GOOD)
    assert (table.collective, table.ranks, table.nodes, table.gpu) == ("all_reduce", 8, 1, "NVIDIA H100 80GB HBM3")
    assert (table.gpu_class, table.nccl_version, table.warmup, table.iterations) == ("H100 SXM", "2.28.3", 5, 20)
    assert table.devices[3] == Device(
        rank=3, host="node0", device=3, bus_id="0000:13:00.0", name="NVIDIA H100 80GB HBM3"
    )
    assert table.rows[-1].size_bytes == 8 * GIB
    assert table.rows[-1].out_of_place.busbw_gbs == 478.0
    assert table.rows[-1].in_place is not None
    assert table.rows[-1].out_of_place.wrong == 0


OLD = """# nThread 1 nGpus 4 minBytes 1048576 maxBytes 4194304 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
#   Rank  0 Pid  11 on     gpu01 device  0 [0x07] A100-SXM4-40GB
#   Rank  1 Pid  11 on     gpu01 device  1 [0x0f] A100-SXM4-40GB
#   Rank  2 Pid  11 on     gpu01 device  2 [0x47] A100-SXM4-40GB
#   Rank  3 Pid  11 on     gpu01 device  3 [0x4e] A100-SXM4-40GB
#
#                                                     out-of-place                       in-place
#       size         count    type    root     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        262144   float       0    20.97   50.00   50.00  0e+00    21.40   49.00   49.00  0e+00
     4194304       1048576   float       0    52.43   80.00   80.00  1e-07    53.09   79.00   79.00  1e-07
"""


def test_the_layout_of_2020_without_an_operation() -> None:
    table = only(OLD)
    assert (table.collective, table.ranks, table.nodes, table.gpu_class) == ("broadcast", 4, 1, "A100 SXM")
    assert table.rows[-1].out_of_place == Measured(time_us=52.43, algbw_gbs=80.0, busbw_gbs=80.0, wrong=None)
    assert table.rows[-1].in_place == Measured(time_us=53.09, algbw_gbs=79.0, busbw_gbs=79.0, wrong=None)


def test_the_milliseconds_of_2017() -> None:
    text = """#      bytes             N    type      op     time  algbw  busbw      res     time  algbw  busbw      res
    33554432       8388608   float     sum    5.243   6.40  11.20    2e-07    5.243   6.40  11.20    1e-07
"""
    table = only(text)
    assert table.rows[0].out_of_place.time_us == pytest.approx(5243)
    assert (table.collective, table.ranks) == ("all_reduce", 8)


def test_nccl_ones_own_test() -> None:
    text = """./build/test/single/all_reduce_test 10000000 2 0 7
       N    type      op     time  algbw  busbw
10000000    char     sum    1.250   8.00   8.00
"""
    table = only(text)
    assert (table.collective, table.ranks, table.nodes, table.rows[0].best_gbs) == ("all_reduce", 2, 1, 8.0)


@pytest.mark.parametrize("prefix", ["0: ", "[1,0]<stdout>:", "node7: ", "2026-11-25T10:00:00Z ", "[rank0]: "])
def test_launchers_put_things_in_front(prefix: str) -> None:
    table = only("\n".join(prefix + line for line in text_of(curve(470.0), ranks=16, nodes=2).splitlines()))
    assert (table.ranks, table.nodes, len(table.rows)) == (16, 2, 7)


def test_per_iteration_columns_of_2_19() -> None:
    text = """#       size         count      type   redop    root     time   algbw   busbw  #wrong    i_min    i_max    i_p99    i_cv%     time   algbw   busbw  #wrong    i_min    i_max    i_p99    i_cv%
  1073741824     268435456     float     sum      -1   4000.0  268.44  469.76       0   3990.0   4020.0   4019.0     0.20   4010.0  267.77  468.59       0   3992.0   4030.0   4029.0     0.30
"""  # noqa: E501
    row = only(text).rows[0]
    assert row.out_of_place == Measured(time_us=4000.0, algbw_gbs=268.44, busbw_gbs=469.76, wrong=None)
    assert row.in_place is not None
    assert row.in_place.busbw_gbs == 468.59


def test_an_excerpt_without_its_top() -> None:
    text = (
        "  1073741824     268435456     float     sum      -1   4000.0  268.44  503.32      0   4010.0  267.77  502.07"
    )
    table = only(text)
    assert (table.collective, table.ranks, table.nodes) == ("all_reduce", 16, None)


def test_all_gather_counts_its_ranks() -> None:
    text = (
        "  1073741824      16777216     float    none      -1   4000.0  268.44  251.66      0   4010.0  267.77  251.03"
    )
    assert (only(text).collective, only(text).ranks) == ("all_gather", 16)


def test_ranks_that_are_cut_out_of_the_list() -> None:
    lines = text_of(curve(470.0), ranks=32, nodes=4).splitlines()
    kept = [line for line in lines if "Rank" not in line or line.split()[2] in ("0", "7", "31")]
    assert (only("\n".join(kept)).ranks, only("\n".join(kept)).nodes) == (32, 4)


def test_two_runs_in_one_file_are_two_tables() -> None:
    found = parsed(GOOD + "\n" + text_of(curve(300.0), collective="all_gather")).bandwidth
    assert [t.collective for t in found] == ["all_reduce", "all_gather"]
    assert [t.rows[-1].best_gbs for t in found] == [478.0, 300.0]


def test_the_json_of_nccl_tests() -> None:
    document = {
        "version": 3,
        "start_time": "2026-11-25 10:00:00",
        "args": ["./build/all_reduce_perf", "-b", "1G"],
        "env": ["NCCL_ALGO=Ring", "HF_TOKEN=hf_abcdefghijklmnopqrstu", "HOME=/root"],
        "nccl_version": 22803,
        "config": {"warmup_iters": 1, "iterations": 20},
        "devices": [
            {"rank": r, "group": 0, "pid": 1, "hostname": "n0", "device": r, "device_hex": f"0000:{r:02x}:00",
             "device_info": "NVIDIA H200"} for r in range(8)
        ],
        "results": [
            {"size": GIB, "count": GIB // 4, "type": "float", "redop": "sum", "root": "-1",
             "out_of_place": {"time": 4000.0, "alg_bw": 268.4, "bus_bw": 469.8, "nwrong": 0.0},
             "in_place": {"time": 4010.0, "alg_bw": 267.8, "bus_bw": 468.6, "nwrong": None}}
        ],
        "average_bus_bandwidth": {"bandwidth": 469.2, "okay": "unchecked"},
    }  # fmt: skip
    text = json.dumps(document)
    assert tables.looks_like("out.json", text.encode())
    table = only(text, "out.json")
    assert (table.collective, table.ranks, table.nodes, table.nccl_version) == ("all_reduce", 8, 1, "2.28.3")
    assert table.settings == (("NCCL_ALGO", "Ring"),)
    assert table.average_gbs == 469.2


def test_rccl_tests_records() -> None:
    record = {"name": "AllReduce", "nodes": 1, "ranks": 8, "size": GIB, "type": "float", "redop": "sum", "inPlace": 0}
    table = only(json.dumps([record | {"time": 6000, "algBw": 178.9, "busBw": 313.2, "wrong": "0"}]))
    assert (table.collective, table.ranks, table.rows[0].best_gbs) == ("all_reduce", 8, 313.2)


def test_our_own_bench() -> None:
    result = {
        "collective": "all_reduce", "group": {"kind": "world", "ranks": list(range(16)), "nodes": 2},
        "dtype": "float32", "op": "sum", "size_bytes": GIB, "count": GIB // 4, "time_us": {"p50": 4500.0},
        "algbw_gbs": 238.6, "busbw_gbs": 447.4, "wrong": 0, "purpose": "verdict",
    }  # fmt: skip
    pair = {"src_host": "a", "dst_host": "b", "gb_per_s": 48.1}
    document = {
        "schema": "smoldiag.bench/1",
        "backend": "nccl",
        "world": {"nodes": 2, "ranks": 16, "hosts": ["a", "b"]},
        "environment": {"gpus": ["NVIDIA H200"], "versions": {"nccl": "2.27.5"}},
        "results": [result],
        "pairs": [pair],
    }
    found = parsed(json.dumps(document), "bench.json")
    (table,) = found.bandwidth
    assert (table.ranks, table.nodes, table.gpu_class, table.nccl_version) == (16, 2, "H200 SXM", "2.27.5")
    assert found.pairs[0].pairs[0].gb_per_s == 48.1


MARKDOWN = """$ python -u -m torch.distributed.run --nproc_per_node=8 all_reduce_bench.py

| payload |    busbw   |    algbw   |
| ------: | ---------: | ---------: |
|   32KiB |   1.44GBps |   0.82GBps |
|    4GiB | 473.10GBps | 270.34GBps |
"""


def test_a_markdown_table_with_units() -> None:
    table = only(MARKDOWN)
    assert (table.collective, table.ranks, table.nodes) == ("all_reduce", 8, 1)
    assert table.rows[-1].size_bytes == 4 * GIB
    assert table.rows[-1].out_of_place.busbw_gbs == pytest.approx(473.1)


def test_a_table_by_node_count_in_gigabits() -> None:
    table = only("# all_gather\n# nodes gpus busbw_Gbps\n1 8 2880\n2 16 1600\n")
    assert [(r.nodes, r.ranks, r.best_gbs) for r in table.rows] == [(1, 8, 360.0), (2, 16, 200.0)]


def test_columns_of_settings_are_tables_of_their_own() -> None:
    found = parsed("# all_reduce busbw GB/s\n# size   ring   tree\n128MB  10.2  17.3\n1GB  14.2  18.0\n").bandwidth
    assert [(t.label, t.rows[-1].best_gbs) for t in found] == [("ring", 14.2), ("tree", 18.0)]


def test_grouped_digits_and_a_column_without_type() -> None:
    text = "  size    time   algbw   busbw\n   (B)    (us)  (GB/s)  (GB/s)\n  1_073_741_824  8203.9  130.88  229.04\n"
    assert only(text).rows[0].size_bytes == GIB
    assert only(text).rows[0].out_of_place.time_us == 8203.9


def test_a_csv_with_runs() -> None:
    text = "run_name,message_size,busbw\nbefore,1073741824,40.1\nafter,1073741824,48.2\n"
    assert [(t.label, t.rows[0].best_gbs) for t in parsed(text).bandwidth] == [("before", 40.1), ("after", 48.2)]


PERFTEST = """---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF          Device         : mlx5_3
 Number of qps   : 1            Transport type : IB
 Mtu             : 4096[B]
 Link type       : IB
 ---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]
 65536      5000             {rate}             {rate}            0.376
"""


def test_perftest_in_gigabits_and_in_mebibytes() -> None:
    (link,) = parsed(PERFTEST.format(unit="Gb/sec", rate="392.10")).links
    assert (link.tool, link.device, link.mtu, link.gbit_per_s) == ("ib_write_bw", "mlx5_3", 4096, 392.10)
    (link,) = parsed(PERFTEST.format(unit="MB/sec", rate="11500.00")).links
    assert link.gbit_per_s == pytest.approx(11500 * 2**20 * 8 / 1e9)


def test_nvbandwidth() -> None:
    text = """nvbandwidth Version: v0.8
Running device_to_device_memcpy_read_ce.
memcpy CE GPU(row) -> GPU(column) bandwidth (GB/s)
           0         1
 0       N/A    368.21
 1    368.30       N/A

SUM device_to_device_memcpy_read_ce 736.51
"""
    (table,) = parsed(text).pairs
    assert (table.kind, table.label) == ("gpus", "device_to_device_memcpy_read_ce")
    assert [(p.a, p.b, p.gb_per_s) for p in table.pairs] == [("0", "1", 368.21), ("1", "0", 368.3)]


def test_pairs_of_hosts_need_a_rate_behind_two_hosts() -> None:
    (table,) = parsed("gpu-01 <-> gpu-02: 391.0 Gb/s\ngpu-01 <-> gpu-03: 390.2 Gb/s\n").pairs
    assert [p.gb_per_s for p in table.pairs] == pytest.approx([48.875, 48.775])
    with pytest.raises(ValueError, match="no table"):
        parsed("NIC0: mlx5_0\nNIC1: mlx5_1\n")


def test_figures_in_words() -> None:
    (figure,) = parsed("ib_write_bw same NIC: about 180 Gb/s\n").figures
    assert figure.gb_per_s == 22.5
    (figure,) = parsed("we expected 2 x 200Gb/s = 50GB/s but only get 27.1 GB/s\n").figures
    assert (figure.gb_per_s, figure.expected_gbs) == (27.1, 50.0)


def test_hta_by_rank() -> None:
    head = "   rank  idle_time(us)  idle_time_pctg  compute_time_pctg  non_compute_time_pctg"
    text = f"{head}\n0     0  100.0  12.5  60.0  27.5\n"
    (line,) = parsed(text).timelines
    assert (line.rank, line.percent) == (0, {"idle": 12.5, "computation": 60.0, "non_compute": 27.5})


def test_what_is_no_table() -> None:
    with pytest.raises(ValueError, match="no table that is known"):
        parsed("Epoch done\nsaved 3.2 GB to disk\nrank 0: hello\n")
    assert not tables.looks_like("x.log", b"[rank0]: NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>\n")
    assert tables.looks_like("x.log", GOOD.encode()[:4096])
    assert tables.wants("#  Rank  0 Group  0 Pid  1 on n0 device  0 [0000:8f:00] NVIDIA B200")


def test_secrets_of_a_command_line_stay_out() -> None:
    found = parsed("NCCL_DEBUG=INFO HF_TOKEN=hf_abcdefghijklmnopqrstuvw ./all_reduce_perf -g 8\n" + GOOD)
    assert "hf_abc" not in repr(found)


@pytest.mark.parametrize(
    ("text", "size", "rate", "us"),
    [
        ("64KiB", 65536, None, None),
        ("1G", GIB, None, None),
        ("473.1GBps", None, 473.1, None),
        ("400Gb/s", None, 50.0, None),
        ("1.5ms", None, None, 1500.0),
        ("1_024", 1024, None, 1024.0),
        ("nan", None, None, None),
        ("12 apples", None, None, None),
    ],
)
def test_units(text: str, size: int | None, rate: float | None, us: float | None) -> None:
    assert (units.size_bytes(text), units.gb_per_s(text), units.microseconds(text)) == (size, rate, us)


def test_versions_of_the_library() -> None:
    assert [nccl_tests.library_version(c) for c in (2708, 2804, 21003, 22803)] == ["2.7.8", "2.8.4", "2.10.3", "2.28.3"]


SMI = """==============NVSMI LOG==============
Attached GPUs                             : 1
GPU 00000000:18:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    Minor Number                          : 3
    PCI
        GPU Link Info
            PCIe Generation
                Max                       : 5
                Current                   : 5
            Link Width
                Max                       : 16x
                Current                   : 8x
    Performance State                     : P0
    Clocks Event Reasons
        Idle                              : Not Active
        HW Slowdown                       : Active
            HW Thermal Slowdown           : Active
            HW Power Brake Slowdown       : Not Active
        SW Thermal Slowdown               : Not Active
    Clocks Event Reasons Counters
        SW Thermal Slowdown               : 11591399010 us
    ECC Errors
        Volatile
            SRAM Uncorrectable Parity     : 1
            DRAM Correctable              : 7
            DRAM Uncorrectable            : 2
    Temperature
        GPU Current Temp                  : 88 C
    Clocks
        SM                                : 500 MHz
    Max Clocks
        SM                                : 1980 MHz
"""


def test_nvidia_smi_in_full_and_in_part() -> None:
    (gpu,) = nvidia_smi.parse(SMI.splitlines(), where="smi")
    assert (gpu.index, gpu.bus_id, gpu.pci_width, gpu.pci_width_max) == (3, "0000:18:00.0", 8, 16)
    assert (gpu.throttle, gpu.sm_clock_mhz, gpu.sm_clock_max_mhz) == (("hw_slowdown", "hw_thermal"), 500, 1980)
    assert (gpu.ecc_volatile, gpu.ecc_corrected_volatile, gpu.temperature_c, gpu.pstate) == (3, 7, 88, 0)
    part = "Clocks Throttle Reasons\n    SW Power Cap        : Not Active\n    SW Thermal Slowdown : Active\n"
    assert nvidia_smi.looks_like("smi", part.encode())
    assert nvidia_smi.parse(part.splitlines(), where="smi")[0].throttle == ("sw_thermal",)
    with pytest.raises(ValueError, match="no GPU"):
        nvidia_smi.parse(["hello"], where="smi")


def test_nvidia_smi_as_csv() -> None:
    text = """index, name, clocks_throttle_reasons.hw_thermal_slowdown, clocks.sm [MHz], pcie.link.width.current
0, NVIDIA A100-SXM4-80GB, Not Active, 1410 MHz, 16
1, NVIDIA A100-SXM4-80GB, Active, 360 MHz, 16
"""
    gpus = nvidia_smi.parse(text.splitlines(), where="smi")
    assert [(g.index, g.throttle, g.sm_clock_mhz) for g in gpus] == [(0, (), 1410), (1, ("hw_thermal",), 360)]


def test_kernel_log_and_dcgm_become_hosts() -> None:
    line = "[   18.6] mlx5_core 0000:9c:00.0: 252.056 Gb/s available PCIe bandwidth, limited by 32.0 GT/s PCIe x8 link"
    host = kernel_text.host([line], where="logs/node7.dmesg")
    assert host.name == "node7"
    assert host.kernel_log is not None
    assert host.kernel_log.events[0][0] == "pcie-limited"
    with pytest.raises(ValueError, match="nothing"):
        kernel_text.host(["[    0.1] hello"], where="dmesg")
    table = "| Diagnostic                | Result          |\n| PCIe                      | Fail - GPU: 2   |\n"
    assert kernel_text.looks_like_dcgm("diag", table.encode())


@pytest.mark.parametrize(
    "row", [r for r in busbw.rows() if r.use in ("measured", "older stack", "virtual functions")][::7]
)
def test_no_published_figure_is_called_slow(row: Published) -> None:
    if not row.size_bytes or not row.nodes:
        return
    names = {spec.gpu_class: name for name, spec in hardware.GPUS.items()}
    ranks = row.nodes * row.gpus_per_node
    factor = bus_factor(row.collective, ranks)
    measured = Measured(time_us=row.size_bytes / row.busbw_gbs * factor / 1e3, busbw_gbs=row.busbw_gbs)
    table = BandwidthTable(
        where="a:1", tool="nccl-tests", rows=(Row(size_bytes=row.size_bytes, out_of_place=measured),),
        collective=row.collective, ranks=ranks, nodes=row.nodes, gpu=names.get(row.gpu), gpu_class=row.gpu,
    )  # fmt: skip
    found = judged(Tables(bandwidth=(table,)))
    assert not [f for f in found if f[1] is not Severity.INFO], row


def judged(facts: Tables) -> list[tuple[str, Severity]]:
    asked = [r for r in rules.RULES.values() if r.needs == ("tables",)]
    outcomes = list(rules.run(Known(tables=facts), asked))
    assert not [o.crashed for o in outcomes if o.crashed]
    return [(f.cause, f.severity) for o in outcomes for f in o.findings]


LINES = (GOOD + "\n" + MARKDOWN + PERFTEST + OLD + SMI).splitlines()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=40), st.text(max_size=60), st.integers(0, 200))
def test_shuffled_and_cut_lines_never_break_a_reader(lines: list[str], noise: str, cut: int) -> None:
    text = "\n".join([*lines, noise])
    shortened = "\n".join(line[:cut] for line in text.splitlines())
    for mangled in (text, shortened):
        try:
            facts = parsed(mangled)
        except ValueError:
            continue
        assert all(cause for cause, _ in judged(facts))


@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of cases is not here")
@pytest.mark.parametrize("case", sorted(p for p in CASES.glob("H*") if p.is_dir()), ids=lambda p: p.name)
def test_healthy_tables_raise_no_alarm(case: Path) -> None:
    names = json.loads((case / "label.json").read_text())["raw_files"]
    texts = [(case / n).read_text(errors="replace").splitlines() for n in names]
    facts = tables.merged(tables.parse(t, where=n) for t, n in zip(texts, names, strict=True))
    assert not [f for f in judged(facts) if f[1] is not Severity.INFO]
    assert any(t.rows and t.rows[-1].size_bytes for t in facts.bandwidth), "no table was read"


def test_scripts_and_environments_become_hosts() -> None:
    text = "export NCCL_PROTO=LL\nmpirun -np 16 -x NCCL_ALGO=Ring -x NCCL_P2P_DISABLE=1 ./build/all_reduce_perf -b 8\n"
    assert settings_text.looks_like("cmd.txt", text.encode())
    env = settings_text.host(text.splitlines(), where="cmd.txt").env
    assert env is not None
    assert {v.name: v.value for v in env} == {"NCCL_PROTO": "LL", "NCCL_P2P_DISABLE": "1"}  # a bench forces Ring
    listing = "PATH=/bin\nNCCL_DEBUG=INFO\nHOME=/root\n"
    assert settings_text.looks_like("env.txt", listing.encode())
    found = settings_text.host(listing.splitlines(), where="env.txt").env
    assert found is not None
    assert found.get("NCCL_DEBUG") == "INFO"
    log = b"node1:1:1 [0] NCCL INFO NCCL_DEBUG set by environment to INFO\nexport A=1\n"
    assert not settings_text.looks_like("x.log", log)
    with pytest.raises(ValueError, match="no variable"):
        settings_text.host(["#!/bin/sh", "echo hello"], where="a.sh")
