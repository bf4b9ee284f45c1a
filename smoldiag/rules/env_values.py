"""ENV: values that are not read as they were typed, and values that change nothing."""

from collections.abc import Iterator

from smoldiag.facts import Env
from smoldiag.findings import Confidence, Finding, Severity
from smoldiag.knowledge import variables
from smoldiag.rules import rule
from smoldiag.rules.env_reading import (
    Setting,
    Trouble,
    Versions,
    finding,
    is_default,
    is_read,
    remove,
    replace_by,
    settings,
    trouble,
)

STRTOLL = "NVIDIA/nccl src/misc/param.cc: integers go through strtoll, what follows the digits is dropped"
PRINTED = "NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=ENV: NCCL prints what it took, e.g. `set by environment to 4`"
BEYOND = {  # what happens outside of the range, where that is known
    "NCCL_IB_TIMEOUT": "0, and everything from 32 on, wait for ever: a peer that is gone hangs the job",
    "NCCL_NTHREADS": "NCCL takes the most (512) or the fewest (64) instead, and says so only at INFO",
    "NCCL_LL128_NTHREADS": "NCCL takes the most (640) or the fewest (160) instead, and says so only at INFO",
    "NCCL_SOCKET_NTHREADS": "NCCL takes 16 where more are asked for",
    "NCCL_MAX_NCHANNELS": "NCCL has at most 64 channels, and at least 1",
    "NCCL_MAX_CTAS": "NCCL has at most 64 channels, and at least 1",
}


def _troubled(env: Env, versions: Versions | None, kind: str) -> Iterator[tuple[Setting, Trouble]]:
    for s in settings(env, versions):
        found = trouble(s)
        if found and found.kind == kind and is_read(s):
            yield s, found


