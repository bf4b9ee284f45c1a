"""A drawing of a machine: CPUs on top, PCIe switches below, then GPUs and NICs, NVLink at the bottom.

Where only a matrix is known, the matrix in colours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoldiag.errors import SmoldiagError
from smoldiag.facts import GpuWay, TopoHop, Topology
from smoldiag.render import plot
from smoldiag.render.topology import cell
from smoldiag.topo import Seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"gpu": "#9fd14a", "nic": "#8db9ee", "pci": "#d9d9d9", "cpu": "#f2b84b", "nvs": "#b9dd7a"}
LINKS = {"pci": "#707070", "sys": "#d1495b", "nvl": "#4d7c00", "c2c": "#4d7c00"}
PATHS = {
    "NVL": "#b9dd7a",
    "NVB": "#b9dd7a",
    "C2C": "#b9dd7a",
    "PIX": "#cfe8a9",
    "PXB": "#e4f1cd",
    "P2C": "#e4f1cd",
    "PXN": "#cfe2f3",
    "PHB": "#fbe3a6",
    "SYS": "#f4b6bd",
    "DIS": "#d1495b",
}
SLOT = 1.35  # width of a GPU or NIC
LEVEL = 1.5  # height between two levels
WIDEST_GB_PER_S = 50.0  # drawn with the thickest line: PCIe 5 x16


def draw(seen: Seen, path: Path) -> None:
    """Write the first host's machine to a file; its ending says the format."""
    plot.check_path(path)
    inside = next((i for i in seen.insides if i.topology), None)
    if inside is None or inside.topology is None:
        raise SmoldiagError("--plot: there is no topology to draw", hint="smoldiag topo FILE --plot machine.svg")
    plt = plot.pyplot()
    t = inside.topology
    if t.nodes:
        drawing = _Drawing(t, {w.gpu: w for w in inside.ways})
        figure, axes = plt.subplots(figsize=(max(7.0, 1.05 * drawing.width), 1.25 * drawing.height + 1.2))
        drawing.onto(axes)
    else:
        cells = len(t.gpus) + len(t.nics)
        figure, axes = plt.subplots(figsize=(max(6.0, 0.75 * cells + 2), 0.5 * len(t.gpus) + 2))
        _matrix(axes, t)
    axes.set_title(t.source if inside.host in t.source else f"{inside.host}: {t.source}", fontsize=11)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


