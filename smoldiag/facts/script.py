"""A job script as far as it can be read without running it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Command:
    """A simple command: its words with the script's own variables put in, redacted. What only its run tells stays."""

    words: tuple[str, ...]
    line: int
    guarded: bool = False  # within an if


@dataclass(frozen=True, kw_only=True)
class Script:
    file: str
    commands: tuple[Command, ...] = ()  # in their order; #SBATCH lines are commands of sbatch
    variables: Mapping[str, str] = field(default_factory=dict)  # that it sets, exported or not
    comments: tuple[tuple[int, str], ...] = ()  # (line, text)
