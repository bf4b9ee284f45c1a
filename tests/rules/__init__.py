"""For each rule facts that it flags and facts that it passes: a module per family, each with its `CASES`.

A case: the code, the facts (a Known, a Host, a Cluster, a Bench ...), the severities of what the rule finds.
"""

import importlib
import pkgutil

from tests.rules.known import Facts

CASES: list[tuple[str, Facts, list[str]]] = [
    case
    for module in pkgutil.iter_modules(__path__)
    for case in getattr(importlib.import_module(f"{__name__}.{module.name}"), "CASES", ())
]
