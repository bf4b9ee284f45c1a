"""Logs by the cause that they carry: `tests/logs/causes.txt`."""

import re
from pathlib import Path

_TEXT = (Path(__file__).parent / "logs" / "causes.txt").read_text()
LISTED: list[tuple[str, str]] = [
    (cause, text) for cause, text in re.findall(r"^=== (\S+)\n(.*?)\n(?==== |\Z)", _TEXT, re.MULTILINE | re.DOTALL)
]
HEALTHY = [text for cause, text in LISTED if cause == "healthy"]
FAILED = [(cause, text) for cause, text in LISTED if cause != "healthy"]
CAUSES: dict[str, list[str]] = {}
for _cause, _log in FAILED:
    CAUSES.setdefault(_cause, []).append(_log)
