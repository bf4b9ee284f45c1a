"""ENV: names that nothing reads, or not this release."""

import re
from collections.abc import Iterator

from smoldiag.facts import Env, Variable
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.knowledge import variables
from smoldiag.rules import rule
from smoldiag.rules.env_reading import (
    TORCH_OF_NCCL,
    Setting,
    Versions,
    finding,
    remove,
    replace_by,
    settings,
    sources,
)

# families whose table is complete enough to say that a name is in no release
COMPLETE = ("NCCL_", "TORCH_NCCL_", "OFI_NCCL_")
# of images, builds and scripts around NCCL: no library is meant to read them
BUILD = re.compile(
    r"NCCL_TESTS?_\w+|\w+_(PATH|HOME|DIR|ROOT|PREFIX|VERSION|VER|BRANCH|TAG|COMMIT|REPO|URL|IMAGE|CONTAINER|LIB|LIBS|INCLUDE)"
)
NOBODY = "nobody"  # names of the table that no library reads
SILENT = "NCCL never reports names that it does not know (src/misc/param.cc reads only those that it asks for)"

NOT_TAKEN = "NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=ENV: NCCL prints each variable that it takes; this one is not there"


@rule("ENV001", Severity.WARNING)
def misspelt_variable(env: Env) -> Iterator[Finding]:
    """A variable's name is misspelt, so that nothing reads it.

    No library complains about a name that it does not know: what the variable was meant to change
    stays as it was, and who set it believes otherwise.

    Fix: set the name that was meant, or remove the variable.
    """
    for v in env:
        meant = variables.misspelt(v.name)
        if meant is None or (not v.name.upper().startswith(COMPLETE) and env.find(meant.name)):
            continue
        known = meant.component in ("nccl", "torch", "gloo")
        yield Finding(
            message=f"{v.name} is no variable that anything reads; {meant.name} was probably meant",
            cause="variable-typo",
            subject=v.name,
            confidence=Confidence.CERTAIN if known and v.name.upper().startswith(COMPLETE) else Confidence.LIKELY,
            evidence=env.evidence(v.name),
            why=f"the value {v.value!r} has no effect; {meant.name}: {meant.does[0].lower()}{meant.does[1:]}",
            fixes=(replace_by(v, v.value.strip(), name=meant.name, scripted=not env.complete), _leave_out(v, env)),
            confirm=NOT_TAKEN,
            sources=(SILENT, *sources(meant)),
        )


@rule("ENV002", Severity.INFO)
def unknown_variable(env: Env) -> Iterator[Finding]:
    """A variable of NCCL's or torch's family is in no release that we know.

    Newer releases and plugins bring new names, so it may well be read; names out of old advice or
    made up are not, and say nothing.

    Fix: remove it, unless the documentation of what you run names it.
    """
    for v in env:
        spec = variables.find(v.name)
        if (
            BUILD.fullmatch(v.name)
            or not v.name.upper().startswith(COMPLETE)
            or variables.misspelt(v.name)
            or (spec and spec.component != NOBODY)
        ):
            continue
        near = None if spec else variables.nearest(v.name)
        hint = f"; the nearest name is {near.name} ({near.does[0].lower()}{near.does[1:]})" if near else ""
        message = f"{v.name} is in no release of NCCL, torch or a plugin that smoldiag knows{hint}"
        yield Finding(
            message=f"{v.name}: {spec.does[0].lower()}{spec.does[1:]}" if spec else message,
            cause="variable-unknown",
            subject=v.name,
            severity=Severity.INFO,
            confidence=Confidence.POSSIBLE,
            evidence=env.evidence(v.name),
            why="nothing warns about a name that is not read",
            fixes=(_leave_out(v, env),),
            confirm="NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=ENV: NCCL prints each variable that it takes",
            sources=(SILENT,),
        )


@rule("ENV003", Severity.WARNING)
def variable_of_another_release(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable is set that the release in use does not read.

    It was removed, or is newer than the library: it has no effect and no warning, and the next
    upgrade or downgrade may bring the effect back.

    Fix: remove it, or use what replaced it.
    """
    for s in settings(env, versions):
        yield from _removed(s)
        if variables.is_missing_yet(s.spec, s.version):
            yield finding(
                s,
                f"{s.name} has no effect: {s.release} does not read it, it came with {s.spec.since}",
                cause="variable-too-new",
                why="what it was meant to change stays as it was",
                fixes=(remove(s.variable, scripted=s.scripted), Fix(do=f"or upgrade to {s.spec.since} or newer")),
                confirm="NCCL_DEBUG=INFO prints the release (`NCCL version`) and the variables that it takes",
            )


def _removed(s: Setting) -> Iterator[Finding]:
    gone = variables.is_removed(s.spec, s.version)
    if gone is False:
        return
    if gone and s.version:
        message = f"{s.name} has no effect: {s.release} does not read it, it was removed in {s.spec.removed}"
    elif gone:
        message = f"{s.name} has no effect: NCCL removed it in {s.spec.removed}, and {TORCH_OF_NCCL}"
    else:
        when = f"in {s.spec.removed}" if variables.release(s.spec.removed) else "in some release"
        message = f"{s.name} has no effect in new releases: {s.spec.component} removed it {when}"
    heir = f"; {s.spec.instead} took its place" if s.spec.instead else ""
    yield finding(
        s,
        message + heir,
        cause="variable-obsolete",
        severity=Severity.WARNING if gone else Severity.INFO,
        confidence=Confidence.POSSIBLE if not gone else Confidence.CERTAIN if s.version else Confidence.LIKELY,
        why="what it was meant to change stays as it is without it",
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm=NOT_TAKEN,
    )


@rule("ENV004", Severity.INFO)
def deprecated_variable(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """A variable is still read, but under an old name.

    Old names go away with some later release, without a warning; where both names are set, the
    newer one counts.

    Fix: use the new name.
    """
    for s in settings(env, versions):
        if not variables.is_deprecated(s.spec, s.version) or s.spec.removed:
            continue
        after = f" (since {s.spec.deprecated})" if s.spec.deprecated != "unknown" else ""
        heir = s.spec.instead if s.spec.instead and variables.find(s.spec.instead) else ""
        yield finding(
            s,
            f"{s.name} is deprecated{after}" + (f": the name is now {heir}" if heir else ""),
            cause="variable-deprecated",
            severity=Severity.INFO,
            why=s.spec.does,
            fixes=(
                replace_by(s.variable, s.value, name=heir, scripted=s.scripted)
                if heir
                else remove(s.variable, scripted=s.scripted),
            ),
        )


def _leave_out(v: Variable, env: Env) -> Fix:
    return remove(v, scripted=not env.complete)
