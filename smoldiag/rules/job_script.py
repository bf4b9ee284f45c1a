"""JOB: what a job script says that loses a run, or leaves it blind."""

from collections.abc import Iterator

from smoldiag.facts import Evidence
from smoldiag.facts.script import Script
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.model import job_script as model
from smoldiag.rules import NotKnown, rule

MANY_NODES = 16  # a host of some thousand GPUs fails every few hours, of one in eight nodes once a month
SOME_EPOCHS = 1.05  # more passes than one by rounding
TRACKERS = (
    "wandb",
    "tensorboard",
    "mlflow",
    "trackio",
    "comet",
    "neptune",
    "clearml",
    "swanlab",
    "aim",
    "metrics",
    "report_to",
)
EVALUATES = ("eval", "valid", "lighteval", "lm_eval", "test_split")
HOURS = 3600.0


def trained(script: Script) -> None:
    if not model.training(script):
        raise NotKnown("no command in the script is known to start training")


def paths(script: Script) -> dict[str, model.Option]:
    found = model.checkpoint_paths(script)
    if not found:
        raise NotKnown("the script does not say where checkpoints go")
    return found


def seen(script: Script, line: int, text: str) -> tuple[Evidence, ...]:
    return (Evidence(text=text[:200], where=f"{script.file}:{line}" if line else script.file),)


@rule("JOB001", Severity.ERROR)
def checkpoints_are_deleted(script: Script) -> Iterator[Finding]:
    """A command of the script removes the folder of the checkpoints, or one above it.

    Before training it removes what a restart would go on from; after it, what the run was for. It is harmless where
    the checkpoints were copied elsewhere before.

    Fix: remove that line, or write checkpoints elsewhere.
    """
    for folder, option in paths(script).items():
        for d in model.deletions(script):
            if not model.covers(d.path, folder) or model.copied(script, folder, before=d.line):
                continue
            yield Finding(
                message=f"line {d.line} deletes {d.path}; checkpoints go to {folder}"
                + (" (within an if)" if d.guarded else ""),
                cause="checkpoint-deleted",
                subject=d.path,
                severity=Severity.INFO if d.guarded else Severity.ERROR,
                confidence=Confidence.POSSIBLE if d.guarded else Confidence.CERTAIN,
                evidence=(*seen(script, d.line, d.text), *seen(script, option.line, f"{option.name} {option.value}")),
                why="a job that starts again begins at zero, or its result is gone",
                fixes=(Fix(do=f"remove line {d.line}, or delete only what is older than the newest checkpoint"),),
                confirm=f"ls {folder} after the job has started again",
            )


@rule("JOB002", Severity.WARNING)
def checkpoints_stay_on_the_node(script: Script) -> Iterator[Finding]:
    """Checkpoints go to a folder of the node itself, and nothing copies them away.

    They are lost with the node, often with the job; on several nodes each holds only its part.

    Fix: write to a shared file system, or copy each checkpoint to one as soon as it is written.
    """
    nodes = model.num_nodes(script)
    for folder, option in paths(script).items():
        if not model.NODE_LOCAL.match(folder) or model.copied(script, folder, before=1 << 30):
            continue
        harmless = nodes == 1 and not model.LOST_AT_THE_END.match(folder)
        yield Finding(
            message=f"checkpoints go to {folder}, which every node has for itself",
            cause="checkpoint-node-local",
            severity=Severity.INFO if harmless else Severity.WARNING,
            confidence=Confidence.LIKELY,
            evidence=seen(script, option.line, f"{option.name} {option.value}"),
            why="a node that fails takes its part with it, and the rest can't be read without it",
            fixes=(Fix(do="write to a shared file system, or copy each checkpoint to one when it is complete"),),
            confirm=f"findmnt -T {folder} on a node",
        )


