"""A rank that stays: it is given one job after the other, so that torch is imported once for all of them.

A job is a line of JSON on stdin: {"job": 3, "module": "benchmarks.pairs", "config": {...}, "members": [0, 4],
"group": true, "deadline_s": 10}. The module's `measure(me, config)` is run, where `me` is this rank among the
members (or alone, without a group), and what it returns is the answer. {"leave": true}, or the end of stdin, ends it.
"""

import importlib
import json
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from smoldiag import ranks


def main() -> None:
    ranks.stage("ready")
    ranks.record("versions", ranks.versions())
    ranks.record("ready", {})
    while line := sys.stdin.readline():  # not an iterator: it would read ahead, and a group reads lines of its own
        command = json.loads(line)
        if command.get("leave"):
            break
        if "module" in command:
            ranks.record("job", {"job": command["job"], **answer(command)})
    ranks.leave()


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the job's module has measured, or its error."""
    ranks.begin()
    ranks.stage(job["module"])
    began = time.monotonic()
    try:
        measure = importlib.import_module(job["module"]).measure
        if job["group"]:
            with ranks.group(job["members"], job=job["job"], deadline_s=job["deadline_s"]) as me:
                result = measure(me, job["config"])
        else:
            result = measure(ranks.alone(), job["config"])
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        return {"ok": False, "error": said[:2000], "seconds": time.monotonic() - began}
    return {"ok": True, "result": result, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
