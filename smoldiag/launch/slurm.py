"""Hosts of a Slurm allocation, or of a new one, through srun: one task per host, all its GPUs visible to it."""

import asyncio
import getpass
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from smoldiag.errors import SmoldiagError
from smoldiag.launch import carry
from smoldiag.launch.channels import executable, started, stderr_tail
from smoldiag.launch.head import Head, Place, handle_signals
from smoldiag.launch.request import Choice, Configure, Event, Finished, OnEvent, Request
from smoldiag.model import folded

FIRST_SPECIAL_STEP = 0xFFFFFFF0  # batch, extern and interactive steps (slurm.h: SLURM_BATCH_SCRIPT ...)
QUEUE_POLL_S = 5.0
QUEUED = re.compile(r"job (\d+) queued and waiting")
GRANTED = re.compile(r"job \d+ has been allocated|Granted job allocation|Nodes .* are ready")
# What an outer task's variables would impose on our own srun (srun(1), INPUT ENVIRONMENT VARIABLES).
IMPOSED = re.compile(
    r"SLURM_(CPU_BIND\w*|MEM_BIND\w*|MEM_PER_\w+|NTASKS\w*|NPROCS|TASKS_PER_NODE|STEP_\w+|STEPID|PROCID|LOCALID|GPUS\w*|GRES\w*"
    r"|CPUS_PER_TASK|TRES_PER_TASK|THREADS_PER_CORE|DISTRIBUTION|OVERLAP|EXACT|EXCLUSIVE|KILL_BAD_EXIT|LABELIO|UNBUFFEREDIO|MPI_TYPE|OPEN_MODE"
    r"|STD\w+MODE|WAIT|NNODES|UMASK|SRUN_COMM_\w+|TASK_PID|GTIDS|LAUNCH_NODE_IPADDR|EXPORT_ENV|HINT)|SRUN_\w+|PMI\w*"
)


def allocated_nodes(env: Mapping[str, str]) -> int:
    text = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or "1"
    return int(text) if text.isdecimal() else 1


JOB = re.compile(r"\d{1,12}(?:_\d{1,8})?(?:\+\d{1,4})?")
ASK_S = 15.0


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    user: str
    hosts: tuple[str, ...]