@rule("JOB003", Severity.WARNING)
def restart_begins_at_zero(script: Script) -> Iterator[Finding]:
    """A job that is started again after a failure begins at step zero.

    Nothing in the script loads a checkpoint, or an option says to start from nothing.

    Fix: load the newest checkpoint at the start: --load (Megatron-LM), --resume_from_checkpoint (transformers).
    """
    trained(script)
    requeue = model.directive(script, "requeue")
    overwrites = next((o for o in model.options(script) if o.name == "overwrite_output_dir" and model.is_on(o)), None)
    off = model.resume_is_off(script) or (None if model.resumes(script) else overwrites)
    if off:
        why, line, text = f"--{off.name} {off.value or ''}".strip() + " starts from nothing", off.line, f"--{off.name}"
    elif model.resumes(script) or model.resumes_by_itself(script):
        return
    elif not model.described(script):
        raise NotKnown("how the run resumes is not said by options of the script")
    else:
        why, text = "nothing in the script loads a checkpoint", "--requeue" if requeue else "the training command"
        line = requeue.line if requeue else model.training(script)[0].line
    yield Finding(
        message=why + (", and the job is started again after a failure" if requeue else ""),
        cause="restart-from-zero",
        severity=Severity.WARNING if requeue or overwrites else Severity.INFO,
        confidence=Confidence.LIKELY if off or model.framework(script) == "megatron" else Confidence.POSSIBLE,
        evidence=seen(script, line, text),
        why="a run of days that begins at zero after each failure never ends",
        fixes=(
            Fix(do="load the newest checkpoint: --load DIR (Megatron-LM), --resume_from_checkpoint (transformers)"),
        ),
        confirm="smoldiag preflight --trainer",
    )


@rule("JOB004", Severity.INFO)
def nothing_evaluates(script: Script) -> Iterator[Finding]:
    """Nothing in the script evaluates the model while it trains.

    The loss alone does not show a broken tokenizer, a wrong mixture or forgotten abilities.

    Fix: evaluate every few thousand steps: a validation set, or a job started for each checkpoint.
    """
    trained(script)
    off = next((o for o in model.options(script) if _is_off(o)), None)
    if off is None and not model.described(script):
        raise NotKnown("whether the run evaluates is not said by options of the script")
    words = [w.lower() for c in script.commands for w in c.words]
    if off or not any(word in w for w in words for word in EVALUATES):
        yield Finding(
            message=f"--{off.name} {off.value} turns evaluation off" if off else "nothing in the script evaluates",
            cause="no-evaluation",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=seen(script, off.line if off else 0, f"--{off.name} {off.value}" if off else "no option of it"),
            why="what goes wrong with the data shows in evaluations, weeks before it shows in the loss",
            fixes=(Fix(do="evaluate every few thousand steps, or start an evaluation for each checkpoint"),),
        )


def _is_off(o: model.Option) -> bool:
    text = (o.value or "").lower()
    if o.name in ("eval_iters", "limit_val_batches", "trainer.limit_val_batches"):
        return text in ("0", "0.0")
    return (o.name in ("eval_strategy", "evaluation_strategy") and text == "no") or (
        o.name == "do_eval" and text == "false"
    )


@rule("JOB005", Severity.INFO)
def no_metrics_are_kept(script: Script) -> Iterator[Finding]:
    """Nothing in the script keeps metrics where they can be looked at later.

    Fix: log loss, gradient norm, tokens/s and evaluations to a tracker: TensorBoard, Weights & Biases, Trackio ...
    """
    trained(script)
    off = next((o for o in model.options(script) if o.name == "report_to" and o.value == "none"), None)
    disabled = script.variables.get("WANDB_MODE") == "disabled" or script.variables.get("WANDB_DISABLED") == "true"
    if not off and not disabled and not model.described(script):
        raise NotKnown("whether metrics are kept is not said by options of the script")
    words = [*(w.lower() for c in script.commands for w in c.words), *map(str.lower, script.variables)]
    if off or disabled or not any(tracker in w for w in words for tracker in TRACKERS):
        said = "--report_to none" if off else "WANDB_MODE=disabled" if disabled else "no tracker is named"
        yield Finding(
            message=f"metrics are kept nowhere: {said}",
            cause="no-metrics",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=seen(script, off.line if off else 0, said),
            why="a run that diverged can't be understood from what was printed",
            fixes=(Fix(do="log loss, gradient norm and tokens/s to a tracker"),),
        )


@rule("JOB006", Severity.WARNING)
def more_tokens_than_data(script: Script) -> Iterator[Finding]:
    """The steps need more tokens than the data set has.

    The data is read again, or the run ends early with an error of its loader.

    Fix: fewer steps, a smaller batch, or say that several epochs are meant.
    """
    needed, data = model.tokens_needed(script), model.tokens_of_data(script)
    if needed is None or data is None:
        raise NotKnown("the script does not say both the tokens of its steps and those of its data")
    have, said = data
    if needed > SOME_EPOCHS * have and not model.value(script, "num_train_epochs", "epochs", "max_epochs"):
        yield Finding(
            message=f"the steps need {needed:.4g} tokens, the data has {have:.4g}: {needed / have:.3g} passes over it",
            cause="steps-exceed-data",
            confidence=Confidence.LIKELY,
            evidence=seen(script, 0, said),
            why="the data is repeated without a word, or the loader ends the run",
            fixes=(Fix(do=f"at most {int((model.steps(script) or 0) * have / needed):,} steps for one pass"),),
        )


