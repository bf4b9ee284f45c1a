"""topo between its sources and its report: the inside of hosts, and how hosts lie in their network."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from smoldiag import __version__, rules
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Cluster, GpuWay, Host, Network, Topology
from smoldiag.findings import Report, ranked, verdict
from smoldiag.launch import slurm
from smoldiag.model import topology as model
from smoldiag.parse import network as networks
from smoldiag.parse import topology as topologies
from smoldiag.rules import Known

MAX_FILE_BYTES = 32 << 20
SCONTROL = ("scontrol", "show", "topology")
SCONTROL_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Inside:
    """One host, or one file that describes a host."""

    host: str
    topology: Topology | None
    ways: tuple[GpuWay, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    insides: tuple[Inside, ...]
    network: Network | None
    report: Report


def from_file(path: Path) -> Host:
    """The machine that a file describes; - is standard input. Raises SmoldiagError where it is no topology."""
    name = "standard input" if str(path) == "-" else path.name
    return Host(name=path.stem if name == path.name else "host", topology=topologies.parse(_text(path), name=name))


def _text(path: Path) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(MAX_FILE_BYTES).decode(errors="replace")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise SmoldiagError(f"can't read {path}: {error.strerror}") from None


def network(*, nodes: str | None, hosts: Sequence[str], file: Path | None, env: Mapping[str, str]) -> Network | None:
    """How the hosts that were asked for lie to each other. None: nobody asked."""
    if nodes is None and not hosts and file is None:
        return None
    text, source = (_text(file), file.name) if file else (_scontrol(), " ".join(SCONTROL))
    described = networks.parse(text, name=source)
    wanted = list(hosts) or slurm.hosts_of(env) or [p.host for p in described.placements]
    return networks.of_hosts(described, wanted[: _count(nodes)])


def _count(nodes: str | None) -> int | None:
    if nodes in (None, "all"):
        return None
    if not nodes.isdecimal() or not 1 <= int(nodes) <= 100_000:
        raise SmoldiagError(f"--nodes {nodes[:40]!r} is no number of hosts", hint="a number, or all")
    return int(nodes)


def _scontrol() -> str:
    try:
        done = subprocess.run(SCONTROL, capture_output=True, text=True, errors="replace", timeout=SCONTROL_S)
    except FileNotFoundError:
        raise SmoldiagError(
            "nobody says here how the nodes lie to each other: there is no scontrol",
            hint="--network FILE reads the output of scontrol show topology, or of aws ec2 describe-instance-topology",
        ) from None
    except subprocess.TimeoutExpired:
        raise SmoldiagError(f"{' '.join(SCONTROL)} gave no answer in {SCONTROL_S:.0f} s") from None
    if done.returncode:
        raise SmoldiagError(f"{' '.join(SCONTROL)}: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout


def judge(hosts: Sequence[Host], network: Network | None) -> Seen:
    """What the rules of topology say of these hosts."""
    filled = tuple(model.filled(host) for host in hosts)
    known = Known(
        cluster=Cluster(hosts=filled) if filled else None,
        network=network,
        unread={"network": "asked for with --nodes", "hosts": "no host was looked at"},
    )
    outcomes = tuple(rules.run(known, rules.select(["TOP"])))
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    insides = tuple(
        Inside(
            host=h.name,
            topology=h.topology,
            ways=model.ways(h.topology, h) if h.topology else (),
            why_not=h.unread.get("topology", ""),
        )
        for h in filled
    )
    report = Report(
        command="topo",
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict(found),
        findings=found,
        checks=rules.checks(outcomes),
        facts={"hosts": msgspec.to_builtins(insides), "network": msgspec.to_builtins(network)},
    )
    return Seen(insides=insides, network=network, report=report)
