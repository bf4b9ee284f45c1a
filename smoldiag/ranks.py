"""What every rank program shares: join, say how far it is, say what was measured, leave.

A rank is started by smoldiag's agent on its host, which gives it its plan on stdin. By hand,
`torchrun -m benchmarks.collectives` works as well: records then go to stdout.
"""

import ctypes
import fcntl
import gc
import importlib
import json
import mmap
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

c10d: Any = dist  # its exports are not declared
cuda: Any = torch.cuda

SLOT = struct.Struct("<QQQ")  # stages entered, collectives entered, collectives finished
SLOT_BYTES = 64  # one cache line per rank
CONNECT_S = 3.0  # for each address of the store's host
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SIOCGIFADDR = 0x8915  # linux/sockios.h
PATIENCE = 10  # the process group's own timeout over that of a stage: the watchdog outside is the one that acts
REACHED = "smoldiag/reached"


@dataclass(frozen=True)
class Rank:
    rank: int
    world_size: int
    local_rank: int
    host_of_rank: tuple[int, ...]  # index of each rank's host
    hosts: tuple[str, ...]
    backend: str
    device: torch.device
    config: Mapping[str, Any]


_plan: dict[str, Any] = {}
_progress: mmap.mmap | None = None
_counts = [0, 0, 0]
_stages: list[str] = []
_stores: list[Any] = []  # of groups, kept open
_bound: list[str] = []  # the interface that we chose for gloo; a group on one host has another one


def start() -> NoReturn:
    """Entry point of a carried rank: the plan comes on stdin, its program is run, and the process ends."""
    gc.enable()
    _die_with_parent()
    _take(json.loads(sys.stdin.readline()))
    try:
        importlib.import_module(_plan["program"]).main()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _take(plan: dict[str, Any]) -> None:
    global _progress
    _plan.update(plan)
    os.environ.update(plan.get("environ", {}))
    if plan.get("progress_fd") is not None:
        _progress = mmap.mmap(plan["progress_fd"], SLOT_BYTES * plan["slots"])