@rule("JOB007", Severity.INFO)
def no_spare_node(script: Script) -> Iterator[Finding]:
    """A job of many nodes has none to spare.

    When a node fails, the job waits for it to be repaired, or goes back to the queue.

    Fix: ask for a node or two more, and start on those that preflight names: --need and --nodelist-file.
    """
    nodes = model.num_nodes(script)
    if nodes is None:
        raise NotKnown("the script does not say how many nodes it takes")
    wanted = model.value(script, "nnodes", "num_machines", "need")
    text = wanted.value if wanted and wanted.value else ""
    elastic = ":" in text
    fewer = text.isdigit() and int(text) < nodes
    if nodes >= MANY_NODES and not elastic and not fewer:
        yield Finding(
            message=f"all {nodes} nodes of the job are needed: none is spare",
            cause="no-spare-node",
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
            evidence=seen(script, 0, f"{nodes} nodes" + (f", --{wanted.name} {text}" if wanted else "")),
            why="one failed node stops the whole job until another one is found",
            fixes=(
                Fix(
                    do="ask for more and start on the good ones",
                    command=f"smoldiag preflight --nodes {nodes + 2} --need {nodes} --nodelist-file good.txt",
                ),
            ),
        )


@rule("JOB008", Severity.WARNING)
def only_the_last_step_is_saved(script: Script) -> Iterator[Finding]:
    """No checkpoint is written before the end of the run.

    Whatever ends the job before loses all of it: a failed node, the time limit.

    Fix: save every half hour or so.
    """
    if off := next((o for o in model.options(script) if o.name == "save_strategy" and o.value == "no"), None):
        yield _not_saved(script, "--save_strategy no: no checkpoint is written", off)
        return
    interval, steps = model.value(script, *model.SAVE_INTERVALS), model.steps(script)
    every = model.number(interval.value) if interval else None
    if interval is None or every is None or steps is None:
        raise NotKnown("the script does not say both its steps and how often it saves")
    if every >= steps:
        yield _not_saved(script, f"a checkpoint every {every:g} steps, of {steps:g} in all", interval)


def _not_saved(script: Script, message: str, option: model.Option) -> Finding:
    return Finding(
        message=message,
        cause="checkpoint-too-rare",
        confidence=Confidence.LIKELY,
        evidence=seen(script, option.line, f"{option.name} {option.value}"),
        why="whatever ends the job before its last step loses all of it",
        fixes=(Fix(do="save every half hour or so"),),
    )


@rule("JOB009", Severity.WARNING)
def time_limit_comes_first(script: Script) -> Iterator[Finding]:
    """The scheduler ends the job before the run ends itself.

    The run would save and exit by its own clock, and is killed before it looks at it.

    Fix: let the run end some minutes before the time limit.
    """
    limit, own = model.limit_s(script), model.value(script, "exit_duration_in_mins")
    minutes = model.number(own.value) if own else None
    steps, step = model.steps(script), model.step_s(script)
    if limit is None or (minutes is None and (steps is None or step is None)):
        raise NotKnown("the script does not say both its time limit and how long the run takes")
    if own and minutes is not None and minutes * 60 >= limit:
        yield Finding(
            message=f"the run ends itself after {minutes:g} min, the scheduler ends it after {limit / 60:g} min",
            cause="time-limit-first",
            evidence=seen(script, own.line, f"--{own.name} {own.value}"),
            why="all since the last checkpoint is lost",
            fixes=(Fix(do=f"--exit-duration-in-mins {max(int(limit / 60) - 15, 1)}"),),
        )
    elif steps is not None and step is not None and not model.resumes(script) and steps * step[0] > limit:
        yield Finding(
            message=f"{steps:g} steps of {step[0]:g} s take {steps * step[0] / HOURS:.3g} h, the time limit is "
            f"{limit / HOURS:.3g} h, and nothing resumes",
            cause="time-limit-first",
            confidence=Confidence.LIKELY,
            evidence=seen(script, 0, step[1]),
            why="the run never comes to its last step",
            fixes=(Fix(do="resume from checkpoints in a chain of jobs, or ask for more time"),),
        )
