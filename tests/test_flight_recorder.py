"""Flight Recorder dumps are read as torch writes them, and nothing else is run or believed."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoldiag.facts.flight import ENDED, SCHEDULED, STARTED, TIMED_OUT, Dump, Frame
from smoldiag.parse import flight_recorder, plain_pickle

FRAMES = [
    {"name": "all_reduce", "filename": "/env/site-packages/torch/distributed/distributed_c10d.py", "line": 2696},
    {"name": "main", "filename": "train.py", "line": 40},
]


def entry(record: int, **more: Any) -> dict[str, Any]:
    return {
        "frames": FRAMES,
        "record_id": record,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "thread_name": "pt_main_thread",
        "thread_id": "140469388221312",
        "collective_seq_id": record + 1,
        "p2p_seq_id": 0,
        "op_id": record + 1,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": 1_790_000_000_000_000_000 + record,
        "input_sizes": [[3, 4]],
        "input_dtypes": ["Float"],
        "output_sizes": [[3, 4]],
        "output_dtypes": ["Float"],
        "state": "completed",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": 1_790_000_000_000_000_900,
        "retired": True,
        "timeout_ms": 600_000,
        "is_p2p": False,
        **more,
    }


def whole(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "2.10",
        "comm_lib_version": "2.27.5",
        "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2, 3]"}},
        "pg_status": {},
        "entries": list(entries),
    }


def of_pickle(made: object, *, where: str = "fr_rank_3", protocol: int = 2) -> Dump:
    return flight_recorder.parse(pickle.dumps(made, protocol), where=where)


def of_json(made: object, *, where: str = "fr_rank_3") -> Dump:
    return flight_recorder.parse(json.dumps(made).encode(), where=where)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_and_json_say_the_same(protocol: int) -> None:
    made = whole(entry(0), entry(1, state="scheduled", retired=False, time_discovered_completed_ns=None))
    a, b = of_pickle(made, protocol=protocol), of_json(made)
    assert a.calls == b.calls
    assert a.calls[0].op == "all_reduce"
    assert a.calls[0].frames[1] == Frame("main", "train.py", 40)
    (t,), (u,) = a.tracks, b.tracks
    assert (t.group, t.desc, t.ranks) == (u.group, u.desc, u.ranks) == ("0", "default_pg", (0, 1, 2, 3))
    assert list(t.seqs) == list(u.seqs) == [1, 2]
    assert list(t.states) == list(u.states) == [ENDED, SCHEDULED]
    assert (a.rank, a.world, a.newest_ns) == (b.rank, b.world, b.newest_ns) == (3, 4, 1_790_000_000_000_000_900)


def test_what_torch_itself_writes_is_read() -> None:
    torch = pytest.importorskip("torch")
    dist, c10d = torch.distributed, torch._C._distributed_c10d
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for _ in range(3):
            dist.all_reduce(torch.ones(5, 2))
        made = flight_recorder.parse(c10d._dump_fr_trace(), where="rank0")
        also = flight_recorder.parse(c10d._dump_fr_trace_json(), where="rank0.json")
    finally:
        dist.destroy_process_group()
    for d in (made, also):
        (track,) = (t for t in d.tracks if t.desc == "default_pg")
        assert [d.calls[c].op for c in track.calls][-3:] == ["all_reduce"] * 3
        assert d.calls[track.calls[-1]].input_sizes == ((5, 2),)
        assert set(track.states[:-1]) == {ENDED}  # the last is marked a moment after it returned
    assert any(f.filename == __file__ for c in made.calls for f in c.frames)


def test_states() -> None:
    running = {"retired": False, "time_discovered_completed_ns": None}
    made = of_pickle(
        whole(
            entry(0, state="started", **running),
            entry(1, state="started", retired=True, time_discovered_completed_ns=None),
            entry(2, state="scheduled", **running),
            entry(3, state="scheduled", profiling_name="gloo:all_reduce", time_discovered_completed_ns=None),
        )
    )
    on_gpus, on_cpus = made.tracks  # of one group: its backends count apart
    assert list(on_gpus.states) == [STARTED, TIMED_OUT, SCHEDULED]
    assert list(on_cpus.states) == [ENDED]


def test_sends_have_their_own_numbers_and_peers() -> None:
    made = of_pickle(whole(entry(0), entry(1, profiling_name="nccl:recv 2<-0", is_p2p=True, p2p_seq_id=7)))
    (track,) = (t for t in made.tracks if t.p2p)
    assert list(track.seqs) == [7]
    assert made.calls[track.calls[0]].peer == (0, 2)


def test_members_of_a_coalesced_call_have_its_state() -> None:
    p2p = {"is_p2p": True, "p2p_seq_id": 3}
    never = {"state": "scheduled", "retired": False, "time_discovered_completed_ns": None}
    made = of_pickle(
        whole(
            entry(0, profiling_name="nccl:send 3->1", **p2p, **never),
            entry(1, profiling_name="nccl:recv 3<-1", **p2p, **never),
            entry(2, profiling_name="nccl:coalesced", input_sizes=[], output_sizes=[], **p2p),
        )
    )
    assert set(made.tracks[0].states) == {ENDED}


def test_what_is_before_an_ended_collective_has_ended() -> None:
    never = {"state": "scheduled", "retired": False, "time_discovered_completed_ns": None}
    made = of_pickle(whole(entry(0, **never), entry(1), entry(2, **never)))
    assert list(made.tracks[0].states) == [ENDED, ENDED, SCHEDULED]


def test_older_versions_lack_fields() -> None:
    old = {k: v for k, v in entry(0).items() if k not in ("is_p2p", "timeout_ms", "input_dtypes", "output_dtypes")}
    for made in (of_pickle(whole(old)), of_json(whole(old))):
        assert made.calls[0].input_dtypes == ()
        assert made.calls[0].timeout_ms is None


def test_dumps_without_stacks_or_entries() -> None:
    bare = {k: v for k, v in entry(0).items() if k != "frames"}
    assert of_pickle(whole(bare)).calls[0].frames == ()
    assert of_json({"version": "2.10", "pg_config": whole()["pg_config"]}).entries == 0


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("nccl_trace_rank_3", 3),
        ("/tmp/comm_lib_trace_rank_12", 12),
        ("job/rank7/fr.json", 7),
        ("dump.5.pickle", 5),
        ("fr-r4.pkl", 4),
        ("trace_rank_2.json.gz", 2),
        ("fr_rank-11-of-16.pickle", 11),
        ("fr.json", None),
    ],
)
def test_the_rank_is_in_the_name(name: str, rank: int | None) -> None:
    assert flight_recorder.rank_in_name(name) == rank


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("deep", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int, deep: bool) -> None:
    target = tmp_path / "made"
    data = pickle.dumps(whole(entry(0, frames=[Runs(target)])) if deep else Runs(target), protocol)
    assert flight_recorder.looks_like("fr_rank_0", data[:4096]) or protocol < 2
    with pytest.raises(ValueError, match=r"refused|cut off|no Flight Recorder"):
        flight_recorder.parse(data, where="fr_rank_0")
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo of 4 billion places
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray of 8 EiB
        b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",  # a key that is hashed by recursion
        b"\x80\x02" + b"]" * 1000 + b".",
        b"\x80\x02K\x01\x88s.",
        b"{",
        b'{"entries": [{"record_id": "x"}]}',
        b'{"a": 1}',
        b"[" * 100_000,
        b"\x00" * 100,
    ],
    ids=range(14),
)
def test_what_is_no_dump_is_a_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        flight_recorder.parse(data, where="x")
    assert "\n" not in str(error.value)


def test_a_dump_that_is_cut_off_is_a_sentence() -> None:
    for data in (pickle.dumps(whole(entry(0), entry(1)), 2), json.dumps(whole(entry(0))).encode()):
        for end in range(0, len(data) - 1, 7):
            with pytest.raises(ValueError, match=r"\w"):
                flight_recorder.parse(data[:end], where="x")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000))
def test_damage_is_a_sentence_or_a_dump(noise: bytes, at: int) -> None:
    data = pickle.dumps(whole(entry(0), entry(1)), 2)
    at %= len(data)
    try:
        flight_recorder.parse(data[:at] + noise + data[at + len(noise) :], where="x")
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**31), 2**62) | st.floats(allow_nan=False) | st.text(max_size=300),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text(max_size=5), inner) | st.tuples(inner, inner, inner, inner)
        ),
    )
)
def test_plain_data_comes_back_as_it_was(made: object) -> None:
    for protocol in (2, 4, 5):
        assert plain_pickle.loads(pickle.dumps(made, protocol)) == made


def test_secrets_in_paths_are_taken_out() -> None:
    frames = [{"name": "f", "filename": "/x/hf_abcdefghijklmnopqrstuv/train.py", "line": 1}]
    made = of_pickle(whole(entry(0, frames=frames)))
    assert "hf_" not in made.calls[0].frames[0].filename
