"""The table of variables, and how their values are read."""

import re

import pytest

from smoldiag.knowledge import variables
from smoldiag.model import nccl_values as values

KINDS = {"bool", "int", "size", "float", "enum", "list", "path", "text"}
READS = {"", "integer", "number", "python-integer", "torch-bool", "torch-integer", "level", "algorithms", "protocols"}
READS |= {"libfabric-bool", "strict-word", "interfaces", "word", "exact-word", "words"}


def test_every_variable_is_described_and_has_a_source() -> None:
    specs = variables.specs().values()
    assert len(specs) > 600
    for spec in specs:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", spec.name)
        assert spec.does, spec.name
        assert not spec.does.endswith("."), spec.name
        assert spec.source, spec.name
        assert spec.kind in KINDS, spec.name
        assert spec.reads in READS, spec.name
        assert spec.match in {"", "required", "recommended", "host", "rank", "first rank"}, spec.name
        assert set(spec.risk) <= {"slow", "breaks", "debug"}, spec.name
        assert all(variables.release(since) or since == "" for since, _ in spec.defaults), spec.name


def test_the_heirs_of_old_names_are_known() -> None:
    for spec in variables.specs().values():
        if spec.instead and re.fullmatch(r"[A-Z0-9_]+", spec.instead):
            assert variables.find(spec.instead), spec.name


def test_variables_that_must_match_are_none_of_those_that_may_differ() -> None:
    assert {"NCCL_ALGO", "NCCL_BUFFSIZE", "NCCL_P2P_DISABLE", "MASTER_ADDR"} <= variables.must_match()
    assert {"NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "RANK", "CUDA_VISIBLE_DEVICES"} <= variables.may_differ()
    assert not variables.must_match() & variables.may_differ()


@pytest.mark.parametrize(
    ("name", "version", "default"),
    [
        ("NCCL_IB_TIMEOUT", (2, 13, 4), "14"),
        ("NCCL_IB_TIMEOUT", (2, 22, 3), "18"),
        ("NCCL_IB_TIMEOUT", (2, 27, 5), "20"),
        ("NCCL_IB_GID_INDEX", (2, 20, 5), "0"),
        ("NCCL_IB_GID_INDEX", (2, 21, 5), "-1"),
        ("NCCL_BUFFSIZE", (2, 27, 5), "4194304"),
        ("NCCL_SOCKET_IFNAME", (2, 27, 5), None),
        ("NCCL_COLLNET_ENABLE", (2, 27, 5), None),  # from the communicator's configuration
    ],
)
def test_defaults_are_those_of_the_release(name: str, version: variables.Release, default: str | None) -> None:
    assert variables.default_at(variables.specs()[name], version) == default


def test_a_name_is_read_by_some_releases() -> None:
    tree, ras = variables.specs()["NCCL_TREE_THRESHOLD"], variables.specs()["NCCL_RAS_ENABLE"]
    assert variables.is_removed(tree, (2, 4, 8)) is False
    assert variables.is_removed(tree, (2, 27, 5)) is True
    assert variables.is_removed(tree, None) is True  # no release that we support reads it
    assert variables.is_removed(variables.specs()["NCCL_GIN_NCONTEXTS"], None) is None
    assert variables.is_missing_yet(ras, (2, 23, 4)) is True
    assert variables.is_missing_yet(ras, (2, 24, 3)) is False
    assert variables.is_missing_yet(ras, None) is None
    assert variables.is_deprecated(variables.specs()["NCCL_MAX_NCHANNELS"], (2, 27, 5))
    assert not variables.is_deprecated(variables.specs()["NCCL_MAX_NCHANNELS"], (2, 16, 2))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.27.5", (2, 27, 5)),
        ("v2.27.5-1", (2, 27, 5)),
        ("2.27", (2, 27, 0)),
        ("2.13.0a0+git", (2, 13, 0)),
        ("new", None),
        ("", None),
        (None, None),
    ],
)
def test_versions(text: str | None, version: variables.Release | None) -> None:
    assert variables.release(text) == version


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NCCL_DEBGU", "NCCL_DEBUG"),
        ("NCLL_DEBUG", "NCCL_DEBUG"),
        ("nccl_debug", "NCCL_DEBUG"),
        ("NCCL_IB_HCAS", "NCCL_IB_HCA"),
        ("NCCL_SOCKET_IFACE", "NCCL_SOCKET_IFNAME"),
        ("NCCL_SOCKETIFNAME", "NCCL_SOCKET_IFNAME"),
        ("NCCL_DISABLE_P2P", "NCCL_P2P_DISABLE"),
        ("NCCL_DEBUG_SUBSYSTEM", "NCCL_DEBUG_SUBSYS"),
        ("PYTORCH_CUDA_ALLOC_CONFIG", "PYTORCH_CUDA_ALLOC_CONF"),
        ("OMP_NUM_THREAD", "OMP_NUM_THREADS"),
        ("NCCL_DEBUG", None),
        ("NCCL_P2P_ENABLE", None),  # another word, not a slip
        ("NCCL_IB_TIMEOUT_MS", None),
        ("NCCL_IB_TX", None),  # NCCL_IB_TC is no likelier than NCCL_IB_SL
        ("NCCL_FUTURE_SWITCH", None),
        ("FI_EFA_MTU_SIZE", None),
        ("PYTORCH_HIP_ALLOC_CONF", None),
        ("PYTORCH_HOME", None),
        ("RCCL_P2P_DISABLE", None),
    ],
)
def test_misspelt_names_are_told_from_unknown_ones(name: str, meant: str | None) -> None:
    found = variables.misspelt(name)
    assert (found.name if found else None) == meant


