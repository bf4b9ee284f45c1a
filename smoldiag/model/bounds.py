"""How much bus bandwidth hardware allows at most: arithmetic on link rates, no tuning model.

L ranks on each of M nodes, n = L*M ranks. Rates are GB/s (1e9) in one direction:

    link    what a GPU exchanges with the others of its node: NVLink, else PCIe
    node    what a node exchanges with the others: its NICs together, but no more than its GPUs' PCIe together

Ring (all_reduce, all_gather, reduce_scatter, broadcast, reduce): every block passes every rank once, so that link
and node each carry busbw itself:
    busbw <= min(link if L > 1, node if M > 1)

all_reduce may beat the ring in two places, because busbw is defined by what a ring would send, 2(n-1)/n of the size:
- Inside a node with NVLink SHARP the switch adds up. A GPU sends its size once and its result, 1/L of it, once:
      algbw <= link * L/(L+1)
  NCCL's own model takes 0.85 (Hopper) or 0.74 (Blackwell) of NVLS's share (nvlsEfficiency, src/graph/tuning.cc).
- On exactly two nodes a double tree sends each half of the data once up and once down: the size over each NIC,
  where a ring sends nearly twice the size. algbw <= node, busbw <= 2(n-1)/n * node, almost 2 * node. From three
  nodes on, an inner node of a tree sends the size twice, and the NIC rate holds for busbw again.
Where the network's switches add up (SHARP), or for algorithms that nobody runs, only `any_gbs` holds:
      all_reduce       each node sends the size once                     busbw <= 2(n-1)/n * node
      all_gather,      a node receives what the other nodes have,
      reduce_scatter   (M-1)/M of the size                               busbw <= (n-1)/n * M/(M-1) * node
      in a node        a GPU sends the size once                         busbw <= 2(n-1)/n * link (all_reduce)

all_to_all: of the size of each rank (n-L)/n leaves the node and (L-1)/n stays:
    busbw <= (node/L) * (n-1)/(n-L)    and    busbw <= link * (n-1)/(L-1)
send_recv to the next rank: one rank of each node sends outside. NCCL uses the NICs next to its GPU, node/GPUs;
gloo has one interface for all.
"""

from dataclasses import dataclass

from smoldiag.facts.reference import Hardware

