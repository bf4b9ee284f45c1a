"""Acceptance of a cluster: requirements from a file, and a certificate for each node.

A file in TOML or JSON. Tables `minimum`, `maximum` and `equal` hold for each node, `fleet.minimum` and `fleet.maximum`
for all together; `name` is free. What was not measured is not met.

    name = "64 nodes of H100"
    [minimum]
    gpus = 8
    bfloat16_tflops = 600       # of the slowest GPU of the node
    h2d_gb_per_s = 50
    [equal]
    driver = "570.124.06"
    [fleet.minimum]
    nodes = 64
    all_reduce_busbw_gbs = 400

Names of figures: those of `model.probes.figures`, of `figures` here, and of `Host.versions`.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, PairRate, Result
from smoldiag.facts.acceptance import Certificate, Criteria, Line, Requirement
from smoldiag.facts.probes import Probes
from smoldiag.model import probes as model

KINDS = ("minimum", "maximum", "equal")
MOST_BYTES = 1 << 20
FIGURES = (
    "bfloat16_tflops",
    "float16_tflops",
    "tf32_tflops",
    "float32_tflops",
    "float8_e4m3fn_tflops",
    "device_memory_gb_per_s",
    "host_memory_gb_per_s",
    "h2d_gb_per_s",
    "d2h_gb_per_s",
    "h2d_latency_us",
    "d2h_latency_us",
    "gpu_pair_gb_per_s",
    "send_gb_per_s",
    "receive_gb_per_s",
    "storage_read_gb_per_s",
    "storage_write_gb_per_s",
    "storage_fsync_us",
    "storage_create_per_s",
    "storage_stat_per_s",
    "storage_unlink_per_s",
    "checkpoint_gb_per_s",
    "tokens_per_s",
    "gpus",
    "nics",
    "cpus",
    "memory_gib",
    "shm_gib",
    "clock_offset_s",
    "nodes",
)
BUSBW = re.compile(r"(node_)?(all_reduce|all_gather|reduce_scatter|broadcast|reduce|all_to_all|send_recv)_busbw_gbs")
ALL_TOGETHER = "nodes"


def load(path: Path) -> Criteria:
    """Raises SmoldiagError for what is no such file, and for a name that nothing measures."""
    try:
        content = path.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise SmoldiagError(f"{path} can't be read: {error.strerror}", hint="a TOML or JSON file of criteria") from None
    try:
        text = content.decode()
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SmoldiagError(f"{path} is no {path.suffix[1:] or 'TOML'}: {error}") from None
    if not isinstance(given, dict) or len(content) > MOST_BYTES:
        raise SmoldiagError(f"{path} holds no criteria", hint="tables minimum, maximum, equal, fleet.minimum")
    found = [*_requirements(given, "node", path), *_requirements(_table(given, "fleet", path), "fleet", path)]
    unknown = set(given) - {*KINDS, "fleet", "name"}
    if unknown or not found:
        said = f"{sorted(unknown)[0]!r} is no table of criteria" if unknown else "holds no criteria"
        raise SmoldiagError(f"{path}: {said}", hint="tables minimum, maximum, equal, fleet.minimum, and name")
    return Criteria(requirements=tuple(found), name=str(given.get("name", "")), where=str(path))


def _table(given: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = given.get(name, {})
    if not isinstance(table, dict):
        raise SmoldiagError(f"{path}: {name} is no table")
    return table


def _requirements(given: Mapping[str, Any], scope: str, path: Path) -> list[Requirement]:
    found = []
    for kind in KINDS:
        for name, value in _table(given, kind, path).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number and not (kind == "equal" and isinstance(value, str)):
                raise SmoldiagError(f"{path}: {kind} {name} = {value!r} is no number")
            if kind != "equal" and name not in FIGURES and not BUSBW.fullmatch(name):
                near = difflib.get_close_matches(name, [*FIGURES, "all_reduce_busbw_gbs"], 1)
                hint = f"did you mean {near[0]}?" if near else f"figures: {', '.join(FIGURES)}, all_reduce_busbw_gbs"
                raise SmoldiagError(f"{path}: nothing measures {name}", hint=hint)
            found.append(Requirement(name=name, kind=kind, value=value, scope=scope))
    return found


# -- what was measured


def figures(
    hosts: Sequence[Host],
    probes: Probes | None,
    results: Sequence[Result],
    pairs: Sequence[PairRate],
    *,
    host_of_rank: Sequence[str],
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(host -> figure -> value, figure of the fleet -> value): of the slowest device, at the best size."""
    found: dict[str, dict[str, float]] = {h.name: _of_facts(h) for h in hosts}
    for host, values in (model.figures(probes) if probes else {}).items():
        found.setdefault(host, {}).update(values)
    for p in pairs:
        for host, name in ((p.src_host, "send_gb_per_s"), (p.dst_host, "receive_gb_per_s")):
            of_host = found.setdefault(host, {})
            of_host[name] = max(p.gb_per_s, of_host.get(name, 0.0))
    fleet: dict[str, float] = {ALL_TOGETHER: float(len(found))}
    for r in results:
        if r.group.kind == "world":
            name, of = f"{r.collective}_busbw_gbs", fleet
        elif r.group.kind == "node":
            name, of = f"node_{r.collective}_busbw_gbs", found.setdefault(host_of_rank[r.group.ranks[0]], {})
        else:
            continue
        of[name] = max(r.busbw_gbs, of.get(name, 0.0))
    for values in found.values():
        for name, value in values.items():
            fleet[name] = model.worst(name, value, fleet.get(name, value))
    return found, fleet


