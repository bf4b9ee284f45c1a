"""`smoldiag topo`: where GPUs and NICs sit, and how hosts lie to each other."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    FailOn,
    FailOnOption,
    Format,
    FormatOption,
    OutputOption,
    RootOption,
    check_output,
    emit,
    failed,
    printed,
)

if TYPE_CHECKING:
    from smoldiag.topo import Seen

EXAMPLES = """\b
Examples:
  smoldiag topo                                  this host
  smoldiag topo topo.xml                         an XML of NCCL_TOPO_DUMP_FILE, or a cloud's topology file
  nvidia-smi topo -m | smoldiag topo -           the matrix of nvidia-smi
  lstopo m.xml && smoldiag topo m.xml            hwloc's description (it does not tell NVLinks)
  smoldiag topo --plot machine.svg               draw it
  smoldiag topo --nodes all                      how the hosts of this Slurm job lie to each other
  smoldiag topo --nodes 16 --network topo.txt    the same from scontrol show topology, or from AWS's instance topology
"""


def topo(
    file: Annotated[
        str | None,
        typer.Argument(
            help="A description of a machine: NCCL XML, nvidia-smi topo -m, lstopo XML. Without: this host."
        ),
    ] = None,
    root: RootOption = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Saved hosts: an archive of smoldiag bundle. Repeatable.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(help="Also how so many hosts of this Slurm job, or all of them, lie to each other: N or all."),
    ] = None,
    hosts: Annotated[str, typer.Option(help="How these hosts lie to each other, separated by commas.")] = "",
    network: Annotated[
        Path | None,
        typer.Option(
            help="Read how hosts lie to each other from this file: scontrol show topology, topology.conf, or "
            "aws ec2 describe-instance-topology. Without: scontrol is asked."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the machine into this .svg, .png or .pdf.")] = None,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Show how GPUs, NICs and CPUs are joined, which NIC each GPU gets, and whether GPUDirect is possible there.

    Path types and bandwidths are NCCL's. Exits with 0, or 1 where something was found from --fail-on on, 2 where the
    input is no topology.
    """
    from smoldiag import topo as topology
    from smoldiag.errors import SmoldiagError

    check_output(output)
    if plot:
        from smoldiag.render import plot as plots

        plots.check_path(plot)
    sources = {"FILE": file, "--root": root, "--bundle": bundle}
    if len([s for s in sources.values() if s]) > 1:
        raise SmoldiagError(f"{' and '.join(n for n, s in sources.items() if s)} name different machines")
    if file:
        described = [topology.from_file(Path(file))]
    else:
        from smoldiag.cli import gather

        described = list(gather.gathered(gather.Asked(command="topo", bundles=bundle or (), root=root)).hosts)
    named = [h.strip() for h in hosts.split(",") if h.strip()]
    seen = topology.judge(described, topology.network(nodes=nodes, hosts=named, file=network, env=os.environ))
    emit(shown(seen, fmt, everything=everything, colour=output is None), output)
    if plot:
        from smoldiag.render import machine

        machine.draw(seen, plot)
    raise typer.Exit(int(failed({f.severity.value for f in seen.report.findings}, fail_on)))


def shown(seen: "Seen", fmt: Format, *, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    from smoldiag.render import json, topology

    if fmt is Format.JSON:
        return json.document(seen.report)
    if fmt is Format.MARKDOWN:
        return topology.markdown(seen)
    return printed(topology.text(seen, everything=everything), colour=colour)
