"""What trainers and boards call the columns of their metrics -> the columns of a Series."""

import re
from dataclasses import dataclass

EXACT, LOOSE, UNKNOWN = 1, 2, 3  # how sure a name is; of one kind only the surest columns count

_RUN = re.compile(r"^(?:run|name|run[_ ]?name|experiment|label)$", re.IGNORECASE)
_STEP = re.compile(
    r"^#?\s*_?(?:(?:train(?:er)?|global|training)[_/ ])?(?:global[_ ]?)?(?:step|iteration|iter)s?$", re.IGNORECASE
)
_TOKENS = re.compile(
    r"^(?:(?:train|training|trainer)[_/ ])?(?:n|num[_ ]?)?(?:(?:consumed|input|total|trained|train|processed)[_ ])*"
    r"tokens?(?:[_ ](?:seen|consumed|total|count))?$",
    re.IGNORECASE,
)
_TIME = re.compile(r"^_?(?:timestamp|wall[_ ]?time|datetime|date|time)$", re.IGNORECASE)
_ELAPSED = re.compile(
    r"^(?:train/time|_?runtime|train[_ ]runtime|relative[_ ]time|elapsed(?:[_ ]?(?:time|s|sec|seconds))?)"
    r"(?:\s?\(s\))?$",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"^(?:curr)?[_ ]?(tokens?|samples?|images?|imgs?|sequences?|seqs?)[_ ]?(?:per|/)[_ ]?"
    r"(?:(gpu|device)[_ /](?:per[_ ])?)?s(?:ec(?:ond)?)?((?:[_ /](?:per[_ ])?(?:gpu|device))?)$",
    re.IGNORECASE,
)
_SHORT_RATE = re.compile(r"^(?:(?:throughput|tokens?)?\(?(tps|wps|tgs)\)?)$", re.IGNORECASE)
_LOOSE_RATE = re.compile(r"^throughput\b|^throughput_|_throughput$", re.IGNORECASE)
_NOT_A_RATE = re.compile(r"flops|flop/s|running|avg|average|bandwidth|\bgb", re.IGNORECASE)
_STEP_TIME = re.compile(
    r"^(?:(?:avg|mean|elapsed|train)[_ ])?(?:step|iter(?:ation)?|batch)[_ ]?time(?:[_ ]per[_ ]step)?"
    r"[_ ]?(?:in[_ ])?\(?(ms|us|s|sec|seconds)?\)?$|"
    r"^(?:time|s|sec|seconds)[_ ]?(?:/|per)[_ ]?(?:step|it|iteration)$|"
    r"^elapsed[_ ]time[_ ]per[_ ]iteration[_ ]?\(?(ms)\)?$|^step_(us|ms|s)$|^end_to_end\((s)\)$",
    re.IGNORECASE,
)
_DATA_TIME = re.compile(
    r"^(?:data(?:loader|_?loading)?|load)[_ ]?(?:time|wait|loading)?[_ ]?\(?(ms|us|s)?\)?$", re.IGNORECASE
)
_LOSS = re.compile(
    r"^(?:(?:lm|train(?:ing)?|global[_ ]avg|avg|mean)[_ ])?loss(?:[_ ]step)?$|^cross[_ ]?entropy(?:[_ ]loss)?$",
    re.IGNORECASE,
)
_LOOSE_LOSS = re.compile(r"(?:^|[^a-z])loss(?:$|[^a-z])", re.IGNORECASE)
_NOT_THE_LOSS = re.compile(r"eval|val|test|scale|max|aux|z[_ ]?loss|epoch|min\b|std|balanc|packet|lost", re.IGNORECASE)
_GRAD = re.compile(r"^(?:(?:global|total)[_ ])?grad(?:ient)?s?[_ ]?norm$", re.IGNORECASE)
_RANK = re.compile(r"^(?:global[_ ])?rank$", re.IGNORECASE)
_GROUPED = re.compile(r"^[A-Za-z]\w*(?:/\w+)*/[^/]+$")  # train/loss, time_metrics/end_to_end(s)
_AFTER = re.compile(r"\s+\(.*$")  # words in brackets behind a name
_FACTORS = {"ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """`kind` is a column of Series, or `run`, `?` (a number of some kind)."""

    kind: str
    run: str = ""  # what stands before the metric: `run 7 - loss`
    factor: float = 1.0
    unit: str = ""
    sure: int = EXACT


def meaning(title: str) -> Meaning | None:
    """None for what boards add (the least and most of each point), and for names that are surely something else."""
    title = title.strip().strip('"').strip()
    if not title or title.endswith(("__MIN", "__MAX")):
        return None
    run, _, name = title.rpartition(" - ")
    whole = name.strip()
    name = _AFTER.sub("", whole) if not _STEP_TIME.match(whole) else whole
    if _RUN.match(name):
        return Meaning(kind="run")
    parts = [name, name.rpartition("/")[2]] if _GROUPED.match(name) else [name]
    for part in parts:
        if found := _exact(part):
            return Meaning(kind=found.kind, run=run, factor=found.factor, unit=found.unit)
    if _NOT_A_RATE.search(name):
        return None
    if _LOOSE_RATE.search(name):
        return Meaning(kind="rate", run=run or name, sure=LOOSE)
    if _LOOSE_LOSS.search(name):
        known = not _NOT_THE_LOSS.search(name)
        return Meaning(kind="loss", run=run or name, sure=LOOSE) if known else None
    return Meaning(kind="?", run=run or name, sure=UNKNOWN)


def _exact(name: str) -> Meaning | None:
    for kind, pattern in (("step", _STEP), ("tokens", _TOKENS), ("elapsed_s", _ELAPSED), ("time_s", _TIME)):
        if pattern.match(name):
            return Meaning(kind=kind)
    if _RANK.match(name):
        return Meaning(kind="rank")
    if match := _RATE.match(name):
        what = "tokens" if match[1].lower().startswith("token") else "samples"
        return Meaning(kind="rate", unit=f"{what}/s" + ("/GPU" if match[2] or match[3] else ""))
    if match := _SHORT_RATE.match(name):
        return Meaning(kind="rate", unit="tokens/s/GPU" if match[1].lower() in ("tps", "tgs") else "tokens/s")
    if name.lower() == "throughput":
        return Meaning(kind="rate")  # of what, it does not say
    if match := _STEP_TIME.match(name):
        return Meaning(kind="step_s", factor=_FACTORS.get(next((g for g in match.groups() if g), ""), 1.0))
    if (match := _DATA_TIME.match(name)) and name.lower() not in ("data", "load"):
        return Meaning(kind="data_s", factor=_FACTORS.get(match[1] or "", 1.0))
    if _LOSS.match(name):
        return Meaning(kind="loss")
    if _GRAD.match(name):
        return Meaning(kind="grad_norm")
    return None
