"""CKP: what the reference trainer shows when it stops and goes on."""

import math
from collections.abc import Iterator

from smoldiag.facts.probes import Probes, Resume
from smoldiag.findings import Finding, Fix, Severity, Where
from smoldiag.rules import NotKnown, rule

FIRST_STEP = 1e-3  # relative: the first loss after the checkpoint is a forward pass of the same weights and data
LATER_STEPS = 2e-2  # relative: backward passes on GPUs add in an order of their own


def resumed(probes: Probes) -> tuple[Resume, ...]:
    if probes.resume is None:
        raise NotKnown("no training was resumed (--trainer)")
    if probes.resume and probes.resume[0].skipped:
        raise NotKnown(probes.resume[0].skipped)
    return probes.resume[:1]  # all ranks of a run have the same losses


@rule("CKP040", Severity.ERROR)
def training_does_not_resume(probes: Probes) -> Iterator[Finding]:
    """The reference trainer could not write its checkpoint, or not go on from it.

    Fix: name a folder that all hosts share and may write (--path).
    """
    for r in resumed(probes):
        if r.error:
            yield Finding(
                message=f"training does not resume: {r.error}",
                cause="checkpoint-not-readable",
                severity=Severity.ERROR,
                where=Where(hosts=(r.device.host,)),
                evidence=(probes.seen(r.error),),
                why="a run that can't go on from its checkpoint is lost with the first host that fails",
                fixes=(
                    Fix(do="name a folder that all hosts share and may write", command="smoldiag preflight --path DIR"),
                ),
                confirm="smoldiag preflight --trainer --path DIR",
            )


@rule("CKP041", Severity.ERROR)
def losses_differ_after_resume(probes: Probes) -> Iterator[Finding]:
    """After a checkpoint was read, the losses are other ones than without the break.

    Weights, optimizer, learning rate or data order are not what they were: the reference trainer resumes exactly, so
    that storage or memory gave back something else than was written.

    Fix: check the file system and the memory of the hosts; repeat it with another folder.
    """
    for r in resumed(probes):
        apart = {step: (r.losses[step], loss) for step, loss in r.resumed.items() if step in r.losses}
        far = [s for s, (a, b) in apart.items() if _differ(a, b, FIRST_STEP if s == r.checkpoint_step else LATER_STEPS)]
        if far:
            before, after = apart[far[0]]
            yield Finding(
                message=f"after the checkpoint of step {r.checkpoint_step} the loss of step {far[0]} is {after:.6g}; "
                f"without the break it was {before:.6g}",
                cause="resume-not-exact",
                severity=Severity.ERROR,
                where=Where(hosts=(r.device.host,)),
                evidence=tuple(probes.seen(f"step {s}: {apart[s][0]:.6g}, resumed {apart[s][1]:.6g}") for s in far[:5]),
                why="a run that goes on from other numbers than it had is another run",
                fixes=(Fix(do="repeat it with another folder, and on other hosts"),),
                confirm="smoldiag preflight --trainer --path DIR",
                explains=("loss-jump",),
            )


def _differ(a: float, b: float, tolerance: float) -> bool:
    return not math.isfinite(b) or abs(a - b) > tolerance * max(abs(a), 1e-9)
