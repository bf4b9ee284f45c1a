"""Is the clock of this host kept in time by a service?"""

import ctypes
import os
from pathlib import Path

from smoldiag.facts import Clock

STA_UNSYNC = 0x0040  # linux/timex.h: no service disciplines the clock
TIME_ERROR = 5
TIMEX_BYTES = 512  # struct timex has 208 on 64 bit
STATUS_AT = 40  # offsets of 64-bit Linux: modes, offset, freq, maxerror, esterror, status
MAXERROR_AT = 24
TIMESYNC = "run/systemd/timesync/synchronized"


def clock(root: Path) -> Clock:
    """adjtimex only reads here (modes = 0). A tree tells by the file of systemd-timesyncd, or not at all."""
    if root == Path("/") and os.uname().machine in ("x86_64", "aarch64"):
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(TIMEX_BYTES)
        state = libc.adjtimex(buffer)
        if state >= 0:
            status = int.from_bytes(buffer.raw[STATUS_AT : STATUS_AT + 4], "little")
            worst_us = int.from_bytes(buffer.raw[MAXERROR_AT : MAXERROR_AT + 8], "little")
            synchronised = state != TIME_ERROR and not status & STA_UNSYNC
            return Clock(synchronised=synchronised, uncertainty_s=worst_us / 1e6 if synchronised else None)
    synchronised_once = (root / TIMESYNC).exists()
    return Clock(synchronised=True if synchronised_once else None)
