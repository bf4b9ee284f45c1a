"""Whether `smoldiag explain` and `compare` answer whatever they are given: files of a folder, mutated.

    python -m benchmarks.explain_fuzz FOLDER [FOLDER...] [--minutes 10] [--seed 1] [--deadline 20] [--keep DIR]

Each input is a file of the folders, or two of them, changed in bytes, lines, numbers, JSON values, length, encoding,
compression or name. It goes through `explain` and `compare` (with the file that it came from) and all that renders
their answers. A report or a sentence is right; a traceback, a crashed rule and an answer after the deadline are not.
Prints the number of inputs, hangs and tracebacks; exits with 1 where there was one. --keep has the inputs to blame.
"""

import argparse
import gzip
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from smoldiag import compare as comparing
from smoldiag.cli.common import printed
from smoldiag.errors import SmoldiagError
from smoldiag.explain import explain
from smoldiag.explained import Explained
from smoldiag.render import compared, explained, json

MAX_BYTES = 512 * 1024  # of an input: longer files are cut, so that many can be tried
COMPARED = 0.2  # of the inputs, which go through `compare` as well
MARKS = [
    "\r",
    "\x1b[31m",
    "\x00",
    "\ufffd",
    "[rank3]: ",
    "7: ",
    "[1,5]<stderr>:",
    "\t",
    " " * 50,
    "9" * 400,
    "%",
    "\u2588",
]
NUMBERS = ["0", "-1", "1e309", "nan", "9" * 30, "", "0x1f", "1.5.2", "9223372036854775808", "-0.0", "1_000", "\u0663"]
VALUES = ["null", "[]", "{}", '""', "true", "-1", "1e309", "[[]]", '{"a": null}', '"\\ud800"', "[" * 2000]
NAMES = [
    "log",
    "x.json",
    "x.csv",
    "run.json",
    "trace.json.gz",
    "rank_3",
    "job.sbatch",
    "dmesg.txt",
    "a.zip",
    "node1.log",
]


class Hang(BaseException):
    """The deadline is over. No `except Exception` of ours may take it for a broken rule."""


