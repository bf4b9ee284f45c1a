"""Xids: what the codes of the NVIDIA driver's error lines mean, and what to do (xid.csv).

Codes, names and actions: NVIDIA's Xid catalogue, docs.nvidia.com/deploy/xid-errors, as of 2025-10-29. The kind and the
severity are ours: `error` where the GPU can't be relied on until it was reset, or where hardware failed; `info` where
a program is the usual cause.
"""

import csv
from dataclasses import dataclass
from functools import cache

from smoldiag.paths import KNOWLEDGE

SOURCE = "NVIDIA Xid catalogue, docs.nvidia.com/deploy/xid-errors"


@dataclass(frozen=True, kw_only=True)
class XidMeaning:
    xid: int
    name: str  # ROBUST_CHANNEL_GPU_ECC_DBE
    meaning: str
    kind: str  # application | memory | nvlink | bus | firmware | power | driver
    severity: str  # error | warning | info
    action: str


@cache
def table() -> dict[int, XidMeaning]:
    with (KNOWLEDGE / "xid.csv").open(encoding="utf-8", newline="") as file:
        return {
            int(row["xid"]): XidMeaning(
                xid=int(row["xid"]),
                name=row["name"],
                meaning=row["meaning"],
                kind=row["kind"],
                severity=row["severity"],
                action=row["action"],
            )
            for row in csv.DictReader(file)
        }


def meaning(xid: int) -> XidMeaning | None:
    return table().get(xid)
