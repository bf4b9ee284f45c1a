"""One line of a trainer's log -> what it says of a step: time, throughput, loss. Of any trainer, several by name."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass, replace

from smoldiag.parse import log_origin, units

MAX_SHAPES = 10_000  # of lines that are kept
TIME_WITHIN = 120  # characters at whose start a line says when
MAYBE = re.compile(r"[sS]tep|STEP|[iI]ter|\bit\b|'epoch'")  # what a line has that may tell of a step

_STEP = re.compile(
    r"(?<![A-Za-z_])(?:global[_ ]?step|train[_ ]?step|steps?|iter(?:ation)?s?|it)[\s:=\[#]{1,12}(\d{1,9})"
    r"(?![\d.]*\s?(?:s|ms)\b)",
    re.IGNORECASE,
)
_RANK = re.compile(r"\[(?:default)?rank ?(\d{1,6})\]|\brank[ =:](\d{1,6})\b|\bcuda:(\d{1,3})\b", re.IGNORECASE)
_PER_STEP = re.compile(
    r"([\d.]{1,15})\s?(s|sec|secs|seconds|ms)\s?/\s?(?:step|it|iter|iteration|batch)\b", re.IGNORECASE
)
_PER_SECOND = re.compile(r"([\d.]{1,15})\s?(?:steps?|it|iters?|iterations?)\s?/\s?s(?:ec)?\b", re.IGNORECASE)
_STEP_TIME = r"(?:step|iter(?:ation)?|batch)[_ ]?time"
_IS = r"[\"']?\s?[:=]\s?([\d.]{1,15})"
_TIMED = (  # the words before a time of a step, and its unit in seconds
    (re.compile(r"elapsed_time_per_iteration_ms: ([\d.]{1,15})K"), 1.0),  # nanotron writes 1.25K
    (re.compile(r"elapsed[ _]time[ _]per[ _]iteration[ _]\(?ms\)?[:=] ?([\d.]{1,15})"), 1e-3),
    (re.compile(rf"{_STEP_TIME}(?:[_ ]?(?:in[_ ]?)?s| ?\(s\))?{_IS}(?![\d.]*\s?ms)", re.IGNORECASE), 1.0),
    (re.compile(rf"{_STEP_TIME}(?:[_ ]?ms| ?\(ms\))?{_IS}\s?ms?", re.IGNORECASE), 1e-3),
    (re.compile(r"Batch \(t\): ([\d.]{1,15})"), 1.0),  # open_clip
)
_DATA_TIME = r"(?<![a-z])(?:data(?:loader|loading|_loading|_wait)?(?:[_ ]?time)?|load[_ ]?time)"
_DATA = (
    (re.compile(r"Data \(t\): ([\d.]{1,15})"), 1.0),
    (re.compile(rf"{_DATA_TIME}(?:\(s\)|_s)?{_IS}(?![\d.]*\s?(?:ms|%|[KMG]?B))(?=\s?s?\b)", re.IGNORECASE), 1.0),
    (re.compile(rf"{_DATA_TIME}(?:[_ ]?ms|\(ms\))?{_IS}\s?ms", re.IGNORECASE), 1e-3),
)
_COUNT = r"[\"']?\s?[:=|]\s{0,2}([\d.,]{1,20})\s?([KMBT]?)\b"
_PER_S = r"(?:[_ ]?per[_ ]?sec(?:ond)?|\s?/\s?s(?:ec)?)"
_TOKENS_PER_S = rf"\b(?<!avg )tok(?:en)?s?{_PER_S}"
_SAMPLES_PER_S = rf"\b(?<!avg )(?:samples?|images?|imgs?|sequences?){_PER_S}"
_THROUGHPUTS = (  # of one line the first that it has; averages since the start say nothing of a step
    (re.compile(rf"tokens?_per_sec_per_gpu{_COUNT}|\bt[pg]s{_COUNT}|\(tgs\){_COUNT}", re.I), "tokens/s/GPU"),
    (re.compile(rf"CurrSamplesPerSec{_COUNT}"), "samples/s"),
    (re.compile(rf"{_TOKENS_PER_S}[_ /](?:per[_ ])?gpu{_COUNT}", re.I), "tokens/s/GPU"),
    (re.compile(rf"{_TOKENS_PER_S}{_COUNT}|\bwps{_COUNT}", re.I), "tokens/s"),
    (re.compile(rf"{_SAMPLES_PER_S}{_COUNT}", re.I), "samples/s"),
)
_NUMBER = r"([-+]?(?:\d[\d.]{0,20}(?:[eE][-+]?\d{1,3})?|nan|inf))\b"
_LOSS = re.compile(
    rf"(?<![A-Za-z_])(?:lm[ _]|train(?:ing)?[ _/]|global_avg_|avg[ _])?loss[\"']?\s?[:=]\s{{0,4}}[\"']?{_NUMBER}",
    re.IGNORECASE,
)
_PLAIN_LOSS = re.compile(r"\bloss (\d{1,4}\.\d{1,8})\b", re.IGNORECASE)
_GRAD = re.compile(rf"\bgrad(?:ient)?[ _]?norm[\"']?\s?[:=]\s{{0,4}}[\"']?{_NUMBER}", re.IGNORECASE)
_TOKENS = re.compile(r"\bconsumed[ _](?:train_)?tokens[\"']?\s?[:=]\s{0,12}([\d.,]{1,20})\s?([KMBT]?)\b", re.IGNORECASE)
_NOT_TRAINING = re.compile(r"\b(?:valid(?:ation|ate)?|eval(?:uation|uate)?|val[_ ]loss|test[_ ]loss)\b", re.IGNORECASE)
_US_DATE = re.compile(r"\b([01]\d)/([0-3]\d)/(20\d\d) ")  # nanotron's
_DICT = re.compile(
    r"'([\w/ ().%-]{1,60})': '?([-+]?(?:\d{1,20}(?:\.\d{0,20})?(?:e[-+]?\d{1,3})?|nan|inf))'?[,}]", re.IGNORECASE
)
_BIG = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_EPOCH = re.compile(r"'epoch'")
_ANYTHING = re.compile("")
_NO_DIGITS = {ord(d): None for d in "0123456789"}
_DICT_COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "step": "step",
    "num_input_tokens_seen": "tokens",
    "train_runtime": "elapsed_s",
}
_SOURCES = (
    ("torchtitan", re.compile(r"\btps: .*\bmfu: |\[titan\]")),
    ("nanotron", re.compile(r"consumed_tokens: .*elapsed_time_per_iteration_ms: ")),
    ("Megatron-LM", re.compile(r"consumed samples: .*elapsed time per iteration \(ms\): ")),
    ("DeepSpeed", re.compile(r"CurrSamplesPerSec=|iter time \(s\): .*samples/sec: ")),
)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A pattern whose first group that matched is the value of a column."""

    column: str
    pattern: re.Pattern[str]
    factor: float = 1.0
    unit: str = ""
    counted: bool = False  # 12.5K, 1,234
    inverse: bool = False  # per second
    millis: bool = False  # the unit stands behind it
    source: str = "log"