@rule("ENV005", Severity.WARNING)
def value_that_is_read_as_another(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A number is read as another one than was typed.

    NCCL reads integers with C's strtoll: it stops at the first letter and says nothing. `4M` is 4,
    `true` is 0, a leading 0 means octal.

    Fix: write a plain integer.
    """
    for s, found in _troubled(env, versions, "misread"):
        by_nccl = s.spec.reads == "integer"
        is_size = s.spec.kind == "size"
        is_default = s.version is not None and variables.default_at(s.spec, s.version) == found.better
        taken = f"{s.text} is read as {found.taken}" + (" bytes" if is_size else "")
        reader = "NCCL" if by_nccl else "torch"
        yield finding(
            s,
            f"{taken}: {found.about}" if found.is_octal else f"{taken}, not as typed: {reader} drops {found.about!r}",
            cause="variable-value-misread",
            why=f"{s.name}: {s.spec.does[0].lower()}{s.spec.does[1:]}"
            + ("; a buffer of a few bytes can't carry a collective: init fails, or it hangs" if is_size else ""),
            fixes=(
                *(
                    (replace_by(s.variable, found.better, scripted=s.scripted),)
                    if found.better and not is_default
                    else ()
                ),
                remove(s.variable, scripted=s.scripted),
            ),
            confirm=PRINTED if by_nccl else "",
            sources=(STRTOLL, s.spec.source) if by_nccl else (s.spec.source,),
        )


@rule("ENV006", Severity.WARNING)
def value_that_is_ignored(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A value is none of those that are known, and is passed over in silence.

    NCCL compares levels and families letter by letter, capitals included; what it does not know
    leaves the default in force, without a warning.

    Fix: write one of the values that are read.
    """
    for s, found in _troubled(env, versions, "ignored"):
        readable = ", ".join(s.spec.choices) if s.spec.choices else s.spec.values
        yield finding(
            s,
            f"{s.text} has no effect: {s.release} does not know {found.about!r}; it reads {readable}",
            cause="variable-value-ignored",
            why="the default stays in force, without a warning",
            fixes=(
                replace_by(s.variable, found.better, scripted=s.scripted)
                if found.better
                else remove(s.variable, scripted=s.scripted),
            ),
            confirm=PRINTED if s.spec.component == "nccl" else "",
        )


@rule("ENV007", Severity.ERROR)
def value_that_is_refused(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A value is refused: creating the communicator or process group fails.

    NCCL 2.24 and later refuse an unknown word in NCCL_ALGO and NCCL_PROTO (blanks count), and torch
    raises on a switch that is none of its words.

    Fix: write one of the values that are read, or remove the variable.
    """
    for s, found in _troubled(env, versions, "refused"):
        by_nccl = s.spec.component == "nccl"
        sure = not by_nccl or s.version is not None
        who = s.release if sure else "NCCL 2.24 and later"
        says = "ncclInvalidUsage, `Unrecognized element token`" if by_nccl else "an exception"
        yield finding(
            s,
            f"{s.text}: {who} refuses {found.about!r} ({says}); it reads {_readable(s)}",
            cause="variable-value-refused",
            severity=Severity.ERROR if sure else Severity.WARNING,
            confidence=Confidence.CERTAIN if sure else Confidence.LIKELY,
            why="no communicator is made" if by_nccl else "init_process_group or the launcher raises",
            fixes=(
                *((replace_by(s.variable, found.better, scripted=s.scripted),) if found.better else ()),
                remove(s.variable, scripted=s.scripted),
            ),
        )


def _readable(s: Setting) -> str:
    if s.spec.choices:
        return ", ".join(s.spec.choices)
    return "1, true, yes, 0, false, no" if s.spec.reads == "torch-bool" else "an integer"


@rule("ENV008", Severity.WARNING)
def value_outside_its_range(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A number is outside of what its variable means anything for.

    Some are clamped without a word, some mean something else than more of the same.

    Fix: write a value of the range, or remove the variable.
    """
    for s, found in _troubled(env, versions, "range"):
        then = BEYOND.get(s.name, "")
        yield finding(
            s,
            f"{s.text} is out of range ({found.about})" + (f": {then}" if then else ""),
            cause="variable-value-out-of-range",
            why=f"{s.name}: {s.spec.does[0].lower()}{s.spec.does[1:]}",
            fixes=(remove(s.variable, scripted=s.scripted),),
        )


@rule("ENV009", Severity.INFO)
def value_that_equals_the_default(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable is set to what its reader takes anyway.

    It changes nothing today and goes stale: defaults move with releases, and the copy holds the
    old one in place.

    Fix: remove it.
    """
    for s in settings(env, versions):
        equal = is_default(s)
        if equal is False or not is_read(s) or s.spec.set_by or variables.is_deprecated(s.spec, s.version):
            continue
        if equal:
            message = f"{s.text} changes nothing: it is the default" + (f" of {s.release}" if s.version else "")
        else:
            since, _ = s.spec.defaults[-1]
            message = f"{s.text} changes nothing from {s.spec.component.upper()} {since} on, where it is the default"
        yield finding(
            s,
            message + _history(s),
            cause="variable-equals-default",
            severity=Severity.INFO,
            confidence=Confidence.CERTAIN if equal else Confidence.LIKELY,
            why="a copy of the default stays when the default moves",
            fixes=(remove(s.variable, scripted=s.scripted),),
        )


def _history(s: Setting) -> str:
    """What the default was before, and where it changes."""
    moves = [
        (variables.release(since) or (0, 0, 0), since, default or "by the machine")
        for since, default in s.spec.defaults
    ]
    now = s.version or moves[-1][0]
    at = max(i for i, (since, _, _) in enumerate(moves) if since <= now)
    before = [f"{moves[i][2]} before {moves[i + 1][1]}" for i in reversed(range(at))]
    after = [f"{moves[at + 1][2]} from {moves[at + 1][1]} on"] if at + 1 < len(moves) else []
    return f" ({', '.join([*before, *after])})" if before or after else ""


@rule("ENV010", Severity.WARNING)
def quotes_or_blanks_in_a_value(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A value holds quotes or blanks that its reader takes as part of it.

    nccl.conf, docker's --env-file and YAML keep them where a shell would not: `"mlx5_0"` matches no
    device, and a number in quotes is 0.

    Fix: write the value without them.
    """
    for s, found in _troubled(env, versions, "quoted"):
        yield finding(
            s,
            f"{s.name} has {found.about} in its value ({s.value!r}), which {s.release} takes as part of it",
            cause="variable-value-quoted",
            why="names with them match nothing, words are not known, numbers are 0",
            fixes=(replace_by(s.variable, found.better, scripted=s.scripted),),
            confirm=PRINTED if s.spec.component == "nccl" else "",
            sources=("NVIDIA/nccl src/misc/param.cc setEnvFile: a line is split at the first `=`, nothing is trimmed",),
        )
