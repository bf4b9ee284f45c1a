"""Hosts that were named, over OpenSSH. The remote command is a constant; nothing is interpolated into a shell."""

import asyncio
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from smoldiag.errors import SmoldiagError
from smoldiag.launch import carry, survey
from smoldiag.launch.channels import closed, executable, started, stderr_tail
from smoldiag.launch.head import Head, Place, handle_signals
from smoldiag.launch.request import Choice, Configure, Finished, OnEvent, Request

HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,64}@)?(?!-)[A-Za-z0-9._:%\[\]-]{1,255}")
AT_A_TIME = 128  # ssh processes that are being started
OPTIONS = (
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
)
PATIENCE = ("-o", "ConnectTimeout=10")
# $1: the wanted Python, $2: "asked" or "default", $3: the bootstrap
SHELL = 'p="$1"; if [ "$2" = default ] && ! [ -x "$p" ]; then p=python3; fi; exec "$p" -c "$3"'

# $1: process id, $2: when it started (field 22 of its stat)
END = '[ "$(cut -d " " -f 22 "/proc/$1/stat")" = "$2" ] && kill -KILL "$1"'


def choice(request: Request, env: Mapping[str, str], *, asked: bool) -> Choice | None:
    if not request.hosts:
        if asked:
            raise SmoldiagError("--launcher ssh needs hosts", hint="--hosts a,b or --hostfile FILE")
        return None
    for host in request.hosts:
        if not HOST.fullmatch(host):
            raise SmoldiagError(
                f"{host[:80]!r} is no host name", hint="letters, digits, '.', '-', '_', and USER@ before it"
            )
    if repeated := next((h for h in request.hosts if request.hosts.count(h) > 1), None):
        raise SmoldiagError(f"host {repeated} is named twice", hint="for more ranks on a host: --ranks-per-node")
    if request.nodes and request.nodes > len(request.hosts):
        raise SmoldiagError(f"--nodes {request.nodes}, but only {len(request.hosts)} hosts are named")
    command = ssh(request)
    if executable(command[0], env) is None:
        raise SmoldiagError(
            f"there is no {command[0]} here", hint="install OpenSSH's client, or name it with --ssh-command"
        )
    hosts = request.hosts[: request.nodes or len(request.hosts)]
    return Choice(
        launcher="ssh",
        why=f"{len(hosts)} host{'s' if len(hosts) != 1 else ''} named",
        commands=tuple(shlex.join([*command, *OPTIONS, host, "python3 <the rank program>"]) for host in hosts),
        nodes=len(hosts),
    )


def ssh(request: Request) -> list[str]:
    try:
        words = shlex.split(request.ssh_command or "ssh")
    except ValueError as error:
        raise SmoldiagError(f"--ssh-command {request.ssh_command!r}: {error}") from None
    if not words:
        raise SmoldiagError("--ssh-command is empty", hint='e.g. --ssh-command "ssh -F FILE"')
    return words


def remote_command(request: Request) -> str:
    """For the login shell of the other side: constants and the Python's path, quoted."""
    words = ["sh", "-c", SHELL, "smoldiag", request.python or sys.executable, "asked" if request.python else "default"]
    return "exec " + " ".join(map(shlex.quote, [*words, carry.BOOTSTRAP]))


async def run(
    choice: Choice, request: Request, env: Mapping[str, str], on_event: OnEvent, configure: Configure
) -> Finished:
    hosts = request.hosts[: choice.nodes]
    place_of = {host: i for i, host in enumerate(hosts)}

    async def end_agent(place: Place) -> None:
        """Over a second connection, by its process id and start time."""
        pid, started_at = str(int(place.hello["pid"])), str(int(place.hello["born"] or 0))
        script = "exec " + shlex.join(["sh", "-c", END, "smoldiag", pid, started_at])
        ending = await started(
            [*ssh(request), *OPTIONS, "-o", "ConnectTimeout=2", "--", place.channel.name, script],
            name=place.channel.name,
        )
        try:
            assert ending.process is not None
            await ending.process.wait()
        finally:
            await closed([ending], patience_s=0)

    head = Head(
        request,
        launcher="ssh",
        agents=len(hosts),
        env=env,
        on_event=on_event,
        configure=configure,
        order=lambda place: place_of[place.channel.name],
        end_agent=end_agent,
    )
    handle_signals(head)
    gate = asyncio.Semaphore(AT_A_TIME)
    watching: list[asyncio.Task[None]] = []  # kept, so that they are not collected

    async def connect(host: str) -> None:
        async with gate:
            if not head.interrupted:
                channel = await started(
                    [*ssh(request), *OPTIONS, *PATIENCE, "--", host, remote_command(request)], name=host
                )
                watching.append(asyncio.ensure_future(stderr_tail(channel)))
                head.add(channel)
                if request.survey is not None and request.crew is None:
                    await survey.answered(head, channel)

    connecting = asyncio.gather(*(connect(host) for host in hosts))
    return await head.conduct(connecting=connecting)


def parsed_hosts(text: str) -> tuple[str, ...]:
    return tuple(h.strip() for h in text.split(",") if h.strip())


def parsed_hostfile(lines: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Host names, and the slots if every line names the same number: OpenMPI's and DeepSpeed's form."""
    hosts, slots = [], set()
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            hosts.append(words[0])
            found = [w.partition("=")[2] for w in words[1:] if w.startswith("slots=")]
            slots.add(int(found[0]) if found and found[0].isdecimal() else None)
    same = slots.pop() if len(slots) == 1 else None
    return tuple(hosts), same