def _die_with_parent() -> None:
    """A rank never outlives its agent."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def config() -> dict[str, Any]:
    found: dict[str, Any] = _plan.get("config") or json.loads(os.environ.get("SMOLDIAG_CONFIG", "{}"))
    return found


def join() -> Rank:
    """Meet the other ranks: the store, the process group, the device."""
    if not _plan:
        return _join_by_hand()
    stage("rendezvous")
    rank, world_size, local_rank = _plan["rank"], _plan["world_size"], _plan["local_rank"]
    device = _device(_plan["backend"], local_rank)
    everyone, patience = range(world_size), timedelta(seconds=_plan["timeout_s"] * PATIENCE)
    store = _opened(everyone, {}, patience) if rank == 0 else _entered(everyone, {}, patience)
    dist.init_process_group(
        _plan["backend"],
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=patience,
        device_id=device if device.type == "cuda" else None,
    )
    record("versions", versions())
    return Rank(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        host_of_rank=tuple(_plan["host_of_rank"]),
        hosts=tuple(_plan["hosts"]),
        backend=_plan["backend"],
        device=device,
        config=config(),
    )


def alone() -> Rank:
    """This rank as a world of its own."""
    return Rank(
        rank=0,
        world_size=1,
        local_rank=_plan["local_rank"],
        host_of_rank=(0,),
        hosts=(_plan["hosts"][_plan["host_index"]],),
        backend=_plan["backend"],
        device=_device(_plan["backend"], _plan["local_rank"]),
        config=config(),
    )


@contextmanager
def group(members: Sequence[int], *, job: int, deadline_s: float) -> Iterator[Rank]:
    """A process group of these ranks of the world. The first of them opens the store."""
    rank = members.index(_plan["rank"])
    hosts_of_world: list[int] = _plan["host_of_rank"]
    hosts = tuple(dict.fromkeys(hosts_of_world[m] for m in members))
    host_of_rank = tuple(hosts.index(hosts_of_world[m]) for m in members)
    device = _device(_plan["backend"], _plan["local_rank"])
    patience = timedelta(seconds=deadline_s * PATIENCE)
    store = _opened(members, {"job": job}, patience) if rank == 0 else _entered(members, {"job": job}, patience)
    _stores[:] = [*_stores[-1:], store]  # the others may still be leaving the group before
    dist.init_process_group(
        _plan["backend"],
        store=store,
        rank=rank,
        world_size=len(members),
        timeout=patience,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield Rank(
            rank=rank,
            world_size=len(members),
            local_rank=_plan["local_rank"],
            host_of_rank=host_of_rank,
            hosts=tuple(_plan["hosts"][h] for h in hosts),
            backend=_plan["backend"],
            device=device,
            config=config(),
        )
    finally:
        dist.destroy_process_group()


def _join_by_hand() -> Rank:
    backend = os.environ.get("SMOLDIAG_BACKEND") or ("nccl" if torch.cuda.is_available() else "gloo")
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(backend, local_rank)
    dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world_size = dist.get_world_size()
    hosts = tuple(r // per_host for r in range(world_size))
    return Rank(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        host_of_rank=hosts,
        hosts=tuple(f"host{h}" for h in range(hosts[-1] + 1)),
        backend=backend,
        device=device,
        config=config(),
    )


def _device(backend: str, local_rank: int) -> torch.device:
    if backend != "nccl":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise RuntimeError(f"torch finds no CUDA device: torch {torch.__version__} is built for {built}")
    device = torch.device("cuda", local_rank % max(torch.cuda.device_count(), 1))
    torch.cuda.set_device(device)
    return device


def _opened(members: Sequence[int], tag: Mapping[str, Any], patience: timedelta) -> Any:
    """The store, on a free port; whoever started us tells the other members which."""
    single = _on_one_host(members)
    store = c10d.TCPStore("0.0.0.0" if not single else "127.0.0.1", 0, None, True, patience, wait_for_workers=False)
    record("store", {"port": store.port, **tag})
    if single:
        _bind_gloo("127.0.0.1")
    elif len(members) > 1:
        store.wait([REACHED], patience)
        _bind_gloo(store.get(REACHED).decode())
    return store


def _entered(members: Sequence[int], tag: Mapping[str, Any], patience: timedelta) -> Any:
    """The store that the first member has opened: the addresses of its host are tried in order."""
    said: dict[str, Any] = {}
    while "store" not in said or not tag.items() <= said.items():  # of a job that was given up
        said = json.loads(sys.stdin.readline())
    where = said["store"]
    theirs, mine = ("127.0.0.1",) * 2 if _on_one_host(members) else _reach(where["addresses"], where["port"])
    _bind_gloo(mine)
    store = c10d.TCPStore(theirs, where["port"], None, False, patience, wait_for_workers=False)
    if _plan["host_of_rank"][_plan["rank"]] != _plan["host_of_rank"][members[0]]:
        store.set(REACHED, theirs)
    return store


def _on_one_host(members: Sequence[int]) -> bool:
    return len({_plan["host_of_rank"][m] for m in members}) == 1


def _reach(addresses: list[str], port: int) -> tuple[str, str]:
    """The first address that answers, and our own on the way to it."""
    tried = []
    for address in addresses:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_S) as s:
                return address, s.getsockname()[0]
        except OSError as error:
            tried.append(f"{address}:{port} {error}")
    raise ConnectionError("rank 0's store answers on none of its addresses: " + "; ".join(tried))


def _bind_gloo(address: str) -> None:
    """gloo binds to the interface by which we reach the others, unless somebody said which."""
    wanted = _plan.get("interface")
    if wanted:
        os.environ["GLOO_SOCKET_IFNAME"] = wanted
        os.environ.setdefault("NCCL_SOCKET_IFNAME", wanted)
    if os.environ.get("GLOO_SOCKET_IFNAME") in (None, *_bound) and (name := interface_of(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
        _bound[:] = [name]
    record("interface", {"address": address, "interface": os.environ.get("GLOO_SOCKET_IFNAME")})


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(s.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(map(str, cuda.nccl.version()))
    return found


def begin() -> None:
    """Another job: the counts of progress start again."""
    _counts[:] = [0, 0, 0]


def barrier(me: Rank, group: Any = None) -> None:
    """All ranks of the group have come here."""
    entering()
    c10d.barrier(group, device_ids=[me.device.index] if me.device.type == "cuda" else None)
    left()


def stage(name: str) -> None:
    """From here on this rank does `name`; it has finished what it did before."""
    record("stage", {"name": name, "finished": _stages[-1] if _stages else None})
    _stages.append(name)
    _count(0)


def entering() -> None:
    """Just before a collective that may block."""
    _count(1)


def left() -> None:
    """Just after it."""
    _count(2)


def _count(which: int) -> None:
    _counts[which] += 1
    if _progress is not None:
        SLOT.pack_into(_progress, _plan["slot"] * SLOT_BYTES, *_counts)


def record(kind: str, what: Any) -> None:
    """One line of JSON to whoever started this rank."""
    body = asdict(what) if is_dataclass(what) and not isinstance(what, type) else what
    line = json.dumps({"kind": kind, **body}) + "\n"
    if _plan:
        os.write(_plan["record_fd"], line.encode())
    elif kind not in ("stage", "versions", "interface"):
        sys.stdout.write(line)
        sys.stdout.flush()


def leave() -> None:
    """All is said: end at once, without the slow teardown of the process group."""
    record("done", {})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
