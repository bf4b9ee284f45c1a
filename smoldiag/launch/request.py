"""What is asked of a launcher and what it gives back."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smoldiag.facts import Host, Launch, World

if TYPE_CHECKING:
    from smoldiag.bundle import Bundle
    from smoldiag.launch.crew import Crew


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Read the facts of the hosts; without a crew, instead of a program."""

    seconds: float = 20.0  # for the facts of a host
    files: tuple[str, ...] = ()  # logs that were named
    job: str | None = None  # a running job: look at its processes, too


@dataclass(frozen=True, kw_only=True)
class Request:
    program: str = ""  # the module that the ranks run: benchmarks.collectives
    command: str = "nccl-bench"  # as it was typed, for hints
    survey: Survey | None = None
    # Instead of one program: ranks that stay, and what gives them their jobs. Their hosts are surveyed meanwhile.
    crew: "Callable[[Crew], Awaitable[None]] | None" = None
    nodes: int | None = None
    ranks_per_node: int | None = None
    backend: str = "auto"  # auto | nccl | gloo
    hosts: tuple[str, ...] = ()
    ssh_command: str | None = None
    python: str | None = None
    interface: str | None = None
    timeout_s: float = 60.0
    slurm_args: tuple[str, ...] = ()
    container: str | None = None
    mounts: tuple[str, ...] = ()
    busy_ok: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)  # for the ranks, beside those that are forwarded
    # Takes (host, record) as it comes; what it returns True for is not kept in `Finished.records`.
    on_record: Callable[[str, dict[str, Any]], bool] | None = None
    # Takes the facts of each host: its agent reads them beside the ranks, from the first record on that was taken.
    on_host: Callable[[Host], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    launcher: str  # local | joined | slurm | ssh
    why: str
    commands: tuple[str, ...]  # what would be typed by hand
    nodes: int | None = None  # hosts to wait for, where the launcher knows it beforehand
    hosts: tuple[str, ...] = ()  # their names, where it knows them, too


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to show. `passing`: the next one may overwrite it."""

    text: str
    passing: bool = True


@dataclass(frozen=True, kw_only=True)
class Finished:
    launch: Launch
    backend: str
    world: World | None = None  # None: the ranks were never started
    host_of_rank: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)  # host -> NCCL's log there; rank 0's host first
    environment: Mapping[str, str] = field(default_factory=dict)  # what was forwarded to the ranks
    versions: Mapping[str, str] = field(default_factory=dict)
    ranks_asked: int | None = None
    reporting: bool = True  # False in a joined process that is not the one of rank 0
    exit_code: int = 0  # of such a process
    bundle: "Bundle | None" = None  # of a survey: what the hosts answered


OnEvent = Callable[[Event], None]
Configure = Callable[[Sequence[Host], World, str], dict[str, Any]]  # hosts, world, backend -> the program's config


def no_program(hosts: Sequence[Host], world: World, backend: str) -> dict[str, Any]:
    """For a survey."""
    return {}
