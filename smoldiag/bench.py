"""nccl-bench before the run: the options as they were typed, and what the ranks are told to measure."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host, World
from smoldiag.facts.reference import Reference
from smoldiag.launch.ssh import parsed_hostfile, parsed_hosts
from smoldiag.model import fsdp
from smoldiag.model import sizes as message_sizes

DEFAULT_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
COLLECTIVES = (*DEFAULT_COLLECTIVES, "broadcast", "reduce", "all_to_all", "send_recv")
DTYPES = ("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64")
GROUPS = ("all", "intra", "inter")
VERDICT_BYTES = {"nccl": 2**30, "gloo": 16 * 2**20}
FREE_MEMORY_SHARE = 4  # a quarter of what is free, over the ranks of a host
MIN_HOSTS_FOR_SUSPECTS = 3
MAX_FILE_BYTES = 64 * 2**20  # of a reference, a hostfile or a model's config.json


def named(text: str, *, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Names separated by commas, each of them known."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [n for n in names if n not in known]:
        raise SmoldiagError(f"{option} {unknown[0][:60]!r} is not known", hint=f"known: {', '.join(known)}")
    return names


def one_of(text: str, *, known: Sequence[str], option: str) -> str:
    names = named(text, known=known, option=option)
    if len(names) != 1:
        raise SmoldiagError(f"{option} {text[:60]!r} is not one of them", hint=f"known: {', '.join(known)}")
    return names[0]


def words(text: str, *, option: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise SmoldiagError(f"{option} {text[:60]!r}: {error}") from None


def known_profile(name: str | None) -> str | None:
    if name is not None:
        from smoldiag import profiles  # its tables are not needed otherwise

        profiles.find(name)
    return name


def hosts(typed: str, hostfile: Path | None) -> tuple[tuple[str, ...], int | None]:
    """The hosts that were named, and the ranks on each where a hostfile says so."""
    if typed and hostfile:
        raise SmoldiagError("--hosts and --hostfile are two ways to name hosts", hint="type one of them")
    if hostfile is None:
        return parsed_hosts(typed), None
    found, slots = parsed_hostfile(read(hostfile, option="--hostfile").decode("utf-8", "replace").splitlines())
    if not found:
        raise SmoldiagError(f"--hostfile {hostfile} names no host", hint="one host per line")
    return found, slots


def typed_sizes(text: str) -> tuple[int, ...] | None:
    try:
        return message_sizes.parse(text) if text else None
    except ValueError as error:
        raise SmoldiagError(f"--sizes: {error}", hint="8B:64MiB:x2, 1MiB:16MiB:+1MiB, or 1MiB,16MiB") from None


def typed_pairs(text: str) -> tuple[tuple[int, int], ...]:
    pairs = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        a, dash, b = part.partition("-")
        if not (dash and a.isdecimal() and b.isdecimal() and a != b and len(a + b) < 16):
            raise SmoldiagError(f"--pairs {part[:60]!r} is not a pair of ranks", hint="two different ranks: 0-8,1-9")
        pairs.append((int(a), int(b)))
    return tuple(pairs)


def read(path: Path, *, option: str) -> bytes:
    """A small file that a person named."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SmoldiagError(f"{option} {path}: larger than {message_sizes.human(MAX_FILE_BYTES)}")
        return path.read_bytes()
    except OSError as error:
        raise SmoldiagError(f"{option} {path}: {error.strerror}") from None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed, checked."""

    collectives: tuple[str, ...]
    sizes: tuple[int, ...] | None  # None: the default
    dtype: str
    budget_s: float
    iterations: int | None
    groups: tuple[str, ...]
    scale: bool
    pairs: tuple[tuple[int, int], ...]
    per_rank: bool
    step: fsdp.Step | None  # the collectives of a model's training step
    profile: str | None
    references: tuple[Reference, ...]

    def config(self, hosts: Sequence[Host], world: World, backend: str) -> dict[str, Any]:
        """What the ranks measure, now that hosts and backend are known."""
        largest = verdict_bytes(hosts, world, backend)
        if outside := [r for pair in self.pairs for r in pair if r >= world.ranks]:
            raise SmoldiagError(f"--pairs: there is no rank {outside[0]} among {world.ranks}")
        sweep = [] if self.step else [s for s in message_sizes.DEFAULT_SWEEP[backend] if s <= largest]
        return {
            "collectives": list(self.collectives),
            "sizes": list(self.sizes) if self.sizes else sweep,
            "typed_sizes": self.sizes is not None,
            "verdict_size": None if self.sizes else largest,
            "budget_s": self.budget_s,
            "iterations": self.iterations,
            "dtype": self.dtype,
            "groups": list(self.groups),
            "scale": self.scale,
            "sets": self.step.sets(world.ranks) if self.step else [],
            "pairs": [list(p) for p in self.pairs],
            "suspects": world.nodes >= MIN_HOSTS_FOR_SUSPECTS,
            "per_rank": self.per_rank,
        }


def verdict_bytes(hosts: Sequence[Host], world: World, backend: str) -> int:
    """The size that the verdict rests on: the backend's, at most a quarter of the memory that is free per rank."""
    if backend == "nccl":
        free = [g.memory_free_bytes for h in hosts for g in h.gpus or () if g.memory_free_bytes]
    else:
        free = [h.memory_free_bytes // max(world.ranks_per_node, 1) for h in hosts if h.memory_free_bytes]
    limit = min(free, default=VERDICT_BYTES[backend] * FREE_MEMORY_SHARE) // FREE_MEMORY_SHARE
    size = VERDICT_BYTES[backend]
    while size > limit and size > 8:
        size //= 2
    return size


def read_references(named_file: Path | None, site: str | None) -> tuple[Reference, ...]:
    """This site's own figures: the file that was named, else the folder of the site."""
    from smoldiag.model import expected

    if named_file:
        return expected.parse_references(read(named_file, option="--reference"), where=str(named_file))
    if not site:
        return ()
    files = sorted(Path(site).glob("*.json"))
    return tuple(r for f in files for r in expected.parse_references(read(f, option="SMOLDIAG_SITE"), where=str(f)))


def step(*, model: str | None, params: str | None, layers: int | None, ddp_bucket_mb: float | None) -> fsdp.Step | None:
    """The training step whose collectives are to be measured, from what was typed."""
    if model and params:
        raise SmoldiagError("--fsdp and --params are two ways to name one model", hint="type one of them")
    if (params is None) != (layers is None):
        raise SmoldiagError("--params and --layers go together", hint="e.g. --params 3e9 --layers 36")
    if not model and not params:
        if ddp_bucket_mb is not None:
            raise SmoldiagError(
                "--ddp-bucket-mb needs a model", hint="e.g. --fsdp SmolLM3-3B, or --params 3e9 --layers 36"
            )
        return None
    if model:
        return fsdp.Step(model=_model(model), ddp_bucket_mb=ddp_bucket_mb)
    assert params is not None
    assert layers is not None
    flat = fsdp.Flat(name=f"{params} parameters", params=_parameters(params), layers=layers)
    return fsdp.Step(model=flat, ddp_bucket_mb=ddp_bucket_mb)


def _model(text: str) -> fsdp.Model:
    path = Path(text)
    try:
        if path.is_dir():
            path = path / "config.json"
        if path.suffix != ".json":
            return fsdp.find(text)
        config = msgspec.json.decode(read(path, option="--fsdp"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        return fsdp.from_config(config, path.resolve().parent.name or "model")
    except (ValueError, msgspec.DecodeError) as error:
        raise SmoldiagError(f"--fsdp {text[:80]}: {error}") from None


def _parameters(text: str) -> int:
    factor = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 1)
    try:
        value = float(text[:-1] if factor != 1 else text) * factor
        if 1 <= value <= 1e14:
            return int(value)
    except ValueError:
        pass
    raise SmoldiagError(f"--params {text[:40]!r} is no number of parameters", hint="e.g. 3e9, 3B or 135M")
