"""How often `smoldiag explain` names the cause: over folders of cases with a known answer.

    python -m benchmarks.explain_score FOLDER [FOLDER...]

A case is a folder with a `label.json` (`root_cause`, perhaps `also_consistent_with`, `raw_files`, `evidence_in_raw`)
and the files that a person had. A finding counts from `warning` on; a case labelled `healthy` must have none.
Causes that `equivalent.json` beside the folder puts into one group count as the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoldiag.errors import SmoldiagError
from smoldiag.explain import explain
from smoldiag.findings import Severity

AMONG = 3
HEALTHY = "healthy"


@dataclass(frozen=True, kw_only=True)
class Scored:
    case: str
    wanted: str
    found: tuple[str, ...]  # causes at warning or above, the most probable first
    place: int | None  # of the right one, from 1
    certain_and_wrong: bool
    seconds: float
    problem: str = ""

    @property
    def false_alarm(self) -> bool:
        return self.wanted == HEALTHY and bool(self.found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print the hits, too")
    parser.add_argument("--json", action="store_true", help="one JSON object per folder instead of text")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        rows = [score(case, equivalents(folder)) for case in cases(folder)]
        if not rows:
            print(f"{folder}: no case with a label.json and files to read", file=sys.stderr)
            return 2
        if options.json:
            print(json.dumps(figures(rows) | {"folder": str(folder)}))
            continue
        for row in rows:
            if options.verbose or (row.place != 1 and row.wanted != HEALTHY) or row.false_alarm:
                print(line(row))
        print(f"{folder}: {summary(rows)}")
    return 0


def cases(folder: Path) -> Iterator[tuple[Path, dict[str, Any], list[Path]]]:
    """Each case with its label and files; those whose files lack the evidence are left out."""
    for label_file in sorted(folder.glob("*/label.json")):
        label = json.loads(label_file.read_text())
        raw = [label_file.parent / name for name in label.get("raw_files", ())]
        found = raw or [p for p in sorted(label_file.parent.rglob("*")) if p.is_file() and p != label_file]
        if found and label.get("evidence_in_raw", True):
            yield label_file.parent, label, found


def equivalents(folder: Path) -> list[set[str]]:
    for place in (folder, folder.parent):
        if (place / "equivalent.json").is_file():
            return [set(group) for group in json.loads((place / "equivalent.json").read_text())["groups"]]
    return []


def score(case: tuple[Path, dict[str, Any], list[Path]], groups: Sequence[set[str]]) -> Scored:
    folder, label, paths = case
    accepted = {label["root_cause"], *label.get("also_consistent_with", ())}
    accepted |= {slug for group in groups if group & accepted for slug in group}
    began = time.perf_counter()
    problem = ""
    try:
        findings = [f for f in explain([str(p) for p in paths]).report.findings if f.severity is not Severity.INFO]
    except SmoldiagError as error:
        findings, problem = [], str(error)
    causes = tuple(dict.fromkeys(f.cause for f in findings))
    return Scored(
        case=folder.name,
        wanted=label["root_cause"],
        found=causes,
        place=next((i for i, cause in enumerate(causes, 1) if cause in accepted), None),
        certain_and_wrong=bool(findings) and findings[0].confidence.value == "certain" and causes[0] not in accepted,
        seconds=time.perf_counter() - began,
        problem=problem,
    )


def figures(rows: Sequence[Scored]) -> dict[str, Any]:
    failed = [r for r in rows if r.wanted != HEALTHY]
    healthy = [r for r in rows if r.wanted == HEALTHY]
    return {
        "cases": len(failed),
        "first": sum(r.place == 1 for r in failed),
        "among": sum(r.place is not None and r.place <= AMONG for r in failed),
        "healthy": len(healthy),
        "false_alarms": sum(r.false_alarm for r in healthy),
        "certain_and_wrong": sum(r.certain_and_wrong for r in rows),
        "seconds": round(sum(r.seconds for r in rows), 2),
    }


def summary(rows: Sequence[Scored]) -> str:
    x = figures(rows)
    share = (lambda n: f"{n}/{x['cases']} ({n / x['cases']:.0%})") if x["cases"] else str
    return (
        f"first {share(x['first'])}, among {AMONG} {share(x['among'])}, "
        f"false alarms {x['false_alarms']}/{x['healthy']}, certain and wrong {x['certain_and_wrong']}, {x['seconds']} s"
    )


def line(row: Scored) -> str:
    mark = "false alarm" if row.false_alarm else "hit" if row.place == 1 or row.wanted == HEALTHY else "miss"
    place = f"at {row.place}" if row.place else row.problem or "not found"
    said = ", ".join(row.found[:5]) or "nothing"
    return f"{mark:12}{row.case:52} wanted {row.wanted} ({place}); said {said}"


if __name__ == "__main__":
    sys.exit(main())