def running_job(job: str, env: Mapping[str, str]) -> RunningJob:
    """Who runs it, and where. Raises SmoldiagError where it does not run, or nobody can be asked."""
    if not JOB.fullmatch(job):
        raise SmoldiagError(f"--job {job[:40]!r} is no number of a Slurm job", hint="squeue --me lists yours")
    squeue = executable("squeue", env)
    if squeue is None:
        raise SmoldiagError("--job: there is no Slurm here (no squeue)", hint="name the hosts: --hosts a,b")
    try:
        done = subprocess.run(
            [squeue, "--noheader", f"--jobs={job}", "--format=%T|%u|%N"],
            capture_output=True,
            text=True,
            timeout=ASK_S,
            env=dict(env),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SmoldiagError(f"--job {job}: squeue does not answer: {error}") from None
    lines = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        raise SmoldiagError(
            f"--job {job}: {said[-1] if said else 'no such job is running'}", hint="squeue --me lists yours"
        )
    state, user, nodes = lines[0]
    if state != "RUNNING":
        raise SmoldiagError(f"job {job} is {state}", hint="only a running job has ranks to look at")
    return RunningJob(user=user, hosts=tuple(folded.expanded(nodes)))


def _choice_for_job(job: str, request: Request, env: Mapping[str, str]) -> Choice:
    running = running_job(job, env)
    us = getpass.getuser()
    if us not in (running.user, "root"):
        raise SmoldiagError(
            f"job {job} is {running.user}'s, and you are {us}", hint=f"ask {running.user} to run the same command"
        )
    argv = command(request, env, nodes=len(running.hosts))
    return Choice(
        launcher="slurm",
        why=f"job {job} of {running.user} runs on {len(running.hosts)} hosts",
        commands=(shlex.join([*argv, "python3", "<the collector>"]),),
        nodes=len(running.hosts),
        hosts=running.hosts,
    )


def choice(request: Request, env: Mapping[str, str], *, asked: bool) -> Choice | None:
    if request.survey is not None and request.survey.job is not None and executable("srun", env):
        return _choice_for_job(request.survey.job, request, env)
    job, srun = env.get("SLURM_JOB_ID"), executable("srun", env)
    if not asked and not job and not (srun and request.nodes):
        return None
    if srun is None:
        if job:
            n = request.nodes or allocated_nodes(env)
            raise SmoldiagError(
                f"this is Slurm job {job}, but there is no srun here (a container?)",
                hint=f"on the host: srun --jobid={job} --overlap -N {n} --ntasks-per-node=1 smoldiag {request.command}",
            )
        raise SmoldiagError("there is no srun here", hint="--hosts a,b for ssh, or run on a host with Slurm")
    if job:
        nodes = request.nodes or allocated_nodes(env)
        if nodes > allocated_nodes(env):
            raise SmoldiagError(
                f"--nodes {nodes}, but Slurm job {job} has {allocated_nodes(env)}",
                hint="leave --nodes away, or ask for a larger job",
            )
        why = f"inside Slurm job {job}"
    else:
        nodes = request.nodes or 1
        why = f"srun is here; a new allocation of {nodes} node{'s' if nodes != 1 else ''}"
    argv = command(request, env, nodes=nodes)
    return Choice(
        launcher="slurm", why=why, commands=(shlex.join([*argv, "python3", "<the rank program>"]),), nodes=nodes
    )


def command(request: Request, env: Mapping[str, str], *, nodes: int) -> list[str]:
    argv = [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--mpi=none",
        "--cpu-bind=none",
        "--kill-on-bad-exit=0",
    ]
    if request.survey is not None and request.survey.job is not None:
        argv += [f"--jobid={request.survey.job}", "--overlap"]
    elif env.get("SLURM_JOB_ID"):
        argv.append("--overlap")
    if request.container:
        argv.append(f"--container-image={request.container}")
        if request.mounts:
            argv.append(f"--container-mounts={','.join(request.mounts)}")
    return [*argv, *request.slurm_args]


async def run(
    choice: Choice, request: Request, env: Mapping[str, str], on_event: OnEvent, configure: Configure
) -> Finished:
    assert choice.nodes is not None
    head = Head(
        request,
        launcher="slurm",
        agents=choice.nodes,
        env=env,
        on_event=on_event,
        configure=configure,
        order=node_id,
        names=choice.hosts or (hosts_of(env) if choice.nodes == allocated_nodes(env) else ()),
    )
    handle_signals(head)
    python = request.python or ("python3" if request.container else sys.executable)
    own = {k: v for k, v in env.items() if not IMPOSED.fullmatch(k)}
    argv = [*command(request, env, nodes=choice.nodes), python, "-c", carry.BOOTSTRAP]
    channel = await started(argv, name="srun", env=own)
    watching: list[asyncio.Task[None]] = []

    def said(line: str) -> None:
        if (match := QUEUED.search(line)) and head.pending is None:
            head.pending = match[1]
            on_event(Event(text=f"Slurm job {match[1]} is queued", passing=False))
            watching.append(asyncio.ensure_future(queue(head, match[1], on_event)))
        elif GRANTED.search(line):
            head.pending = None
            on_event(Event(text="Slurm has given the nodes", passing=False))

    watching.append(asyncio.ensure_future(stderr_tail(channel, said)))
    head.add(channel)
    try:
        return await head.conduct()
    finally:
        for task in watching:
            task.cancel()


def hosts_of(env: Mapping[str, str]) -> list[str]:
    return folded.expanded(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "")


def node_id(place: Place) -> int:
    text = place.hello["slurm"].get("SLURM_NODEID", "0")
    return int(text) if text.isdecimal() else 0


async def queue(head: Head, job: str, on_event: OnEvent) -> None:
    """While the job waits: its state and the scheduler's reason."""
    while head.pending:
        try:
            asking = await asyncio.create_subprocess_exec(
                "squeue",
                "-h",
                "-j",
                job,
                "-o",
                "%T (%r)",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            out, _ = await asyncio.wait_for(asking.communicate(), QUEUE_POLL_S)
            on_event(Event(text=f"Slurm job {job}: {out.decode(errors='replace').strip() or 'state unknown'}"))
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(QUEUE_POLL_S)


def in_step(env: Mapping[str, str]) -> bool:
    """Whether this process is a task of srun, not of a batch script or an interactive shell."""
    step = env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID") or ""
    return step.isdecimal() and int(step) < FIRST_SPECIAL_STEP and "SLURM_PROCID" in env
