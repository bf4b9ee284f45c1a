"""How programs reach the hosts of a job: engines that exist, one agent per host, a watchdog."""

from smoldiag.launch.request import Choice, Event, Finished, Request, Survey
from smoldiag.launch.run import choose, is_joined, is_silent, run

__all__ = ["Choice", "Event", "Finished", "Request", "Survey", "choose", "is_joined", "is_silent", "run"]
