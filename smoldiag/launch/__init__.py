"""How programs reach the hosts of a job: engines that exist, one agent per host, a watchdog."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoldiag.launch.engines import choose, is_joined, is_silent, run
    from smoldiag.launch.request import Choice, Event, Finished, Request, Survey

__all__ = ["Choice", "Event", "Finished", "Request", "Survey", "choose", "is_joined", "is_silent", "run"]

_ENGINES = {"choose", "is_joined", "is_silent", "run"}


def __getattr__(name: str) -> Any:
    """Loaded when asked for: `ahead` runs before anything else of this package is needed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'engines' if name in _ENGINES else 'request'}"), name)
