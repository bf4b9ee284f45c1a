"""`smoldiag nccl-bench`: how fast are the collectives, and is that normal?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import (
    AllOption,
    FailOn,
    FailOnOption,
    Format,
    FormatOption,
    Launcher,
    OutputOption,
    check_output,
    emit,
    failed,
    printed,
)
from smoldiag.cli.launching import (
    Backend,
    BackendOption,
    BusyOkOption,
    ContainerOption,
    DryRunOption,
    HostfileOption,
    HostsOption,
    InterfaceOption,
    LauncherOption,
    MountOption,
    NodesOption,
    PythonOption,
    RanksPerNodeOption,
    SlurmArgsOption,
    SshCommandOption,
    TimeoutOption,
    load_ahead,
)

if TYPE_CHECKING:
    from smoldiag.findings import BenchReport

START_UP_S = 10  # import torch and meet, on a busy host
EXAMPLES = """\b
Examples:
  smoldiag nccl-bench                                    this host: all its GPUs, or two CPU ranks
  smoldiag nccl-bench --nodes 2                          two hosts of a Slurm allocation, or of a new one
  smoldiag nccl-bench --hosts a,b --interface eth0       two hosts over ssh
  srun --ntasks-per-node=1 smoldiag nccl-bench           as a step of a Slurm job
  torchrun --nproc-per-node 8 -m smoldiag nccl-bench     inside any launcher
  smoldiag nccl-bench --nodes 16 --scale                 1, 2, 4, 8, 16 nodes: where does it break?
  smoldiag nccl-bench --nodes 2 --fsdp SmolLM3-3B        the sizes that FSDP of this model sends
  smoldiag nccl-bench --sizes 8B:1GiB:x2 --plot busbw.png
