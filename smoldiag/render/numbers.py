"""Numbers with their unit and as many digits as are meant; hosts and ranks folded."""

from smoldiag.model.folded import hosts as hosts
from smoldiag.model.folded import ranges as ranges


def gbs(value: float) -> str:
    """GB/s (1e9) with three significant digits, never in powers of ten."""
    if value >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 10_000 else f"{value:.0f}"
