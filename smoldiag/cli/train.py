"""`smoldiag train`: the reference FSDP trainer, measured step by step."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoldiag.cli.common import FailOn, FailOnOption, Format, FormatOption, Launcher, emit, failed, printed
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
    from smoldiag.findings import Report
    from smoldiag.runs import Trained

EXAMPLES = """\b
Examples:
  smoldiag train --model tiny --steps 30 --output RUN            this host: all its GPUs, or two CPU ranks
  smoldiag train --resume RUN                                    go on where it stopped
  smoldiag train --model 1.7B --nodes 2 --checkpoint /shared/c   two hosts of a Slurm allocation
  smoldiag train --model 360M --micro-batch 16 --dtype bfloat16 --compile
  smoldiag train --fault slow-rank:ranks=1,seconds=0.05          what does a slow rank look like?
  smoldiag train --prepare book.txt                              make book.tokens, for --tokens
"""


def train(
    model: Annotated[
        str, typer.Option(help="tiny, 135M, 360M, 1.7B, 3B (SmolLM3), Llama-1B, Llama-8B or the full name.")
    ] = "tiny",
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1, max=10_000_000)] = 30,
    output: Annotated[Path | None, typer.Option(help="Keep the run in this folder. Without: only its summary.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run of this folder.")] = None,
    sequence: Annotated[int, typer.Option(help="Tokens per sequence.", min=2, max=1_000_000)] = 128,
    micro_batch: Annotated[int, typer.Option(help="Sequences per rank and forward pass.", min=1, max=65_536)] = 4,
    global_batch: Annotated[
        int | None, typer.Option(help="Sequences per step over all ranks. Without: one micro batch per rank.", min=1)
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="A tokens file. Without: synthetic tokens.")] = None,
    prepare: Annotated[Path | None, typer.Option(help="Make a tokens file from this text, and end.")] = None,
    documents: Annotated[bool, typer.Option("--documents", help="Attention stays within a document.")] = False,
    workers: Annotated[int, typer.Option(help="Threads that prepare batches ahead.", min=0, max=64)] = 0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations; 0: never.", min=0)] = 0,
    learning_rate: Annotated[float, typer.Option(help="Of the stable phase.", min=0.0, max=10.0)] = 3e-3,
    seed: Annotated[int, typer.Option(help="Of the model and the data.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: what forward and backward compute in.")] = "float32",
    fsdp: Annotated[bool, typer.Option(help="Shard with FSDP2; without it, one rank trains alone.")] = True,
    replicate: Annotated[int, typer.Option(help="HSDP: shard within this many replicas.", min=1)] = 1,
    recompute: Annotated[str, typer.Option(help="Activation checkpointing: none, selective or full.")] = "none",
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile each layer.")] = False,
    prefetch: Annotated[int, typer.Option(help="Layers gathered ahead.", min=0, max=64)] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The folder for checkpoints; all hosts must share it.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. Without: a third of the run.", min=1)
    ] = None,
    trace: Annotated[int, typer.Option(help="Keep torch.profiler traces of this many steps.", min=0, max=100)] = 0,
    trace_ranks: Annotated[str, typer.Option(help="The ranks whose traces are kept, e.g. 0,5.")] = "0",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard, too.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(help="Apply the settings of this cloud profile, and say the tokens/s with and without them."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="Put a fault in, e.g. slow-rank:ranks=1,seconds=0.05,every=10: slow-loader, periodic-stall, "
            "slow-rank, gc-storm, uneven-data, skipped-collective. Repeatable."
        ),
    ] = None,
    nodes: NodesOption = None,
    ranks_per_node: RanksPerNodeOption = None,
    launcher: LauncherOption = Launcher.AUTO,
    backend: BackendOption = Backend.AUTO,
    hosts: HostsOption = "",
    hostfile: HostfileOption = None,
    ssh_command: SshCommandOption = None,
    python: PythonOption = None,
    slurm_args: SlurmArgsOption = "",
    container: ContainerOption = None,
    mount: MountOption = None,
    interface: InterfaceOption = None,
    timeout: TimeoutOption = 600.0,
    busy_ok: BusyOkOption = False,
    fmt: FormatOption = Format.TEXT,
    fail_on: FailOnOption = FailOn.ERROR,
    dry_run: DryRunOption = False,
) -> None:
    """Train a small language model over the hosts of a job, and say where the time of its steps goes.

    Exits with 0, or 1 where something was found from --fail-on on, 2 for wrong usage, 3 where a rank or host
    kept the run from finishing. Stopped in any way, the run goes on with --resume.
    """
    import os
    import sys

    from smoldiag import bench, launch, runs
    from smoldiag.cli import progress

    if prepare is not None:
        made = prepare.with_suffix(".tokens")
        count = runs.prepare(prepare, made)
        print(f"{made}: {count:,} tokens; train on it with --tokens {made}", file=sys.stderr)
        return
    if resume is not None:
        config, output = runs.resumed(resume), resume
    else:
        given = {
            "model": model,
            "steps": steps,
            "sequence_tokens": sequence,
            "micro_batch": micro_batch,
            "global_batch": global_batch,
            "tokens_file": str(tokens.absolute()) if tokens else None,
            "documents": documents,
            "workers": workers,
            "validate_every": validate_every,
            "learning_rate": learning_rate,
            "seed": seed,
            "dtype": dtype,
            "fsdp": fsdp,
            "replicate": replicate,
            "checkpointing": recompute,
            "compiled": compiled,
            "prefetch": prefetch,
            "checkpoint_folder": str(checkpoint.absolute()) if checkpoint else None,
            "checkpoint_every": checkpoint_every or max(steps // 3, 1),
            "trace_steps": trace,
            "trace_ranks": runs.rank_numbers(trace_ranks),
        }
        config = runs.configured(given, faults=fault or [])
    named_hosts, slots = bench.hosts(hosts, hostfile)
    request = launch.Request(
        program="trainer.train",
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
    silent = launch.is_silent(choice, os.environ)
    folder = runs.opened(output, config, one_host=choice.nodes == 1) if output and not silent else None
    load_ahead("smoldiag.verdict")
    settings = runs.of_profile(profile) if profile else {}
    with progress.shown(choice, plan=f"{config.steps} steps of {config.model}", quiet=silent) as on_event:
        before = runs.without_settings(choice, request, config, on_event=on_event) if settings else None
        request = replace(request, variables=settings)
        trained = runs.train(
            choice, request, config, folder=folder, on_event=on_event, tensorboard=tensorboard and output is not None
        )
    if profile and trained.finished.reporting:
        note = (
            runs.compared(profile, settings, before, trained) if before else f"profile {profile} sets nothing for ranks"
        )
        trained = replace(trained, notes=(note,))
    if not trained.finished.reporting:
        raise typer.Exit(trained.finished.exit_code)
    from smoldiag import verdict

    report = verdict.of_run(trained)
    document = shown(report, trained, fmt)
    emit(document, None)
    if output:
        print(f"the run is in {output}", file=sys.stderr)
    if report.verdict.value == "incomplete":
        raise typer.Exit(3)
    raise typer.Exit(int(failed({f.severity.value for f in report.findings}, fail_on)))


def shown(report: "Report", trained: "Trained", fmt: Format) -> str:
    from smoldiag.render import json, markdown, steps

    if fmt is Format.JSON:
        return json.document(report)
    if fmt is Format.MARKDOWN:
        return markdown.report(report)
    return printed(steps.run(report, trained.run, trained.budget), colour=True)
