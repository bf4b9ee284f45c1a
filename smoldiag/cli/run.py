"""`smoldiag run`: any command, with the evidence on; at its end, what the evidence says."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smoldiag.cli.common import printed

SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
EXAMPLES = """\b
Examples:
  smoldiag run -- torchrun --nproc-per-node 8 train.py           logs, Flight Recorder dumps, facts; then explain
  smoldiag run --monitor -- torchrun --nproc-per-node 8 train.py   and where the time of each step goes
  smoldiag run --output /shared/run1 -- srun -N 2 python train.py  a folder that all hosts see
  smoldiag run --print-env                                       just the lines, for a job script
"""


def run(
    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND ...", help="What to run.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder for the evidence; for several hosts one that all of them see.")
    ] = None,
    monitor: Annotated[bool, typer.Option("--monitor", help="Time the phases of each training step.")] = False,
    trace: Annotated[
        int, typer.Option(help="With --monitor: keep torch.profiler traces of this many steps.", min=0, max=100)
    ] = 0,
    trace_ranks: Annotated[str, typer.Option(help="The ranks whose traces are kept, e.g. 0,5.")] = "0",
    print_env: Annotated[bool, typer.Option("--print-env", help="Print the variables, and end.")] = False,
) -> None:
    """Run a command unchanged but with the evidence on, and say at its end what went wrong or took the time.

    Its output goes where it would go; the report comes on stderr. Exits as the command does, or with 2 where it
    could not be started.
    """
    import os
    import shlex
    import tempfile
    import time

    from smoldiag import evidence, runs
    from smoldiag.errors import SmoldiagError

    if trace and not monitor:
        raise SmoldiagError("--trace needs --monitor, which sees where a step begins")
    traced = evidence.Traced(steps=trace, ranks=runs.rank_numbers(trace_ranks))
    folder = (
        output or Path(tempfile.gettempdir()) / f"smoldiag-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    ).absolute()
    if print_env:
        for name, value in evidence.variables(folder, os.environ, monitor=False).items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"mkdir -p {shlex.quote(str(folder / evidence.NCCL))} {shlex.quote(str(folder / evidence.FLIGHT))}")
        return
    if not command:
        raise SmoldiagError("no command to run", hint="smoldiag run -- torchrun --nproc-per-node 8 train.py")
    code = evidence.run(command, folder, monitor=monitor, alone=not is_launcher(command), traced=traced)
    print(f"smoldiag: the command ended with exit code {code}; the evidence is in {folder}", file=sys.stderr)
    say(folder, failed=code != 0)
    raise typer.Exit(code)


LAUNCHERS = ("torchrun", "srun", "mpirun", "mpiexec", "deepspeed", "accelerate", "torch.distributed.run")


def is_launcher(command: list[str]) -> bool:
    """Whether it starts the ranks, and is none itself."""
    names = [Path(word).name for word in command[:4]]
    return any(name in LAUNCHERS for name in names)


def say(folder: Path, *, failed: bool) -> None:
    """What the evidence says, on stderr."""
    from smoldiag import explain, runs
    from smoldiag.errors import SmoldiagError
    from smoldiag.model import steps as model
    from smoldiag.render import explained, steps

    if (folder / runs.RUN_FILE).is_file():
        done = runs.read(folder)
        budget = model.budget(done)
        if budget:
            print(steps.headline(done, budget), file=sys.stderr)
            for line in steps.table(budget):
                print(line.plain, file=sys.stderr)
    try:
        result = explain.explain([str(folder)])
    except SmoldiagError as error:
        print(f"smoldiag: {error}", file=sys.stderr)
        return
    if failed or result.report.findings:
        sys.stderr.write(printed(explained.text(result), colour=False))