def test_no_known_name_is_taken_for_another() -> None:
    for name in variables.specs():
        assert variables.misspelt(name) is None


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("NCCL_P2P_ENABLE", "NCCL_P2P_DISABLE"),
        ("NCCL_IFNAME", "NCCL_SOCKET_IFNAME"),
        ("NCCL_BUFFER_SIZE", "NCCL_BUFFSIZE"),
        ("NCCL_AVOID_RECORD_STREAMS", "TORCH_NCCL_AVOID_RECORD_STREAMS"),
        ("NCCL_FUTURE_SWITCH", None),
    ],
)
def test_the_nearest_name(name: str, alike: str | None) -> None:
    found = variables.nearest(name)
    assert (found.name if found else None) == alike


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("4194304", (4194304, "")),
        ("4M", (4, "M")),
        (" 7", (7, "")),
        ("0x10", (16, "")),
        ("010", (8, "")),
        ("08", (0, "8")),
        ("-1", (-1, "")),
        ("true", (0, "true")),
        ("1 # note", (1, " # note")),
        ('"1"', (0, '"1"')),
        ("0x", (0, "x")),
        ("9223372036854775808", None),
    ],
)
def test_integers_as_strtoll_reads_them(text: str, read: tuple[int, str] | None) -> None:
    assert values.integer(text) == read


def test_switches_of_torch() -> None:
    assert [values.torch_bool(t) for t in ("1", "TRUE", "no", "on", "2", "")] == [True, True, False, None, None, None]
    assert values.stoi("600s") == (600, "s")
    assert values.stoi("ten") is None
    assert [values.typed_bool(t) for t in (" True ", "0", "yes")] == [True, False, None]


@pytest.mark.parametrize(
    ("text", "name"), [("NVL", "NVL"), ("nvl", None), ("0", "LOC"), ("3", "PHB"), ("9", "SYS"), ("", None)]
)
def test_levels(text: str, name: str | None) -> None:
    assert values.level(text) == name


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("bond", ["bond0", "bond0.2093", "bond1"]),
        ("=bond0", ["bond0"]),
        ("^bond,lo", ["eth0"]),
        ("^=bond0", ["bond0.2093", "bond1", "eth0", "lo"]),
        ("eth0,lo", ["eth0", "lo"]),
        ("eth9", []),
    ],
)
def test_filters_of_interfaces(text: str, taken: list[str]) -> None:
    found = values.name_filter(text)
    assert found is not None
    assert [n for n in ("bond0", "bond0.2093", "bond1", "eth0", "lo") if found.takes(n)] == taken


def test_filters_of_ports() -> None:
    found = values.name_filter("=mlx5_0:1,mlx5_1")
    assert found is not None
    assert found.takes("mlx5_0", port=1)
    assert not found.takes("mlx5_0", port=2)
    assert found.takes("mlx5_1", port=2)
    assert values.name_filter("") is values.name_filter("^") is None


def test_lists_of_algorithms() -> None:
    allowed = values.elements("ring,tree;allreduce:^tree", values.ALGORITHMS)
    assert allowed["AllGather"] == {"Ring", "Tree"}
    assert allowed["AllReduce"] == set(values.ALGORITHMS) - {"Tree"}
    for text, word in (("ring, tree", " tree"), ("ring;tree", "tree"), ("alltoall:ring", "alltoall"), ("1", "1")):
        with pytest.raises(values.UnknownToken, match=f"^{word}$"):
            values.elements(text, values.ALGORITHMS)


@pytest.mark.parametrize(
    ("algorithms", "protocols", "lost"),
    [
        (None, None, []),
        ("Ring", "LL128", []),
        ("Tree", None, ["Broadcast", "Reduce", "AllGather", "ReduceScatter"]),
        ("allreduce:tree", None, []),
        ("NVLS", "LL", list(values.FUNCTIONS)),
        ("^Ring", None, ["Broadcast", "Reduce"]),
    ],
)
def test_lists_that_leave_a_collective_no_way(algorithms: str | None, protocols: str | None, lost: list[str]) -> None:
    assert values.without_a_way(algorithms, protocols) == lost