class _Drawing:
    """Places of the parts: leaves side by side, in the order of the tree; each switch and CPU above its own."""

    def __init__(self, t: Topology, ways: Mapping[str, GpuWay]) -> None:
        self.t, self.ways = t, ways
        self.kinds = {n.id: n.kind for n in t.nodes}
        self.labels = {n.id: n.label for n in t.nodes}
        self.children = self._tree()
        self.depth = max((self._depth(c) for c in self._cpus()), default=1)
        self.place: dict[str, tuple[float, float]] = {}
        x = 0.0
        for cpu in self._cpus():
            x = self._set(cpu, x, level=self.depth) + 0.6
        self.floor = -0.6 if any(h.kind == "nvl" for h in t.hops) else 0.9
        self.width, self.height = max(x, 4.0), (self.depth + 1.2) * LEVEL

    def _cpus(self) -> list[str]:
        return sorted(i for i, kind in self.kinds.items() if kind == "cpu")

    def _tree(self) -> dict[str, list[str]]:
        """What hangs below each CPU and switch."""
        children: dict[str, list[str]] = {}
        seen, layer = set(self._cpus()), self._cpus()
        while layer:
            layer = [node for above in layer for node in self._beside(above) if node not in seen]
            for above in seen.copy():
                for node in self._beside(above):
                    if node in layer and node not in seen:
                        children.setdefault(above, []).append(node)
                        seen.add(node)
        return children

    def _beside(self, node: str) -> list[str]:
        pci = [h.ends for h in self.t.hops if h.kind == "pci" and node in h.ends]
        return [b if a == node else a for a, b in pci]

    def _depth(self, node: str) -> int:
        return 1 + max((self._depth(c) for c in self.children.get(node, ())), default=0) if node in self.children else 1

    def _set(self, node: str, x: float, *, level: int) -> float:
        """Returns where the next one may stand."""
        below = self._sorted(self.children.get(node, []))
        if not below:
            self.place[node] = (x + SLOT / 2, LEVEL * (1 if self.kinds[node] in ("gpu", "nic") else level))
            return x + SLOT
        start = x
        for child in below:
            x = self._set(child, x, level=level - 1)
        self.place[node] = ((start + x) / 2, LEVEL * level)
        return x + 0.15

    def _sorted(self, nodes: list[str]) -> list[str]:
        return sorted(
            nodes,
            key=lambda n: (
                self.kinds[n] == "nic",
                [d.name for d in self.t.devices].index(n) if self.kinds[n] in ("gpu", "nic") else 0,
            ),
        )

    def onto(self, axes: "Axes") -> None:
        self._links(axes)
        self._nvlinks(axes)
        usual = self._usual_label()
        for node, (x, y) in self.place.items():
            _box(axes, x, y, self._words(node), self.kinds[node], width=self._box_width(node), far=self._is_far(node))
        self._labels(axes, usual)
        axes.set_xlim(-0.4, self.width + 0.2)
        axes.set_ylim(self.floor, LEVEL * self.depth + 0.9)
        axes.set_aspect("equal")
        axes.axis("off")
        _legend(axes, usual)

    def _box_width(self, node: str) -> float:
        return SLOT * 0.86 if self.kinds[node] in ("gpu", "nic") else 1.9

    def _is_far(self, node: str) -> bool:
        way = self.ways.get(node)
        return way is not None and way.gpudirect is False

    def _words(self, node: str) -> str:
        kind = self.kinds[node]
        if kind == "gpu":
            way = self.ways.get(node)
            return f"{node}\nto {way.nics[0]}\n{way.kind}" if way and way.nics else node
        if kind == "nic":
            rate = next((d.gb_per_s for d in self.t.nics if d.name == node), None)
            return f"{node}\n{rate * 8:g} Gb/s" if rate else node
        if kind == "pci":
            return f"switch\n{node}"
        return f"CPU {node.removeprefix('cpu')}\n{self.labels[node]}" if self.labels[node] else node

    def _usual_label(self) -> str:
        counts: dict[str, int] = {}
        for hop in self.t.hops:
            if hop.kind == "pci":
                counts[hop.label] = counts.get(hop.label, 0) + 1
        return max(counts, key=lambda k: counts[k], default="")

    def _links(self, axes: "Axes") -> None:
        for hop in self.t.hops:
            if hop.kind in ("pci", "sys", "c2c") and all(e in self.place for e in hop.ends):
                (ax, ay), (bx, by) = (self.place[e] for e in hop.ends)
                width = 0.8 + 3.2 * min((hop.gb_per_s or 12.0) / WIDEST_GB_PER_S, 1.0)
                style = "--" if hop.kind == "sys" else "-"
                axes.plot([ax, bx], [ay, by], color=LINKS[hop.kind], linewidth=width, linestyle=style, zorder=1)

    def _labels(self, axes: "Axes", usual: str) -> None:
        """What a link is, where it is not what most links are."""
        for hop in self.t.hops:
            if not all(e in self.place for e in hop.ends) or hop.kind not in ("pci", "sys"):
                continue
            (ax, ay), (bx, by) = (self.place[e] for e in hop.ends)
            words = f"{hop.gb_per_s:g} GB/s" if hop.kind == "sys" and hop.gb_per_s else hop.label
            if hop.kind == "sys" or hop.label != usual:
                axes.text((ax + bx) / 2, (ay + by) / 2 + (0.12 if hop.kind == "sys" else 0), words, fontsize=7.5,
                          ha="center", va="center", color="#a02030",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, zorder=4)  # fmt: skip

    def _nvlinks(self, axes: "Axes") -> None:
        linked = [h for h in self.t.hops if h.kind == "nvl"]
        switched = [h for h in linked if "nvs" in h.ends]
        if switched:
            xs = [self.place[e][0] for h in switched for e in h.ends if e in self.place]
            labels = sorted({h.label for h in switched})
            x, width = (min(xs) + max(xs)) / 2, max(xs) - min(xs) + SLOT
            _box(axes, x, -0.05, f"NVSwitch ({' or '.join(labels)} to each GPU)", "nvs", width=width, far=False)
            most = max(h.gb_per_s or 0 for h in switched)
            for h in switched:
                gx, gy = next(self.place[e] for e in h.ends if e in self.place)
                less = bool(h.gb_per_s and h.gb_per_s < most)
                axes.plot([gx, gx], [0.2, gy], color="#a02030" if less else LINKS["nvl"], linewidth=3.5, zorder=1)
                if less:
                    axes.text(gx, 0.5, h.label, fontsize=7.5, ha="center", color="#a02030", zorder=4)
        for h in linked:
            if all(e in self.place for e in h.ends):
                self._arc(axes, h)

    def _arc(self, axes: "Axes", hop: TopoHop) -> None:
        """From one GPU to another, the deeper the farther apart; as thick as it has links."""
        (ax, ay), (bx, _) = sorted(self.place[e] for e in hop.ends)
        count = int(hop.label.partition(" ")[0]) if hop.label[:1].isdigit() else 1
        width = 1.2 + 1.3 * min(count - 1, 3)
        bow = 0.25 + 0.9 * (bx - ax) / self.width
        xs = [ax + (bx - ax) * i / 40 for i in range(41)]
        ys = [ay - 0.33 - bow * 4 * (i / 40) * (1 - i / 40) for i in range(41)]
        axes.plot(xs, ys, color=LINKS["nvl"], linewidth=width, zorder=1)


