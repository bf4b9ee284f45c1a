"""The cause is found first in what each source prints of it; healthy logs stay without a finding."""

import pytest

from smoldiag import rules
from smoldiag.findings import Severity, ranked
from smoldiag.parse import log
from smoldiag.rules import Known
from tests.causes import FAILED, HEALTHY

LOG_RULES = [r for r in rules.RULES.values() if r.code.startswith("LOG")]


def causes(text: str) -> list[str]:
    """Causes at warning or above, the most probable first."""
    known = Known(log=log.parse(text))
    outcomes = list(rules.run(known, LOG_RULES))
    assert not any(o.crashed for o in outcomes), [o.crashed for o in outcomes if o.crashed]
    found = ranked(tuple(f for o in outcomes for f in o.findings))
    return [f.cause for f in found if f.severity is not Severity.INFO]


@pytest.mark.parametrize(("cause", "text"), FAILED, ids=[f"{c}-{i}" for i, (c, _) in enumerate(FAILED)])
def test_the_cause_is_first(cause: str, text: str) -> None:
    assert causes(text)[:1] == [cause]


@pytest.mark.parametrize("text", HEALTHY, ids=range(len(HEALTHY)))
def test_healthy_logs_have_no_finding(text: str) -> None:
    assert causes(text) == []
