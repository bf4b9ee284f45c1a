"""explain on tables, with what else people have beside them."""

from pathlib import Path

import pytest

from smoldiag.explain import explain
from smoldiag.findings import Confidence
from smoldiag.parse import host_of_file
from smoldiag.render import explained as rendered
from smoldiag.render import tables as lines
from tests.rules.tables import GOOD, PCIE, SOCKETS

SOCKET_LOG = """node0:10:20 [0] NCCL INFO NET/IB : No device found.
node0:10:20 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>
node0:10:20 [0] NCCL INFO Using network Socket
"""


def causes(folder: Path, **files: str) -> list[str]:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return [f.cause for f in explain([str(folder)]).report.findings if f.severity.value != "info"]


def test_a_table_alone_is_a_shortlist_and_the_log_decides(tmp_path: Path) -> None:
    alone = causes(tmp_path, bench_txt=SOCKETS)
    assert alone[:3] == ["net-socket-fallback", "fewer-nics-than-expected", "gdr-not-used"]
    assert causes(tmp_path, nccl_log=SOCKET_LOG)[0] == "net-socket-fallback"


def test_the_log_alone_accuses_nobody(tmp_path: Path) -> None:
    assert causes(tmp_path, nccl_log=SOCKET_LOG) == []


def test_a_variable_that_nccl_took_may_be_the_cause(tmp_path: Path) -> None:
    (tmp_path / "nccl.log").write_text("node0:10:20 [0] NCCL INFO NCCL_PROTO set by environment to LL\n" + SOCKET_LOG)
    (finding,) = [f for f in explain([str(tmp_path)]).report.findings if f.cause == "nccl-proto-forced"]
    assert finding.confidence is Confidence.POSSIBLE


def test_a_command_line_beside_two_tables(tmp_path: Path) -> None:
    command = "NCCL_P2P_DISABLE=1 ./build/all_reduce_perf -b 64K -e 8G -f 2 -g 8\n"
    assert causes(tmp_path, cmd_txt=command, bench_txt=PCIE, good_txt=GOOD)[0] == "p2p-disabled"


def test_a_table_inside_a_long_log_is_found(tmp_path: Path) -> None:
    noise = "".join(f"node0:10:20 [0] NCCL INFO Channel {i:02d}/0 : 0[0] -> 1[1] via P2P/CUMEM\n" for i in range(200))
    (tmp_path / "slurm-1.out").write_text(noise + GOOD + "\n")
    known = explain([str(tmp_path)]).known
    assert known.tables is not None
    assert known.tables.bandwidth[0].rows[-1].best_gbs == 478.0


def test_a_healthy_table_is_called_healthy(tmp_path: Path) -> None:
    (tmp_path / "bench.txt").write_text(GOOD)
    found = explain([str(tmp_path / "bench.txt")])
    assert [(f.code, f.severity.value) for f in found.report.findings] == [("BWD039", "info")]
    first, read, *_ = rendered.verdict(found.report, found.known)
    assert first == "info: no failure in what was read"
    assert "1 table of bandwidths" in read
    assert found.known.tables is not None
    (line,) = lines.lines(found.known.tables)
    assert line.startswith("all_reduce of 8 GiB over 8 ranks on 1 node (NVIDIA H100 80GB HBM3): 478 GB/s = ")
    assert "## Tables" in rendered.markdown(found)


@pytest.mark.parametrize("text", [GOOD, SOCKETS])
def test_facts_of_tables_are_printed_as_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.txt").write_text(text)
    facts = explain([str(tmp_path)], with_facts=True).report.facts
    assert facts is not None
    assert facts["tables"]["bandwidth"][0]["collective"] == "all_reduce"


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("node7.log", "node7"),
        ("logs/node7/dmesg.txt", "node7"),
        ("dmesg.txt", "the host"),
        ("nvidia-smi-q.txt", "the host"),
        ("job/cmd.txt", "job"),
    ],
)
def test_a_file_is_of_the_host_that_it_is_named_after(where: str, name: str) -> None:
    assert host_of_file.name(where) == name


def test_two_files_that_set_variables_are_one_environment(tmp_path: Path) -> None:
    (tmp_path / "cmd.txt").write_text("export NCCL_PROTO=LL\n")
    (tmp_path / "env.txt").write_text("NCCL_P2P_DISABLE=1\nNCCL_PROTO=Simple\nNCCL_DEBUG=INFO\n")
    known = explain([str(tmp_path)]).known
    assert known.cluster is not None
    (host,) = known.cluster
    assert host.env is not None
    assert {v.name: v.value for v in host.env} == {"NCCL_PROTO": "LL", "NCCL_P2P_DISABLE": "1", "NCCL_DEBUG": "INFO"}
