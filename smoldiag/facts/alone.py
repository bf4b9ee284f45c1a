"""A collective of a training step beside the same one in a bench, where nothing else ran."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Beside:
    """All calls of one collective, size and number of ranks. Times in microseconds, bandwidths in GB/s."""

    name: str
    size_bytes: int
    ranks: int
    calls: float  # per step, or in the window of the trace
    transfer_us: float  # median, from when the last rank came
    alone_us: float | None  # of the bench; None: it has neither this size nor its neighbours
    busbw_gbs: float | None
    alone_busbw_gbs: float | None
    lost_us: float = 0.0  # per step, or in the window: what all calls took more than alone; 0 within noise
    between: tuple[int, int] | None = None  # sizes of the bench that `alone_us` was interpolated from


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What --bench says of a run or trace."""

    bench: str  # its file
    where: str  # run | trace
    step_us: float  # what `lost_us` is a part of: the step, or the window
    exposed_us: float | None  # of it, what is only communication; None: not known
    rows: tuple[Beside, ...]
