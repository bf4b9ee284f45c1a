"""`smoldiag rule`: the pages of the rules."""

from typing import Annotated

import typer

from smoldiag.errors import SmoldiagError


def rule(
    code: Annotated[str, typer.Argument(help="A rule's code, e.g. BWD001, or a family, e.g. BWD. Without: all.")] = "",
) -> None:
    """Say what a rule looks for, why, and how to fix it."""
    from smoldiag.rules import FAMILIES, RETIRED, RULES

    wanted = code.upper()
    if wanted in RULES:
        r = RULES[wanted]
        print(f"{r.code} {r.name}, at worst {r.severity.value}; reads {r.reads}\n\n{r.doc}")
        return
    listed = [r for r in RULES.values() if r.code.startswith(wanted)]
    if not listed or (wanted and wanted not in FAMILIES):
        families = sorted({r.code[:3] for r in RULES.values()})
        known = [c for c in RULES if c[:3] == wanted[:3]] or families
        raise SmoldiagError(f"no rule {code[:40]!r}", hint=RETIRED.get(wanted) or f"known: {', '.join(known)}")
    for r in listed:
        print(f"{r.code}  {r.severity.value:7}  {r.summary}")