"""


def nccl_bench(
    nodes: NodesOption = None,
    ranks_per_node: RanksPerNodeOption = None,
    launcher: LauncherOption = Launcher.AUTO,
    backend: BackendOption = Backend.AUTO,
    collective: Annotated[
        str,
        typer.Option(
            help="Which, separated by commas: all_reduce, all_gather, reduce_scatter, broadcast, reduce, "
            "all_to_all, send_recv. Without: the first three."
        ),
    ] = "",
    sizes: Annotated[
        str,
        typer.Option(
            help="8B:64MiB:x2, 1MiB:16MiB:+1MiB, or 1MiB,16MiB. Without: 1 GiB on GPUs or 16 MiB on CPUs first, "
            "then a sweep while the budget lasts."
        ),
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="float32, float16, bfloat16, float64, int8, uint8, int32 or int64.")
    ] = "float32",
    budget: Annotated[float, typer.Option(help="Seconds of measuring.", min=1, max=3600)] = 30.0,
    iterations: Annotated[
        int | None, typer.Option(help="Timed iterations per size. Without: as the budget allows.", min=1, max=100_000)
    ] = None,
    timeout: TimeoutOption = 60.0,
    interface: InterfaceOption = None,
    hosts: HostsOption = "",
    hostfile: HostfileOption = None,
    ssh_command: SshCommandOption = None,
    python: PythonOption = None,
    slurm_args: SlurmArgsOption = "",
    container: ContainerOption = None,
    mount: MountOption = None,
    groups: Annotated[
        str,
        typer.Option(
            help="Separated by commas: all (the whole world), intra (each node alone), inter (one rank per node)."
        ),
    ] = "all",
    scale: Annotated[bool, typer.Option("--scale", help="Repeat for 1, 2, 4 ... N nodes.")] = False,
    fsdp: Annotated[
        str | None,
        typer.Option(
            help="A model (SmolLM3-3B, Llama-3-8B ...) or an HF config.json: measure the sizes that FSDP of it sends."
        ),
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="Instead of a model: its number of parameters, e.g. 3e9 or 3B; with --layers.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Its number of layers.", min=1, max=10_000)] = None,
    ddp_bucket_mb: Annotated[
        float | None,
        typer.Option(help="With --fsdp or --params: DDP's all_reduce buckets of this many MiB instead.", min=0.01),
    ] = None,
    pairs: Annotated[str, typer.Option(help="send_recv between these ranks, e.g. 0-8,1-9.")] = "",
    per_rank: Annotated[bool, typer.Option("--per-rank", help="Keep every rank's own times in the JSON.")] = False,
    busy_ok: BusyOkOption = False,
    profile: Annotated[
        str | None, typer.Option(help="The instance to compare with, e.g. p5.48xlarge. Without: what is recognised.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="This site's own figures to compare with. Without: the folder in SMOLDIAG_SITE.")
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the figures of this run as a reference for later runs.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw busbw over size into this .png or .svg.")] = None,
    fmt: FormatOption = Format.TEXT,
    output: OutputOption = None,
    everything: AllOption = False,
    fail_on: FailOnOption = FailOn.ERROR,
    dry_run: DryRunOption = False,
) -> None:
    """Measure the collectives over the hosts of a job and say whether that is normal.

    Exits with 0, or 1 where something was found from --fail-on on, 2 for wrong usage, 3 where a rank or host
    kept the measurement from finishing.
    """
    import os

    from smoldiag import bench, launch
    from smoldiag.cli import progress

    check_output(output)
    check_output(save_reference)
    if plot:
        from smoldiag.render import plot as plots

        plots.check_path(plot)
    named_hosts, slots = bench.hosts(hosts, hostfile)
    options = bench.Options(
        collectives=bench.named(collective, known=bench.COLLECTIVES, option="--collective")
        or bench.DEFAULT_COLLECTIVES,
        sizes=bench.typed_sizes(sizes),
        dtype=bench.one_of(dtype, known=bench.DTYPES, option="--dtype"),
        budget_s=budget,
        iterations=iterations,
        groups=bench.named(groups, known=bench.GROUPS, option="--groups") or ("all",),
        scale=scale,
        pairs=bench.typed_pairs(pairs),
        per_rank=per_rank,
        step=bench.step(model=fsdp, params=params, layers=layers, ddp_bucket_mb=ddp_bucket_mb),
        profile=bench.known_profile(profile),
        references=bench.read_references(reference, os.environ.get("SMOLDIAG_SITE")),
    )
    request = launch.Request(
        program="benchmarks.collectives",
        nodes=nodes,
        ranks_per_node=ranks_per_node or slots,
        backend=backend.value,
        hosts=named_hosts,
        ssh_command=ssh_command,
        python=python,
        interface=interface,
        timeout_s=timeout,
        slurm_args=bench.words(slurm_args, option="--slurm-args"),
        container=container,
        mounts=tuple(mount or ()),
        busy_ok=busy_ok,
    )
    choice = launch.choose(launcher.value, request, os.environ)
    if dry_run:
        print("\n".join([f"launcher {choice.launcher}: {choice.why}", *choice.commands]))
        return
    plan = f"about {budget + START_UP_S:.0f} s planned, {budget:.0f} s of them measuring"
    load_ahead("smoldiag.verdict")
    with progress.shown(choice, plan=plan, quiet=launch.is_silent(choice, os.environ)) as on_event:
        finished = launch.run(choice, request, on_event=on_event, configure=options.config)
    if not finished.reporting:
        raise typer.Exit(finished.exit_code)
    from smoldiag import verdict

    report = verdict.judge(finished, options, nodes_asked=nodes)
    emit(shown(report, fmt, everything=everything, colour=output is None), output)
    if save_reference and report.results:
        emit(verdict.reference_document(report), save_reference)
    if plot and report.results:
        plots.busbw(report, plot)
    if report.verdict.value == "incomplete":
        raise typer.Exit(3)
    raise typer.Exit(int(failed({f.severity.value for f in report.findings}, fail_on)))


def shown(report: "BenchReport", fmt: Format, *, everything: bool, colour: bool) -> str:
    """The document in the format that was asked for."""
    from smoldiag.render import json, markdown, text

    if fmt is Format.JSON:
        return json.document(report)
    return (
        markdown.bench(report)
        if fmt is Format.MARKDOWN
        else printed(text.bench(report, everything=everything), colour=colour)
    )
