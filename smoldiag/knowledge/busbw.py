"""Published bus bandwidths, each with its source (busbw.csv)."""

import csv
from functools import cache

from smoldiag.facts.reference import Published
from smoldiag.paths import KNOWLEDGE


@cache
def rows() -> tuple[Published, ...]:
    with (KNOWLEDGE / "busbw.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(row) for row in csv.DictReader(file))


def _row(row: dict[str, str]) -> Published:
    return Published(
        collective=row["collective"],
        gpu=row["gpu"],
        gpus_per_node=int(row["gpus_per_node"]),
        nodes=int(row["nodes"]) if row["nodes"] else None,
        fabric=row["fabric"],
        instance=row["instance"],
        size_bytes=int(row["size_bytes"]) if row["size_bytes"] else None,
        busbw_gbs=float(row["busbw_gbs"]),
        kind=row["kind"],
        use=row["use"],
        source=row["source"],
        nccl_version=row["nccl_version"],
        note=row["note"],
    )