def _box(axes: "Axes", x: float, y: float, words: str, kind: str, *, width: float, far: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    height = 0.62 if kind == "gpu" else 0.5 if kind != "nvs" else 0.4
    edge: dict[str, Any] = (
        {"edgecolor": "#a02030", "linewidth": 2.2} if far else {"edgecolor": "#404040", "linewidth": 0.8}
    )
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=COLOURS[kind],
            zorder=3,
            **edge,
        )
    )
    axes.text(x, y, words, ha="center", va="center", fontsize=7.5, zorder=5, linespacing=1.15)


def _legend(axes: "Axes", usual: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = [
        Line2D([], [], color=LINKS["pci"], linewidth=3, label=f"PCIe; without a label: {usual}" if usual else "PCIe"),
        Line2D([], [], color=LINKS["nvl"], linewidth=3, label="NVLink (between GPUs: thicker, more links)"),
        Line2D([], [], color=LINKS["sys"], linewidth=2, linestyle="--", label="between CPUs"),
        Patch(facecolor="white", edgecolor="#a02030", linewidth=2, label="no GPUDirect to its NIC"),
    ]
    axes.legend(handles=entries, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=4, fontsize=8, frameon=False)


def _matrix(axes: "Axes", t: Topology) -> None:
    columns, rows = [d.name for d in (*t.gpus, *t.nics)], [g.name for g in t.gpus]
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            path = t.path(row, column)
            colour = PATHS.get(path.kind, "white") if path else "#eeeeee"
            axes.add_patch(_square(c, r, colour))
            axes.text(c + 0.5, r + 0.5, cell(t, row, column), ha="center", va="center", fontsize=7.5)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([c + 0.5 for c in range(len(columns))], columns, rotation=45, ha="left", fontsize=8)
    axes.set_yticks([r + 0.5 for r in range(len(rows))], rows, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _square(column: int, row: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5)
