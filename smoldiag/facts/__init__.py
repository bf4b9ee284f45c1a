"""What is known, as plain data: frozen keyword-only dataclasses of plain values.

A fact does not say whether it is good or bad: rules do. A fact that nobody could read is None,
never a default: "not known" is not "off". Carried to the ranks: standard library only, Python 3.10.
"""

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
from smoldiag.facts.evidence import Evidence
from smoldiag.facts.host import Cluster, Gpu, Host, Nic
from smoldiag.facts.launch import Fault, Launch, Seat
from smoldiag.facts.transport import Transport

__all__ = [
    "Bench",
    "Cluster",
    "Evidence",
    "Expected",
    "Fault",
    "Gpu",
    "Group",
    "Host",
    "Launch",
    "Nic",
    "PairRate",
    "RankTime",
    "RankTimeUs",
    "Result",
    "Seat",
    "TimeUs",
    "Transport",
    "World",
]
