"""Golden files: `pytest --update` rewrites them, `git diff` reviews them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

os.environ["SMOLDIAG_METADATA"] = "off"  # no test asks a cloud's metadata service
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    def check(name: str, text: str) -> None:
        path = ROOT / name
        if request.config.getoption("--update"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{name} is missing: run pytest --update"
        assert text == path.read_text(), f"{name} is stale: run pytest --update and review git diff"

    return check
