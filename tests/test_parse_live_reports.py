"""What people ask a job that runs: NCCL's RAS and diagnostics, Inspector's lines, stacks of py-spy."""

import json

import pytest

from smoldiag.facts.flight import Stack
from smoldiag.parse import inspector, py_spy, ras

TABLE = """Job summary
===========

  Nodes  Processes         GPUs  Processes     GPUs
(total)   per node  per process    (total)  (total)
      4          8            1         32       32

Communicators... (0.00s)
=============

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         1         4       7-8        32        32   RUNNING  {errors}
"""
GONE = """
Errors
======

DEAD
  1 job process is considered dead (unreachable via the RAS network)
  Process 348 on node 10.0.0.13 managing GPU 5

#0-0 (cf264af53edbe986) INCOMPLETE
  Missing communicator data from 1 rank
  The missing rank: 21
"""
LAGS = """
Warnings
========

#0-0 (27a079b828ff1a75) MISMATCH
  Communicator ranks have different collective operation counts
  30 ranks have launched up to operation 6650
  2 ranks have launched up to operation 6649
  Rank 0 -- GPU 0 managed by process 483 on node 10.0.0.10
  Rank 2 -- GPU 2 managed by process 484 on node 10.0.0.10
"""


def test_ras_text_of_a_dead_process() -> None:
    report = ras.parse((TABLE.format(errors="INCOMPLETE") + GONE).encode(), where="ras.txt")
    (comm,) = report.comms
    (rank,) = comm.ranks
    assert (rank.rank, rank.state, rank.host, rank.pid) == (21, "dead", "10.0.0.13", 348)
    assert (comm.size, comm.status, comm.errors) == (32, "RUNNING", "INCOMPLETE")


def test_ras_text_of_ranks_that_lag() -> None:
    report = ras.parse((TABLE.format(errors="MISMATCH") + LAGS).encode(), where="ras.txt")
    assert [(r.rank, dict(r.counts)) for r in report.comms[0].ranks] == [
        (0, {"operations": 6649}),
        (2, {"operations": 6649}),
    ]


def test_ras_text_of_a_healthy_job_has_nothing_to_say() -> None:
    assert ras.parse(TABLE.format(errors="OK").encode(), where="ras.txt").comms == ()


def test_ras_json() -> None:
    here = {"rank": 0, "host": "n1", "pid": 7, "cuda_dev": 0, "collective_counts": {"AllReduce": 5}}
    gone = {
        "rank": 1,
        "host": "n2",
        "pid": 8,
        "cuda_dev": 1,
        "status": {"unresponsive": True, "considered_dead": False},
    }
    made = {
        "nccl_version": "2.29.1",
        "communicators_count": 1,
        "communicators": [{"hash": "0xae94", "size": 2, "ranks": [here], "missing_ranks": [gone]}],
    }
    data = json.dumps(made).encode()
    assert ras.is_report(data)
    (comm,) = ras.parse(data, where="ras.json").comms
    assert [(r.rank, r.state) for r in comm.ranks] == [(0, "ok"), (1, "unresponsive")]


def test_what_is_no_report_is_a_sentence() -> None:
    for data in (b"", b"hello", b"{", b'{"communicators": 3}'):
        with pytest.raises(ValueError, match=r"\w"):
            ras.parse(data, where="x")


def test_diagnostics() -> None:
    made = ras.diagnostics(
        [
            "node042:12345 NCCL DIAG === RAS Diagnostics ===",
            "node042:12345 NCCL DIAG [OK]   NVLink: found 18 link(s) per device, all active across 8 ranks",
            "node042:12345 NCCL DIAG [INFO] NCCL environment: NCCL_DEBUG=INFO on rank(s) {0,1}",
        ],
        where="out",
    )
    assert [(d.level, d.check, d.evidence.where) for d in made] == [
        ("OK", "NVLink", "out:2"),
        ("INFO", "NCCL environment", "out:3"),
    ]


def inspected(rank: int, *times: float) -> list[str]:
    return [
        json.dumps(
            {
                "header": {"id": "0xab", "rank": rank, "n_ranks": 3, "nnodes": 1},
                "metadata": {"inspector_output_format_version": "v4.0", "hostname": f"n{rank}", "pid": 1},
                "coll_perf": {"coll": "AllReduce", "coll_sn": i, "coll_exec_time_us": us},
            }
        )
        for i, us in enumerate(times)
    ]


def test_inspector_tells_who_comes_last() -> None:
    files = [[*inspected(r, 50.0, us), '{"header": {"id'] for r, us in enumerate((210.0, 40.0, 200.0))]
    made = inspector.arrivals([inspector.parse(lines, where="f") for lines in files])
    assert [(a.rank, a.host, a.collectives, a.last) for a in made] == [
        (0, "n0", 2, 1),
        (1, "n1", 2, 1),
        (2, "n2", 2, 0),
    ]


PY_SPY = """Process 348: python train.py --rank 5 --token hf_abcdefghijklmnopqrstuvwxyz
Python v3.12.3 (/usr/bin/python3.12)

Thread 348 (idle): "MainThread"
    read (data/tokens.py:41)
    batches (train.py:12)
    main (train.py:80)
    <module> (train.py:99)
Thread 0x7F01 (active): "pt_nccl_watchdg"
    _run (threading.py:953)
"""


def test_stacks_of_py_spy() -> None:
    main, other = py_spy.parse(PY_SPY.splitlines(), where="stacks.txt")
    assert isinstance(main, Stack)
    assert (main.rank, main.pid, main.thread, main.active) == (5, 348, "MainThread", False)
    assert str(main.frames[0]) == "data/tokens.py:41"
    assert other.active
    assert "hf_" not in main.command
    assert py_spy.looks_like("stacks.txt", PY_SPY.encode())
