"""What `dcgmi diag` said: its table, or its JSON (`-j`) of DCGM 1.7 to 4."""

import json
import re
from collections.abc import Iterator
from typing import Any

from smoldiag import redact

STATUSES = {"pass": "pass", "fail": "fail", "warn": "warn", "skip": "skip", "not run": "skip"}
WORST = ("fail", "warn", "pass", "skip")
MAX_REASON = 300  # characters
MAX_TESTS = 200

_ROW = re.compile(r"^\| (?! )(.{1,60}?)\s*\| (.*?)\s*\|\s*$")
_OF_GPUS = re.compile(r"^(?:GPUs?|GPU\(s\)):? ?#?([\d, ]+)", re.IGNORECASE)


def parse(text: str) -> dict[str, str]:
    """Test, or test:GPU -> pass | warn: why | fail: why | skip. Empty where it is no output of dcgmi diag."""
    found = list(_from_json(text)) if "{" in text else []
    merged: dict[str, str] = {}
    for name, status in found or _from_table(text):
        if len(merged) < MAX_TESTS and (name not in merged or _rank(status) < _rank(merged[name])):
            merged[name] = status
    return merged


def _rank(status: str) -> int:
    return WORST.index(status.partition(":")[0])


def _status(words: str) -> str | None:
    return next((status for start, status in STATUSES.items() if words.lower().strip().startswith(start)), None)


def _said(status: str, why: str) -> str:
    bad = status in ("fail", "warn") and why
    return f"{status}: {redact.text(why[:MAX_REASON])}" if bad else status


def _from_json(text: str) -> Iterator[tuple[str, str]]:
    """Warnings of dcgmi may stand before and behind the document."""
    try:
        document, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except (ValueError, RecursionError):
        return
    for test in _tests(document, depth=0):
        results = test.get("results")
        for result in results if isinstance(results, list) else []:
            status = _status(str(result.get("status", ""))) if isinstance(result, dict) else None
            if status:
                said = _said(status, _why(result.get("warnings")))
                yield str(test["name"])[:60], said
                for gpu in _gpus(result) if status != "pass" else ():
                    yield f"{str(test['name'])[:60]}:{gpu}", said


def _tests(node: Any, *, depth: int) -> Iterator[dict[str, Any]]:
    """Whatever the version calls the levels above."""
    if depth > 5:
        return
    if isinstance(node, dict):
        if "name" in node and "results" in node:
            yield node
        else:
            for value in node.values():
                yield from _tests(value, depth=depth + 1)
    elif isinstance(node, list):
        for value in node:
            yield from _tests(value, depth=depth + 1)


def _why(warnings: Any) -> str:
    listed = warnings if isinstance(warnings, list) else [warnings] if warnings else []
    return "; ".join(str(w.get("warning", w)) if isinstance(w, dict) else str(w) for w in listed[:3])


def _gpus(result: dict[str, Any]) -> Iterator[int]:
    """`entity_id` of DCGM 4, `gpu_id` or a list in `gpu_ids` before it. A test of the whole host names all of them."""
    if str(result.get("entity_group", "")).upper() == "GPU" and isinstance(result.get("entity_id"), int):
        yield result["entity_id"]
        return
    named = str(result.get("gpu_ids", result.get("gpu_id", "")))
    if named.isdigit() and len(named) < 4:
        yield int(named)


def _from_table(text: str) -> Iterator[tuple[str, str]]:
    """`| PCIe | Fail - GPU: 3 |`, then `| Warning | GPU 3 ... |` lines that say why."""
    last: tuple[str, str, list[int]] | None = None
    for line in text.splitlines():
        match = _ROW.match(line[:2000])
        if match is None:
            continue
        name, result = match[1].strip(" -"), match[2].strip()
        if name.lower() in ("warning", "error", "info") and last:
            if name.lower() != "info":
                yield from _table_rows(last[0], _said(last[1], result), last[2])
        elif status := _status(result):
            gpus = _OF_GPUS.match(result.partition(" - ")[2])
            numbers = [int(n) for n in re.findall(r"\d+", gpus[1])] if gpus else []
            if last:
                yield from _table_rows(*last)
            last = (name, status, numbers)
    if last:
        yield from _table_rows(*last)


def _table_rows(name: str, said: str, gpus: list[int]) -> Iterator[tuple[str, str]]:
    yield name, said
    for gpu in gpus if not said.startswith("pass") else ():
        yield f"{name}:{gpu}", said
