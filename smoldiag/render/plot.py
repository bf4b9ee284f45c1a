"""Curves of a bench: busbw over size, one line per collective, with what is expected."""

from collections.abc import Iterable
from pathlib import Path

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Result
from smoldiag.findings import BenchReport
from smoldiag.model.sizes import human

FORMATS = (".png", ".svg", ".pdf")


def busbw(r: BenchReport, path: Path) -> None:
    """Write the curves to a file; its ending says the format."""
    check_path(path)
    try:
        import matplotlib
    except ImportError:
        raise SmoldiagError(
            "--plot needs matplotlib, which is not installed here", hint="pip install 'smoldiag[plot]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for label, curve in _curves(r.results).items():
        (line,) = axes.plot(
            [x.size_bytes for x in curve], [x.busbw_gbs for x in curve], marker="o", markersize=4, label=label
        )
        points = [(e.size_bytes, e.busbw_gbs) for e in r.expected if e.collective == curve[0].collective]
        if points:
            xs, ys = zip(*sorted(points), strict=True)
            kind = next(e.kind for e in r.expected if e.collective == curve[0].collective)
            axes.plot(
                xs,
                ys,
                linestyle="--",
                marker="x",
                color=line.get_color(),
                alpha=0.6,
                label=f"{curve[0].collective} expected ({kind})",
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(int(value)) if value >= 1 else ""))
    axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("message size")
    axes.set_ylabel("bus bandwidth (GB/s)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    world = f"{r.world.ranks} ranks on {r.world.nodes} node{'s' if r.world.nodes != 1 else ''}" if r.world else ""
    axes.set_title(f"{r.backend}, {world}, smoldiag {r.version}")
    figure.savefig(path)
    plt.close(figure)


def check_path(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise SmoldiagError(f"--plot {path}: the file's ending must be one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise SmoldiagError(f"--plot {path}: there is no folder {path.parent}")


def _curves(results: Iterable[Result]) -> dict[str, list[Result]]:
    curves: dict[str, list[Result]] = {}
    several = len({(x.group.kind, x.group.nodes) for x in results}) > 1
    for x in results:
        label = x.collective
        if several:
            label += f", {x.group.nodes} node{'s' if x.group.nodes != 1 else ''}"
            label += {"node": " alone", "inter": " (one rank each)"}.get(x.group.kind, "")
        curves.setdefault(label, []).append(x)
    return {label: sorted(curve, key=lambda x: x.size_bytes) for label, curve in curves.items()}