def _of_facts(h: Host) -> dict[str, float]:
    known = {
        "gpus": len(h.gpus) if h.gpus is not None else None,
        "nics": sum(n.up is not False and not n.virtual for n in h.nics) if h.nics is not None else None,
        "cpus": h.cpu_count,
        "memory_gib": h.system.memory_bytes / 2**30 if h.system and h.system.memory_bytes else None,
        "shm_gib": h.limits.shm_bytes / 2**30 if h.limits and h.limits.shm_bytes else None,
        "clock_offset_s": abs(h.clock.offset_s) if h.clock and h.clock.offset_s is not None else None,
    }
    return {name: float(value) for name, value in known.items() if value is not None}


# -- certificates


def certificates(
    criteria: Criteria,
    hosts: Sequence[Host],
    of_hosts: Mapping[str, Mapping[str, float]],
    fleet: Mapping[str, float],
    *,
    names: Sequence[str] = (),
) -> tuple[Certificate, ...]:
    """One per node, then that of the fleet where it has requirements. `names`: nodes, those that never answered too."""
    facts = {h.name: h for h in hosts}
    made = [
        Certificate(
            host=name,
            lines=tuple(
                _line(r, {**_versions(facts.get(name)), **of_hosts.get(name, {})})
                for r in criteria.requirements
                if r.scope == "node"
            ),
            serials=serials(facts[name]) if name in facts else {},
            firmware=firmware(facts[name]) if name in facts else {},
        )
        for name in dict.fromkeys((*names, *facts, *of_hosts))
    ]
    together = tuple(_line(r, fleet) for r in criteria.requirements if r.scope == "fleet")
    return (*made, *((Certificate(host="", lines=together),) if together else ()))


def _versions(host: Host | None) -> Mapping[str, str]:
    return {**(host.versions or {}), **firmware(host)} if host else {}


def _line(r: Requirement, measured: Mapping[str, float | str]) -> Line:
    value = measured.get(r.name)
    return Line(requirement=r, measured=value, met=value is not None and _met(r, value))


def _met(r: Requirement, value: float | str) -> bool:
    if isinstance(value, str) or isinstance(r.value, str):
        return r.kind == "equal" and str(value) == str(r.value)
    if r.kind == "equal":
        return value == r.value
    return value >= r.value if r.kind == "minimum" else value <= r.value


def serials(host: Host) -> dict[str, str]:
    """What support asks for."""
    found = dict(host.ids or {})
    for g in host.gpus or ():
        if number := g.serial or g.uuid:
            found[f"GPU {g.index}"] = number
    return found | {n.name: n.guid for n in host.nics or () if n.guid}


def firmware(host: Host) -> dict[str, str]:
    found = {name: value for name, value in (host.versions or {}).items() if name in ("driver", "ofed")}
    if bios := (host.dmi or {}).get("bios_version"):
        found["bios"] = bios
    found |= {f"GPU {g.index}": g.vbios for g in host.gpus or () if g.vbios}
    return found | {n.name: n.firmware for n in host.nics or () if n.firmware}
