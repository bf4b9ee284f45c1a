"""How hosts lie in their network: `scontrol show topology`, topology.conf, AWS's instance topology."""

import json
import re
from collections.abc import Iterable

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Network, Placement
from smoldiag.model import folded

MAX_TEXT = 32 << 20
MAX_SWITCHES = 20_000
MAX_DEPTH = 16
_PAIR = re.compile(r"\b(SwitchName|BlockName|AggregatedBlock|Nodes|Switches)=(\S+)", re.IGNORECASE)


def parse(text: str, *, name: str) -> Network:
    """Whichever of them it is. Raises SmoldiagError where it is none."""
    if len(text) > MAX_TEXT:
        raise SmoldiagError(f"{name} is too long for a description of a network: {len(text)} characters")
    placements = _aws(text) if text.lstrip().startswith("{") else _slurm(text)
    if not placements:
        raise SmoldiagError(
            f"{name} does not say how hosts lie in their network",
            hint="scontrol show topology, a topology.conf, or aws ec2 describe-instance-topology",
        )
    return Network(source=name, placements=tuple(placements))


def of_hosts(network: Network, hosts: Iterable[str]) -> Network:
    """The part about these hosts, in their order, by any form of their names."""
    by_name = {p.host: p for p in network.placements}
    by_short = {_short(p.host): p for p in network.placements}
    found, missing = [], []
    for host in hosts:
        placement = by_name.get(host) or by_short.get(_short(host))
        if placement:
            found.append(placement)
        else:
            missing.append(host)
    return Network(source=network.source, placements=tuple(found), missing=tuple(missing))


def _short(host: str) -> str:
    """Without its domain; an address has none."""
    return host if host[:1].isdigit() else host.partition(".")[0]


def _slurm(text: str) -> list[Placement]:
    """Lines of SwitchName= (topology/tree) or BlockName= (topology/block), wrapped or not, in any order of levels."""
    children: dict[str, tuple[list[str], list[str]]] = {}  # switch -> (hosts, switches below)
    current: str | None = None
    for key, value in _PAIR.findall(re.sub(r"(?m)#.*$", "", text)):
        key = key.lower()
        if key in ("switchname", "blockname", "aggregatedblock"):
            current = value
            if len(children) < MAX_SWITCHES:
                children.setdefault(value, ([], folded.expanded(value) if key == "aggregatedblock" else []))
        elif current in children and value.lower() not in ("(null)", "none"):
            children[current][0 if key == "nodes" else 1].extend(folded.expanded(value))
    above = {below: switch for switch, (_, switches) in children.items() for below in switches}
    leaf_of: dict[str, str] = {}
    for switch, (hosts, switches) in children.items():
        if not switches:  # those above list the hosts of all below them as well
            for host in hosts:
                leaf_of.setdefault(host, switch)
    return [Placement(host=host, switches=_upwards(leaf, above)) for host, leaf in leaf_of.items()]


def _upwards(switch: str, above: dict[str, str]) -> tuple[str, ...]:
    way = [switch]
    while (up := above.get(way[-1])) and up not in way and len(way) < MAX_DEPTH:
        way.append(up)
    return tuple(way)


def _aws(text: str) -> list[Placement]:
    """`aws ec2 describe-instance-topology`: the nodes of the network from the top down, for each instance."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = []
    instances = document.get("Instances") if isinstance(document, dict) else None
    for instance in instances if isinstance(instances, list) else ():
        if isinstance(instance, dict) and isinstance(instance.get("NetworkNodes"), list):
            nodes = [str(n)[:80] for n in instance["NetworkNodes"][:MAX_DEPTH]]
            found.append(Placement(host=str(instance.get("InstanceId", ""))[:80], switches=tuple(reversed(nodes))))
    return found