RING = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Upper bounds on busbw; the formula shows the numbers."""

    busbw_gbs: float  # for the algorithms that NCCL and gloo have, without reduction in network switches
    formula: str
    limit: str  # what sets it: NICs | NVLink | PCIe
    ring_gbs: float
    any_gbs: float  # for any algorithm, reduction in all switches included


@dataclass(frozen=True, kw_only=True)
class _Limit:
    gb_per_s: float
    formula: str
    what: str


def bound(
    collective: str, *, nodes: int, ranks_per_node: int, hardware: Hardware, backend: str = "nccl"
) -> Bound | None:
    """None where a rate that limits is not known: the true limit may be anywhere below the others."""
    if nodes * ranks_per_node < 2:
        return None
    inside = _link(hardware, ranks_per_node)
    outside = _node(hardware, ranks_per_node)
    if hardware.mnnvl:  # NVLink joins the nodes as one; whether NICs are needed depends on how many racks there are
        nodes, ranks_per_node, outside = 1, nodes * ranks_per_node, None
    if (nodes > 1 and outside is None) or (ranks_per_node > 1 and inside is None and not _free_inside(hardware)):
        return None
    inside = inside if ranks_per_node > 1 else None
    outside = outside if nodes > 1 else None
    if inside is None and outside is None:
        return None
    size = _World(nodes=nodes, local=ranks_per_node, hardware=hardware, backend=backend)
    if collective in RING:
        return _ring_like(collective, size, inside, outside)
    if collective == "all_to_all":
        return _simple(_all_to_all(size, inside, outside))
    if collective == "send_recv":
        return _send_recv(size, inside, outside)
    return None


@dataclass(frozen=True, kw_only=True)
class _World:
    nodes: int
    local: int
    hardware: Hardware
    backend: str

    @property
    def ranks(self) -> int:
        return self.nodes * self.local


def _free_inside(hardware: Hardware) -> bool:
    """CPU ranks of a host talk through its memory, which is left out of the reckoning."""
    return hardware.gpu is None


def _link(hardware: Hardware, ranks_per_node: int) -> _Limit | None:
    nvlink, pcie, cards = hardware.nvlink_gb_per_s, hardware.pcie_gb_per_s, hardware.nvlink_bridge
    if nvlink and (not cards or ranks_per_node <= cards):  # bridges are optional; a bound takes them as present
        return _Limit(gb_per_s=nvlink, formula=f"NVLink {nvlink:g} GB/s per GPU", what="NVLink")
    if pcie and nvlink and cards * pcie < nvlink:  # rings may leave the bridged cards through each of them in turn
        return _Limit(gb_per_s=cards * pcie, formula=f"PCIe {cards} bridged cards x {pcie:g} GB/s", what="PCIe")
    if nvlink and pcie:
        return _Limit(gb_per_s=nvlink, formula=f"NVLink {nvlink:g} GB/s per GPU", what="NVLink")
    return _Limit(gb_per_s=pcie, formula=f"PCIe {pcie:g} GB/s per GPU", what="PCIe") if pcie else None


def _node(hardware: Hardware, ranks_per_node: int) -> _Limit | None:
    nic, pcie = hardware.nic_gb_per_s, hardware.pcie_gb_per_s
    if not nic:
        return None
    if pcie and ranks_per_node * pcie < nic:
        formula = f"PCIe {ranks_per_node} x {pcie:g} GB/s between GPUs and NICs"
        return _Limit(gb_per_s=ranks_per_node * pcie, formula=formula, what="PCIe")
    shown = f" ({hardware.nics})" if hardware.nics else ""
    return _Limit(gb_per_s=nic, formula=f"NICs {nic:g} GB/s per node{shown}", what="NICs")


def _ring_like(collective: str, world: _World, inside: _Limit | None, outside: _Limit | None) -> Bound:
    ring = _least(inside, outside)
    if collective != "all_reduce":
        anything = _least(inside, _gathered(collective, world, outside))
        return Bound(
            busbw_gbs=ring.gb_per_s,
            formula=ring.formula,
            limit=ring.what,
            ring_gbs=ring.gb_per_s,
            any_gbs=anything.gb_per_s,
        )
    n = world.ranks
    formula_factor, tree_factor = 2 * (n - 1) / n, 2 * (n - 1) / n
    own = _least(_nvls(world, inside), _two_node_tree(world, outside, tree_factor))
    any_inside = inside and _scaled(inside, formula_factor, "")
    any_outside = outside and _scaled(outside, formula_factor, "")
    return Bound(
        busbw_gbs=max(own.gb_per_s, ring.gb_per_s),
        formula=own.formula if own.gb_per_s >= ring.gb_per_s else ring.formula,
        limit=own.what if own.gb_per_s >= ring.gb_per_s else ring.what,
        ring_gbs=ring.gb_per_s,
        any_gbs=max(_least(any_inside, any_outside).gb_per_s, ring.gb_per_s),
    )


def _nvls(world: _World, inside: _Limit | None) -> _Limit | None:
    if inside is None or not world.hardware.nvls or inside.what != "NVLink" or world.backend != "nccl":
        return inside
    n, local = world.ranks, world.local
    factor = 2 * (n - 1) / n * local / (local + 1)
    return _scaled(inside, factor, f" x 2({n}-1)/{n} x {local}/({local}+1) (NVLink SHARP)") if factor > 1 else inside


def _two_node_tree(world: _World, outside: _Limit | None, factor: float) -> _Limit | None:
    if outside is None or world.nodes != 2 or world.backend != "nccl" or factor <= 1:
        return outside
    return _scaled(outside, factor, f" x 2({world.ranks}-1)/{world.ranks} (a tree of two nodes sends less than a ring)")


def _gathered(collective: str, world: _World, outside: _Limit | None) -> _Limit | None:
    if outside is None or collective not in ("all_gather", "reduce_scatter"):
        return outside
    n, m = world.ranks, world.nodes
    return _scaled(outside, (n - 1) / n * m / (m - 1), "")


def _all_to_all(world: _World, inside: _Limit | None, outside: _Limit | None) -> _Limit:
    n, local = world.ranks, world.local
    if outside is not None:
        outside = _scaled(outside, (n - 1) / (n - local) / local, f" / {local} x ({n}-1)/({n}-{local})")
    if inside is not None:
        inside = _scaled(inside, (n - 1) / (local - 1), f" x ({n}-1)/({local}-1)")
    return _least(inside, outside)


def _send_recv(world: _World, inside: _Limit | None, outside: _Limit | None) -> Bound:
    anything = _least(inside, outside)
    gpus = max(world.hardware.gpus_per_node or 1, world.local)
    if outside is not None and world.hardware.gpu is not None and gpus > 1 and outside.what == "NICs":
        outside = _scaled(outside, 1 / gpus, f" / {gpus} GPUs")
    own = _least(inside, outside)
    return Bound(
        busbw_gbs=own.gb_per_s,
        formula=own.formula,
        limit=own.what,
        ring_gbs=own.gb_per_s,
        any_gbs=anything.gb_per_s,
    )


def _simple(limit: _Limit) -> Bound:
    rate = limit.gb_per_s
    return Bound(busbw_gbs=rate, formula=limit.formula, limit=limit.what, ring_gbs=rate, any_gbs=rate)


def _scaled(limit: _Limit, factor: float, shown: str) -> _Limit:
    return _Limit(gb_per_s=limit.gb_per_s * factor, formula=limit.formula + shown, what=limit.what)


def _least(*limits: _Limit | None) -> _Limit:
    return min((limit for limit in limits if limit is not None), key=lambda limit: limit.gb_per_s)
