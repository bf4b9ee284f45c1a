"""The step monitor: where the time of each training step goes, on every rank. Two lines in any training program:

    from smoldiag import monitor
    monitor.install("RUN")

`RUN` is then a run folder as `smoldiag train` makes it: `smoldiag explain RUN`. A loop that knows its own phases takes
`Monitor`; Hugging Face's Trainer and Lightning take a callback of `smoldiag.monitor.callbacks`. A script that can't be
edited is run by `smoldiag run --monitor`.
"""

from smoldiag.monitor.clock import Monitor
from smoldiag.monitor.hooks import install, uninstall
from smoldiag.monitor.samples import Sampler

__all__ = ["Monitor", "Sampler", "install", "uninstall"]