_PARTS = (  # of each line the first of an option
    (_Part(column="step", pattern=_STEP),),
    (
        _Part(column="step_s", pattern=_PER_STEP, millis=True),
        *(_Part(column="step_s", pattern=p, factor=f) for p, f in _TIMED),
        _Part(column="step_s", pattern=_PER_SECOND, inverse=True),
    ),
    tuple(_Part(column="rate", pattern=p, unit=u, counted=True) for p, u in _THROUGHPUTS),
    (_Part(column="loss", pattern=_LOSS), _Part(column="loss", pattern=_PLAIN_LOSS)),
    (_Part(column="grad_norm", pattern=_GRAD),),
    (_Part(column="tokens", pattern=_TOKENS, counted=True),),
    tuple(_Part(column="data_s", pattern=p, factor=f) for p, f in _DATA),
    (_Part(column="rank", pattern=_RANK),),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one line says; names of the columns of a Series."""

    values: dict[str, float]
    rate_unit: str = ""
    source: str = "log"


class Reader:
    """Reads lines; of those that differ in their digits alone it tries what the first of them had."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[_Part, ...]] = {}

    def line(self, text: str) -> Line | None:
        """None where it tells of no step."""
        shape = text.translate(_NO_DIGITS)
        parts = self._parts.get(shape)
        if parts is None:
            parts = _parts(text)
            if len(self._parts) < MAX_SHAPES:
                self._parts[shape] = parts
        if not parts:
            return None
        values: dict[str, float] = {}
        unit = ""
        for part in parts:
            match = part.pattern.search(text)
            if match is None:
                continue
            if part.column == "dict":
                values |= _of_dict(text)
            elif part.column == "time_s":
                at = log_origin.time_of(_US_DATE.sub(r"\3-\1-\2 ", text[:TIME_WITHIN]))
                values |= {} if at is None else {"time_s": at}
            elif (value := _value(match, part)) is not None:
                values[part.column] = value
                unit = part.unit or unit
        told = any(name in values for name in ("step_s", "rate", "loss"))
        known = told and ("step" in values or parts[0].column == "dict")
        return Line(values=values, rate_unit=unit, source=parts[-1].source) if known else None


def line(text: str) -> Line | None:
    """One line alone."""
    return Reader().line(text)


def _parts(text: str) -> tuple[_Part, ...]:
    """What a line has: of each column the first pattern that finds it. The last of them says whose format it is."""
    if not MAYBE.search(text) or _NOT_TRAINING.search(text):
        return ()
    if "'epoch'" in text and "'loss'" in text:
        return (_Part(column="dict", pattern=_EPOCH, source="Hugging Face Trainer"),)
    found = []
    for options in _PARTS:
        part = next((p for p in options if (m := p.pattern.search(text)) and _value(m, p) is not None), None)
        found += [part] if part else []
    columns = {p.column for p in found}
    if "step" not in columns or not columns & {"step_s", "rate", "loss"}:
        return ()
    if log_origin.time_of(_US_DATE.sub(r"\3-\1-\2 ", text[:TIME_WITHIN])) is not None:
        found.append(_Part(column="time_s", pattern=_ANYTHING))
    source = next((name for name, pattern in _SOURCES if pattern.search(text)), "log")
    return (*found[:-1], replace(found[-1], source=source))


def _value(match: re.Match[str], part: _Part) -> float | None:
    number, big = next(
        ((g, b) for g, b in zip(match.groups(), (*match.groups()[1:], None), strict=True) if g), ("", "")
    )
    if part.counted:
        value = units.number(number.strip(".,").replace(",", ""))
        return None if value is None else value * _BIG[(big or "").lower()]
    try:
        value = float(number.rstrip("."))
    except ValueError:
        return None
    if part.inverse:
        return 1 / value if value > 0 else None
    factor = 1e-3 if part.millis and (big or "").lower() == "ms" else part.factor
    return math.nan if math.isinf(value) else value * factor


def _of_dict(text: str) -> dict[str, float]:
    """{'loss': '4.07', 'grad_norm': '1.4', 'learning_rate': ...}: Hugging Face's Trainer; it does not say the step."""
    said: dict[str, str] = dict(_DICT.findall(text))
    values = {}
    for name, column in _DICT_COLUMNS.items():
        with suppress(KeyError, ValueError):  # a line that was damaged may say anything there
            value = float(said[name])
            values[column] = math.nan if math.isinf(value) else value
    return values