@dataclass
class Counted:
    inputs: int = 0
    reports: int = 0
    sentences: int = 0
    hangs: list[str] = field(default_factory=list)
    tracebacks: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--deadline", type=float, default=20.0, help="seconds of processor time that one input may take"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that were not answered")
    options = parser.parse_args(arguments)
    files = [p for folder in options.folders for p in sorted(folder.rglob("*")) if p.is_file()]
    if not files:
        print("no files in these folders", file=sys.stderr)
        return 2
    counted, until = Counted(), time.monotonic() + 60 * options.minutes
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "input")
        while time.monotonic() < until:
            work.mkdir()
            made = mutated(rng, files, work)
            other = made.origin if rng.random() < COMPARED else None
            problem = tried(made.path, counted, other, deadline_s=options.deadline)
            if problem:
                print(f"{made.how} of {made.origin}: {problem}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    shutil.move(made.path, options.keep / f"{counted.inputs}-{made.path.name}")
            shutil.rmtree(work)
    print(
        f"{len(files)} files, {counted.inputs} inputs: {counted.reports} reports, {counted.sentences} sentences; "
        f"{len(counted.hangs)} hangs, {sum(counted.tracebacks.values())} tracebacks "
        f"({len(counted.tracebacks)} different); slowest {counted.slowest_s:.1f} s of processor time"
    )
    return int(bool(counted.hangs or counted.tracebacks))


# -- one input


def tried(path: Path, counted: Counted, other: Path | None, *, deadline_s: float) -> str:
    """What is wrong with the answer; empty where nothing is."""
    began = time.process_time()
    counted.inputs += 1
    problem = ""
    try:
        with deadline(deadline_s):
            said = answered(path)
            if other is not None:
                for pair in ((path, other), (other, path)):
                    said = compared_with(*pair) or said
        counted.sentences += bool(said)
        counted.reports += not said
    except Hang:
        problem = f"no answer within {deadline_s:.0f} s"
        counted.hangs.append(str(path))
    except Exception:
        last = traceback.extract_tb(sys.exc_info()[2])[-1]
        problem = traceback.format_exc(limit=-4)
        counted.tracebacks[f"{last.filename}:{last.lineno}"] += 1
    counted.slowest_s = max(counted.slowest_s, time.process_time() - began)
    return problem


def answered(path: Path) -> str:
    """The sentence that `explain` said instead of a report. AssertionError where the answer is no good one."""
    try:
        found = explain([str(path)], with_facts=True)
    except SmoldiagError as error:
        return sentence(error)
    crashed = [c for c in found.report.checks if c.status.value == "crashed"]
    assert not crashed, crashed
    rendered(found)
    return ""


def rendered(found: Explained) -> None:
    """By all renderers."""
    for facts in (False, True):
        for everything in (False, True):
            printed(explained.text(found, facts=facts, everything=everything), colour=False)
    explained.markdown(found)
    json.document(found.report)


def compared_with(path: Path, other: Path) -> str:
    try:
        found = comparing.compare(str(path), str(other), with_facts=True)
    except SmoldiagError as error:
        return sentence(error)
    crashed = [c for c in found.report.checks if c.status.value == "crashed"]
    assert not crashed, crashed
    for everything in (False, True):
        printed(compared.text(found, everything=everything), colour=False)
    compared.markdown(found)
    json.document(found.report)
    return ""


def sentence(error: SmoldiagError) -> str:
    assert "\n" not in str(error), error
    return str(error)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Of processor time, as other programs may have the processor; of time on the clock ten times as much."""

    def over(number: int, frame: FrameType | None) -> None:
        raise Hang

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, over) for number, _, _ in timers]
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


# -- what inputs are made of


@dataclass(frozen=True)
class Made:
    path: Path
    origin: Path
    how: str


def mutated(rng: random.Random, files: Sequence[Path], folder: Path) -> Made:
    """A file of the folder, changed in one to four ways, under its own name or another kind's."""
    origin = rng.choice(files)
    data = _read(origin, rng)
    how = []
    for _ in range(rng.randrange(1, 5)):
        change = rng.choice(CHANGES)
        data = change(data, rng)[:MAX_BYTES]
        how.append(change.__name__)
    if rng.random() < 0.15:
        data, how = data + _read(rng.choice(files), rng), [*how, "joined"]
    if rng.random() < 0.05:
        data, how = gzip.compress(data)[: rng.randrange(20, len(data) + 100)], [*how, "packed"]
    name = origin.name if rng.random() < 0.7 else rng.choice(NAMES)
    run = next((p for p in origin.parents if (p / "run.json").is_file()), None)
    if run and rng.random() < 0.7:  # the whole run folder with one file changed
        path = folder / "run"
        shutil.copytree(run, path)
        (path / origin.relative_to(run)).write_bytes(data)
        return Made(path, run, f"{' '.join(how)} of {origin.name}")
    path = folder / name
    path.write_bytes(data)
    return Made(path, origin, " ".join(how))


def _read(path: Path, rng: random.Random) -> bytes:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b") and rng.random() < 0.8:
        data = gzip.decompress(data)
    start = rng.randrange(len(data) - MAX_BYTES) if len(data) > MAX_BYTES and rng.random() < 0.3 else 0
    return data[start : start + MAX_BYTES]


def cut(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice([data[:b], data[a:], data[a:b], data[:a] + data[b:]])


def bytes_flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 20)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def marked(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(MARKS).encode() + data[at:]
    return data


def lines_changed(data: bytes, rng: random.Random) -> bytes:
    """Some left out, some repeated, some in another place, some without their end."""
    lines = data.split(b"\n")
    for _ in range(rng.randrange(1, 8)):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                lines[i] = b""
            case 1:
                lines[i:i] = [lines[j]] * rng.choice([1, 3, 200])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case _:
                lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
    return b"\n".join(lines)


def numbers_changed(data: bytes, rng: random.Random) -> bytes:
    share = rng.choice([0.002, 0.02, 0.3])

    def another(match: re.Match[bytes]) -> bytes:
        return rng.choice(NUMBERS).encode() if rng.random() < share else match[0]

    return re.sub(rb"\d+(?:\.\d+)?", another, data)


def values_changed(data: bytes, rng: random.Random) -> bytes:
    share = rng.choice([0.002, 0.02, 0.2])

    def another(match: re.Match[bytes]) -> bytes:
        return match[1] + rng.choice(VALUES).encode() if rng.random() < share else match[0]

    return re.sub(rb'("\s{0,4}:\s{0,4})(?:"[^"\n]{0,200}"|-?[\d.]{1,20}|true|false|null|\[|\{)', another, data)


def words_swapped(data: bytes, rng: random.Random) -> bytes:
    words = data.split(b" ")
    for _ in range(rng.randrange(1, 30)):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    return b" ".join(words)


def coded_otherwise(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    match rng.randrange(5):
        case 0:
            return text.encode(rng.choice(["utf-16", "utf-16-le"]))
        case 1:
            return text.replace("\n", "\r\n").encode()
        case 2:
            return text.replace("\n", "\r").encode()
        case 3:
            return text.upper().encode()
        case _:
            return text.replace(" ", "").encode()


def repeated(data: bytes, rng: random.Random) -> bytes:
    return data * rng.choice([2, 3, 10])


Change = Callable[[bytes, random.Random], bytes]
CHANGES: tuple[Change, ...] = (
    cut,
    bytes_flipped,
    marked,
    lines_changed,
    numbers_changed,
    values_changed,
    words_swapped,
    coded_otherwise,
    repeated,
)


if __name__ == "__main__":
    sys.exit(main())
