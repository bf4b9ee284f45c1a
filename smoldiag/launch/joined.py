"""Already inside a launched rank (torchrun, srun, mpirun): take part; the process of rank 0 reports, alone.

Every process is the agent of its own rank, over a connection to the process of rank 0. Where there is one task per
host, it starts the ranks of its host.
"""

import asyncio
import json
import os
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Launch
from smoldiag.launch import carry, slurm
from smoldiag.launch.channels import LINE_LIMIT, Channel, closed, started
from smoldiag.launch.head import Head, Place, handle_signals
from smoldiag.launch.request import Choice, Configure, Event, Finished, OnEvent, Request

Arrived = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

FIRST_PORT, PORTS, TRIES = 20_000, 20_000, 8
ANSWER_S = 2.0
UNKNOWN_LAUNCHER = "a launcher that sets RANK"
RETRY_S = 0.1
STARTERS = {  # variable of the rank -> (launcher, size, local rank, local size)
    "OMPI_COMM_WORLD_RANK": (
        "mpirun",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "PMI_RANK": ("mpirun", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """This process's part in what a launcher started."""

    launcher: str  # torchrun | srun | mpirun
    rank: int  # of this process
    size: int  # processes
    local_rank: int | None  # None: one process per host, which starts the ranks there
    local_size: int
    master: str
    key: str  # the same in all processes of this run, and in no other run
    processes: int  # that the launcher around it says it started


def part(env: Mapping[str, str]) -> Part | None:
    """What the variables say; None where no launcher started this process."""
    around = _number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if slurm.in_step(env) else None
    around = around or _number(env, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE") or 1
    if "RANK" in env and "WORLD_SIZE" in env:
        local_rank = _number(env, "LOCAL_RANK")
        return Part(
            launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else UNKNOWN_LAUNCHER,
            rank=_needed(env, "RANK"),
            size=_needed(env, "WORLD_SIZE"),
            local_rank=local_rank,
            local_size=_number(env, "LOCAL_WORLD_SIZE") or 1,
            master=env.get("MASTER_ADDR") or _slurm_master(env) or "127.0.0.1",
            key="/".join(
                env.get(k, "")
                for k in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
            ),
            processes=around,
        )
    if slurm.in_step(env) and around > 1:
        nodes = _number(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES") or 1
        per_host = around == nodes and nodes > 1
        local_size = env.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
        return Part(
            launcher="srun",
            rank=_needed(env, "SLURM_PROCID"),
            size=around,
            local_rank=None if per_host else _number(env, "SLURM_LOCALID") or 0,
            local_size=int(local_size) if local_size.isdecimal() else 1,
            master=env.get("MASTER_ADDR") or _slurm_master(env) or "127.0.0.1",
            key="/".join(env.get(k, "") for k in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_SRUN_COMM_PORT")),
            processes=around,
        )
    for variable, (launcher, size, local, local_size) in STARTERS.items():
        if variable in env and (_number(env, size) or 1) > 1:
            return _of_mpi(env, variable, launcher, size, local, local_size)
    return None


def _of_mpi(env: Mapping[str, str], variable: str, launcher: str, size: str, local: str, local_size: str) -> Part:
    processes, here = _needed(env, size), _number(env, local_size)
    master = env.get("MASTER_ADDR") or ("127.0.0.1" if here == processes else "")
    if not master:
        raise SmoldiagError(
            f"{launcher} started {processes} processes on several hosts, and none knows the address of rank 0",
            hint="mpirun -x MASTER_ADDR=$(hostname) ... smoldiag COMMAND",
        )
    return Part(
        launcher=launcher,
        rank=_needed(env, variable),
        size=processes,
        local_rank=_number(env, local) or 0,
        local_size=here or 1,
        master=master,
        key="/".join(
            env.get(k, "")
            for k in (
                "OMPI_MCA_ess_base_jobid",
                "PMIX_NAMESPACE",
                "PMI_JOBID",
                "HYDI_CONTROL_FD",
                "SLURM_JOB_ID",
                "MASTER_PORT",
            )
        ),
        processes=processes,
    )


def _slurm_master(env: Mapping[str, str]) -> str | None:
    names = slurm.hosts_of(env)
    return names[0] if names else None


def _number(env: Mapping[str, str], *names: str) -> int | None:
    return next((int(env[n]) for n in names if env.get(n, "").isdecimal()), None)


def _needed(env: Mapping[str, str], name: str) -> int:
    number = _number(env, name)
    if number is None:
        raise SmoldiagError(
            f"{name}={env.get(name, '')[:40]!r} is no number", hint="the launcher's variables are broken here"
        )
    return number


def choice(request: Request, env: Mapping[str, str], *, asked: bool) -> Choice | None:
    mine = part(env) if request.survey is None or request.survey.job is None else None
    if mine is None:
        if asked:
            raise SmoldiagError(
                "--launcher joined: no launcher started this process",
                hint=f"torchrun --nproc-per-node 2 -m smoldiag {request.command}",
            )
        return None
    if request.survey is not None and not asked and mine.launcher == UNKNOWN_LAUNCHER:
        return None  # RANK may stand in a shell's environment; nobody waits for its peers
    if mine.local_rank is not None and request.hosts:
        raise SmoldiagError(
            f"--hosts inside of {mine.launcher}: the hosts are already given", hint="leave --hosts away"
        )
    each = "each starts the ranks of its host" if mine.local_rank is None else "each is a rank"
    return Choice(
        launcher="joined",
        why=f"process {mine.rank} of {mine.size} of {mine.launcher}; {each}",
        commands=(f"# already started by {mine.launcher}",),
    )


async def run(
    choice: Choice, request: Request, env: Mapping[str, str], on_event: OnEvent, configure: Configure
) -> Finished:
    mine = part(env)
    assert mine is not None
    return await (_head(mine, request, env, on_event, configure) if mine.rank == 0 else _relay(mine, request, env))


async def _agent(mine: Part, request: Request, env: Mapping[str, str], name: str) -> Channel:
    own = dict(env)
    if mine.local_rank is not None:
        own["SMOLDIAG_FIXED_RANK"] = f"{mine.rank}:{mine.local_rank}:{mine.local_size}"
    return await started([request.python or sys.executable, "-c", carry.BOOTSTRAP], name=name, env=own)


async def _head(
    mine: Part, request: Request, env: Mapping[str, str], on_event: OnEvent, configure: Configure
) -> Finished:
    head = Head(
        request if mine.local_rank is None else replace(request, nodes=None),
        launcher="joined",
        agents=mine.size,
        env=env,
        on_event=on_event,
        configure=configure,
        order=_order,
        fixed_world=mine.size if mine.local_rank is not None else None,
        names=slurm.hosts_of(env) if mine.launcher == "srun" else (),
        extra_addresses=() if mine.master in ("127.0.0.1", "localhost") else (mine.master,),
    )
    handle_signals(head)
    if mine.processes > mine.size:
        head.warnings.append(
            f"world: {mine.launcher} gives a world of {mine.size}, but {mine.processes} processes were started"
        )
        on_event(
            Event(
                text=f"WARNING: this is a world of {mine.size}, but {mine.processes} processes were started; "
                "each measures itself",
                passing=False,
            )
        )

    async def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said = json.loads(await asyncio.wait_for(reader.readline(), ANSWER_S))
            if said["smoldiag"] != token(mine):
                raise ValueError
        except (ValueError, KeyError, TypeError, OSError, asyncio.TimeoutError):
            writer.close()
            return
        writer.write(token(mine).encode() + b"\n")
        head.add(Channel(name="joined", reader=reader, writer=writer))

    server = await _served(mine, arrived)
    try:
        head.add(await _agent(mine, request, env, "joined"))
        finished = await head.conduct()
    finally:
        if server:
            server.close()
    return replace(finished, ranks_asked=mine.processes if mine.local_rank is not None else None)


def _order(place: Place) -> tuple[int, int]:
    fixed = place.hello.get("fixed")
    if fixed:
        return (int(fixed.partition(":")[0]), 0)
    procid = place.hello["slurm"].get("SLURM_PROCID", "")
    return (int(procid) if procid.isdecimal() else int(place.hello.get("rank") or 0), 0)


async def _served(mine: Part, arrived: Arrived) -> asyncio.Server | None:
    if mine.size == 1:
        return None
    for port in ports(mine):
        with suppress(OSError):
            return await asyncio.start_server(arrived, None, port, limit=LINE_LIMIT, backlog=4096)
    raise SmoldiagError(f"none of the ports {ports(mine)} is free here for the control connection")


async def _relay(mine: Part, request: Request, env: Mapping[str, str]) -> Finished:
    """Between the process of rank 0 and the agent here; it says nothing itself."""
    limit = request.timeout_s + mine.size / 32
    reader, writer = await _connected(mine, limit)
    agent = await _agent(mine, request, env, "here")
    assert agent.process is not None
    pumps = [asyncio.ensure_future(_pump(reader, agent.writer)), asyncio.ensure_future(_pump(agent.reader, writer))]
    loop = asyncio.get_running_loop()
    for number in (2, 15):
        loop.add_signal_handler(number, pumps[0].cancel)
    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    with suppress(asyncio.CancelledError):
        await asyncio.wait(pumps[1:], timeout=1.0)
    await closed([agent], patience_s=4.0)
    for p in pumps:
        p.cancel()
    writer.close()
    return Finished(launch=Launch(launcher="joined", seats=()), backend="", reporting=False)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def _connected(mine: Part, seconds: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    until, why = time.monotonic() + seconds, "nothing listens there"
    while time.monotonic() < until:
        for port in ports(mine):
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(mine.master, port, limit=LINE_LIMIT), ANSWER_S
                )
                writer.write(json.dumps({"smoldiag": token(mine)}).encode() + b"\n")
                if (await asyncio.wait_for(reader.readline(), ANSWER_S)).strip() == token(mine).encode():
                    return reader, writer
                writer.close()
                why = "something else answers there"
            except asyncio.TimeoutError:
                why = "no answer"
            except OSError as error:
                why = error.strerror or str(error)
        await asyncio.sleep(RETRY_S)
    print(
        f"error: process {mine.rank} can't reach that of rank 0 at {mine.master}, "
        f"ports {ports(mine)[0]} to {ports(mine)[-1]}: {why}",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(3)


def ports(mine: Part) -> range:
    first = FIRST_PORT + zlib.crc32(mine.key.encode()) % PORTS
    return range(first, first + TRIES)


def token(mine: Part) -> str:
    return f"smoldiag-{zlib.crc32(('token/' + mine.key).encode()):08x}-{mine.size}"
