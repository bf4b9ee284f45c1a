"""What published figures and the hardware say of a table's row, as far as the table tells what it was measured on.

Tables seldom name their NICs. Over several nodes, then, a figure is held against the range of all that is published
for such GPUs on as many nodes: below the lowest of them it is low anywhere; within the range nobody can say more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smoldiag.facts import Expected
from smoldiag.facts.reference import Hardware, Published
from smoldiag.facts.tables import BandwidthTable
from smoldiag.model.expected import expected

KINDS = ("measured", "estimated")  # a bound says how far it could go, not what is normal
MACHINES = ("p4d", "p4de", "p5.", "p5en", "p6-b200", "p6-b300", "a3-mega", "a3-high", "a3-ultra", "a4-high", "bm.gpu")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The range of what others measured; `low` and `high` are the same where there is one figure."""

    low: Expected
    high: Expected
    named: bool = True  # False: over several nodes, and nothing says on which machine

    @property
    def exact(self) -> bool:
        """Measured at this size and node count on what must be the same machine."""
        return self.low is self.high and self.low.kind == "measured"


def reference(
    table: BandwidthTable,
    size_bytes: int,
    published: Sequence[Published],
    hardware: Hardware,
    *,
    nodes: int | None = None,
    ranks: int | None = None,
) -> Reference | None:
    """None where GPU, world or collective are not known, or nobody published anything alike."""
    nodes, ranks = nodes or table.nodes, ranks or table.ranks
    if not (hardware.gpu_class and ranks and nodes and table.collective) or ranks % nodes:
        return None
    local = ranks // nodes
    said = _machines(table)
    names = [""] if nodes == 1 else _instances(said, published, hardware.gpu_class, local)
    found = []
    for name in names:
        e = expected(
            table.collective,
            size_bytes,
            nodes=nodes,
            ranks_per_node=local,
            backend="nccl",
            hardware=replace(hardware, instances=(name,) if name else ()),
            published=published,
        )
        if e is not None and e.kind in KINDS:
            found.append(e)
    if not found:
        return None
    ordered = sorted(found, key=lambda e: e.busbw_gbs)
    return Reference(low=ordered[0], high=ordered[-1], named=nodes == 1 or bool(said))


def _machines(table: BandwidthTable) -> list[str]:
    """What the words around the table name."""
    words = " ".join([n.text for n in table.notes] + [table.where]).lower()
    return [key for key in MACHINES if key in words]


def _instances(said: Sequence[str], published: Sequence[Published], gpu_class: str, local: int) -> list[str]:
    """Those with such GPUs; where a machine is named, only that one."""
    names = {
        row.instance
        for row in published
        if row.use == "measured" and row.gpu == gpu_class and row.gpus_per_node == local and row.instance
    }
    return sorted(name for name in names if not said or any(key in name.lower() for key in said))
