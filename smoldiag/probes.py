"""Records of probes, as ranks sent them, to facts.

The programs are `benchmarks/compute.py`, `memory.py`, `links.py`, `storage.py` and `resume.py`; each has
`measure(rank, config)`, which gives a record, and keeps to `config["budget_s"]`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from smoldiag.facts.probes import Compute, Links, Memory, Probes, Resume, Storage

KINDS = {"compute": Compute, "memory": Memory, "links": Links, "storage": Storage, "resume": Resume}


def read(records: Mapping[str, Iterable[Mapping[str, Any]]], *, where: str = "this run") -> Probes:
    """`records`: name of a probe -> the records of its ranks. Raises ValueError for what is no record of it."""
    try:
        found: dict[str, Any] = {
            name: tuple(msgspec.convert(r, KINDS[name]) for r in of_probe) for name, of_probe in records.items()
        }
    except msgspec.ValidationError as error:
        raise ValueError(f"no record of a probe: {error}") from None
    return Probes(**found, where=where)
