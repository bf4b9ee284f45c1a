"""What is known, as plain data: frozen keyword-only dataclasses of plain values.

A fact does not say whether it is good or bad: rules do. A fact that nobody could read is None,
never a default: "not known" is not "off". Carried to the ranks: standard library only, Python 3.10.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoldiag.facts.bench import (
        Bench,
        Expected,
        Group,
        PairRate,
        RankTime,
        RankTimeUs,
        Result,
        TimeUs,
        World,
    )
    from smoldiag.facts.env import Env, Variable
    from smoldiag.facts.evidence import Evidence
    from smoldiag.facts.flight import Flight
    from smoldiag.facts.host import (
        Clock,
        Cluster,
        Container,
        Cpu,
        Gid,
        Gpu,
        GpuProcess,
        Host,
        HostProcess,
        Increase,
        KernelLog,
        Library,
        Limits,
        Mount,
        Nic,
        NvLink,
        PciDevice,
        Route,
        System,
        Xid,
    )
    from smoldiag.facts.launch import Fault, Launch, Seat
    from smoldiag.facts.log import InitTiming, Log, LogEvent
    from smoldiag.facts.run import CollectiveCall, Run, StepTimes
    from smoldiag.facts.series import Series
    from smoldiag.facts.tables import Tables
    from smoldiag.facts.topology import GpuWay, Network, Placement, TopoDevice, TopoHop, Topology, TopoNode, TopoPath
    from smoldiag.facts.transport import Transport

__all__ = [
    "Bench",
    "Clock",
    "Cluster",
    "CollectiveCall",
    "Container",
    "Cpu",
    "Env",
    "Evidence",
    "Expected",
    "Fault",
    "Flight",
    "Gid",
    "Gpu",
    "GpuProcess",
    "GpuWay",
    "Group",
    "Host",
    "HostProcess",
    "Increase",
    "InitTiming",
    "KernelLog",
    "Launch",
    "Library",
    "Limits",
    "Log",
    "LogEvent",
    "Mount",
    "Network",
    "Nic",
    "NvLink",
    "PairRate",
    "PciDevice",
    "Placement",
    "RankTime",
    "RankTimeUs",
    "Result",
    "Route",
    "Run",
    "Seat",
    "Series",
    "StepTimes",
    "System",
    "Tables",
    "TimeUs",
    "TopoDevice",
    "TopoHop",
    "TopoNode",
    "TopoPath",
    "Topology",
    "Transport",
    "Variable",
    "World",
    "Xid",
]

# Each module is loaded when one of its names is asked for: an agent on a host needs few of them.
_MODULES = {
    "bench": "Bench Expected Group PairRate RankTime RankTimeUs Result TimeUs World",
    "env": "Env Variable",
    "evidence": "Evidence",
    "flight": "Flight",
    "host": (
        "Clock Cluster Container Cpu Gid Gpu GpuProcess Host HostProcess Increase KernelLog Library Limits "
        "Mount Nic NvLink PciDevice Route System Xid"
    ),
    "launch": "Fault Launch Seat",
    "log": "InitTiming Log LogEvent",
    "run": "CollectiveCall Run StepTimes",
    "series": "Series",
    "tables": "Tables",
    "topology": "GpuWay Network Placement TopoDevice TopoHop Topology TopoNode TopoPath",
    "transport": "Transport",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
