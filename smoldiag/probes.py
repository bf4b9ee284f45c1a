"""Records of probes, as ranks sent them, to facts.

The programs are `benchmarks/compute.py`, `memory.py`, `links.py`, `storage.py` and `resume.py`; each has
`measure(rank, config)`, which gives a record, and keeps to `config["budget_s"]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from smoldiag.facts.probes import Compute, Links, Memory, Probes, Resume, Storage
from smoldiag.model import probes as model

KINDS = {"compute": Compute, "memory": Memory, "links": Links, "storage": Storage, "resume": Resume}


def read(
    results: Mapping[str, Mapping[int, Mapping[str, Any]]], hosts: Sequence[str], *, where: str = "this run"
) -> Probes:
    """`results`: name of a probe -> rank -> its record; `hosts`: of each rank. Each record gets its rank and host.

    Raises ValueError for what is no record of its probe.
    """
    try:
        found: dict[str, Any] = {
            name: tuple(
                msgspec.convert(
                    {**r, "device": {**r["device"], "rank": rank, "host": hosts[rank]}}, KINDS[name], str_keys=True
                )
                for rank, r in sorted(of_probe.items())
            )
            for name, of_probe in results.items()
        }
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"no record of a probe: {error}") from None
    return Probes(**found, where=where)


def in_words(probes: Probes) -> str:
    """What was measured, for the line of a stage: the range over the devices."""
    rates: dict[str, list[float]] = {}
    for of_host in model.figures(probes).values():
        for name, value in of_host.items():
            rates.setdefault(name, []).append(value)
    return ", ".join(f"{_named(name)} {_range(values)}" for name, values in rates.items())


def _named(name: str) -> str:
    return name.replace("gb_per_s", "GB/s").replace("_per_s", "/s").replace("tflops", "TFLOP/s").replace("_", " ")


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
