"""Rules of a running job: what its ranks do, and which counters grow."""

from dataclasses import replace

from smoldiag.facts import Cluster, Env, Host, HostProcess, Increase, Variable
from tests.rules.known import Facts

WAITS = ("all_reduce (torch/distributed/distributed_c10d.py:2810)", "step (train.py:88)", "main (train.py:120)")
LOADS = ("read (data.py:12)", "__next__ (loader.py:40)", "main (train.py:101)")


def rank(number: int, **more: object) -> HostProcess:
    return replace(HostProcess(pid=4000 + number, rank=number, state="S", python_stack=WAITS), **more)  # type: ignore[arg-type]


def job(*processes: HostProcess, per_host: int = 2) -> Cluster:
    hosts = [
        Host(name=f"n{i}", processes=processes[i * per_host : (i + 1) * per_host])
        for i in range(-(-len(processes) // per_host))
    ]
    return Cluster(hosts=tuple(hosts))


def with_env(number: int, **values: str) -> HostProcess:
    variables = tuple(Variable(name=k, value=v, origin=f"/proc/{4000 + number}/environ") for k, v in values.items())
    return rank(number, env=Env(variables=variables))


def host(**more: object) -> Host:
    return replace(Host(name="n0"), **more)  # type: ignore[arg-type]


def grown(gpus: dict[int, dict[str, int]] | None = None, nics: dict[str, dict[str, int]] | None = None) -> Host:
    return host(increase=Increase(seconds=5.0, gpus=gpus or {}, nics=nics or {}))


QUIET = grown(nics={"mlx5_0": {"out_of_sequence": 2}})

CASES: list[tuple[str, Facts, list[str]]] = [
    ("HST060", host(processes=(rank(0), rank(1, state="T"))), ["error"]),
    ("HST060", host(processes=(rank(0), rank(1, state="D", wchan="nfs_wait_bit_killable"))), ["warning"]),
    ("HST060", host(processes=(rank(0), rank(1, state="R"))), []),
    ("HST061", Cluster(hosts=(*job(*map(rank, range(6))).hosts, Host(name="n3"))), ["error"]),
    ("HST061", job(*map(rank, range(6))), []),
    ("HST062", job(*map(rank, range(7)), rank(7, python_stack=LOADS)), ["warning"]),
    ("HST062", job(*map(rank, range(8))), []),
    ("HST062", job(*map(rank, range(4)), *(rank(i, python_stack=LOADS) for i in range(4, 8))), []),
    ("ENV052", host(processes=(with_env(0, NCCL_ALGO="Ring"), with_env(1))), ["error"]),
    ("ENV052", host(processes=(with_env(0, LOCAL_RANK="0"), with_env(1, LOCAL_RANK="1"))), []),
    ("GPU055", grown({3: {"ecc_volatile": 1}}), ["error"]),
    ("GPU055", grown({3: {"ecc_corrected_volatile": 7}}), ["warning"]),
    ("GPU055", QUIET, []),
    ("NVL050", grown({3: {"nvlink 4 replay": 12}}), ["warning"]),
    ("NVL050", QUIET, []),
    ("PCI051", grown({3: {"pci_replays": 12}}), ["warning"]),
    ("PCI051", QUIET, []),
    ("NIC058", grown(nics={"mlx5_0": {"symbol_error": 12}}), ["error"]),
    ("NIC058", grown(nics={"mlx5_0": {"out_of_sequence": 1200}}), ["warning"]),
    ("NIC058", QUIET, []),
]
