"""What a trainer or a board wrote of a run, row by row: speed, loss and when, against steps or tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

COLUMNS = (
    "step",
    "tokens",  # consumed so far
    "time_s",  # Unix time; of logs without a zone as if it were UTC
    "elapsed_s",  # since the run began
    "rank",
    "rate",  # throughput, in `rate_unit`
    "step_s",  # seconds that a step took
    "data_s",  # of them waiting for the loader
    "loss",
    "grad_norm",
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One run of one file. A None in a column: that row does not say; NaN is a value that was written."""

    where: str  # file:line of its first row
    name: str = ""  # of the run, as the file calls it
    source: str = "table"  # whose format it is: torchtitan, W&B export ...
    columns: Mapping[str, tuple[float | None, ...]]  # names of COLUMNS, all of one length
    rate_unit: str = ""  # tokens/s | tokens/s/GPU | samples/s | samples/s/GPU
    thinned: int = 1  # of so many rows one is kept

    @property
    def rows(self) -> int:
        return max((len(c) for c in self.columns.values()), default=0)

    def has(self, column: str) -> bool:
        return column in self.columns

    def column(self, name: str) -> tuple[float | None, ...]:
        return self.columns.get(name) or (None,) * self.rows

    @property
    def label(self) -> str:
        """The run's name, else the file's."""
        return self.name or self.where.rpartition(":")[0] or self.where
