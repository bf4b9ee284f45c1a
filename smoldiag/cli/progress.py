"""What a run is doing, on stderr: one live line on a terminal, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smoldiag.launch import Choice, Event

QUIET_S = 10.0  # between two lines of progress where nobody watches a terminal


@contextmanager
def shown(choice: Choice, *, plan: str, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Gives the function that takes the run's events."""
    if quiet:  # a joined rank that is not the reporting one
        yield lambda event: None
        return
    say(f"launcher {choice.launcher}: {choice.why}")
    say(plan)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        with console.status(Text("starting")) as status:
            yield lambda event: status.update(Text(event.text)) if event.passing else console.print(Text(event.text))
        return
    last = 0.0

    def plain(event: Event) -> None:
        nonlocal last
        if not event.passing or time.monotonic() - last >= QUIET_S:
            say(event.text)
            last = time.monotonic()

    yield plain


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
