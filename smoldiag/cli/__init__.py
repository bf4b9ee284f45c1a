"""The command line: options in, a call, a rendering, an exit code. One file per command."""

import sys

import typer

from smoldiag.cli import (
    bundle,
    cloud,
    compare,
    doctor,
    env,
    explain,
    find_slow,
    nccl_bench,
    preflight,
    rule,
    run,
    start,
    topo,
    train,
)
from smoldiag.errors import SmoldiagError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Find out why training on more than one GPU is slow, hangs or dies.",
)
app.callback(invoke_without_command=True)(start.start)
app.command("nccl-bench", epilog=nccl_bench.EXAMPLES)(nccl_bench.nccl_bench)
app.command("preflight", epilog=preflight.EXAMPLES)(preflight.preflight)
app.command("find-slow", epilog=find_slow.EXAMPLES)(find_slow.find_slow)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("env", epilog=env.EXAMPLES)(env.env)
app.command("bundle", epilog=bundle.EXAMPLES)(bundle.bundle)
app.add_typer(cloud.app, name="cloud")
app.command("run", epilog=run.EXAMPLES, context_settings=run.SETTINGS)(run.run)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("topo", epilog=topo.EXAMPLES)(topo.topo)
app.command("rule")(rule.rule)


def main() -> None:
    try:
        app()
    except SmoldiagError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away (head, less)
        sys.stderr.close()
        sys.exit(1)
