"""A training run as its ranks recorded it, step by step. Times in microseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CollectiveCall:
    """One collective of one step on one rank."""

    name: str  # all_gather
    group: str  # its ranks: 0-3 | 0,2
    size_bytes: int
    entered_us: float  # since the step began
    stay_us: float  # in which this rank did nothing but wait for it
    phase: str  # the phase of the step that it was called in
    left_us: float | None = None  # since the step began: when this rank went on; None: entered_us + stay_us


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One step of one rank. `phases_us` are exclusive and add up to `step_us`."""

    rank: int
    step: int
    host: str = ""
    time: float = 0.0  # Unix time at its start
    step_us: float
    phases_us: Mapping[str, float]
    device_us: Mapping[str, float] | None = None  # the same phases on the GPU's clock
    collectives: tuple[CollectiveCall, ...] = ()
    spans: tuple[tuple[str, float, float], ...] = ()  # the phases in their order: name, start in the step, length
    cpu_us: float | None = None  # that this rank's main thread ran
    delay_us: float | None = None  # that it could run and had no processor
    window_us: Mapping[str, float] | None = None  # of a profiled step: compute, communication, exposed, memory, idle
    alloc_retries: int | None = None
    memory_bytes: int | None = None
    notes: Mapping[str, float] = field(default_factory=dict)  # loss, grad_norm, learning_rate, tokens


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What one rank sent to one other host over TCP while it was watched, as the kernel counts it."""

    rank: int
    peer: str  # address
    acked_bytes: int
    resent_bytes: int
    busy_us: int  # with data under way
    min_rtt_us: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the optimizer of one rank updates, as it was around the first step."""

    optimizer: str
    learning_rate: float
    parameters: Mapping[str, int]  # dtype -> numbers on this rank
    state: Mapping[str, int] = field(default_factory=dict)  # dtype -> numbers that it keeps beside them
    shards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # as monitor.weights has them
    place: tuple[int, ...] | None = None  # which of the shards this rank has


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What was seen beside the steps."""

    connections: tuple[Connection, ...] = ()
    throttled_us: Mapping[int, int] = field(default_factory=dict)  # rank -> by the quota of its control group
    watched_s: float = 0.0  # from the first sample to the last
    seen: Mapping[int, float] = field(default_factory=dict)  # rank -> Unix time of its last record
    ended: Mapping[int, tuple[int, float]] = field(
        default_factory=dict
    )  # rank -> (last step, Unix time): it is through
    weights: Mapping[int, Weights] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: what was asked for, and every step that was recorded. Of a step that ran twice, the last time counts."""

    steps: tuple[StepTimes, ...]
    hosts: tuple[str, ...] = ()
    world_size: int | None = None
    tokens_per_step: int | None = None
    flops_per_token: float | None = None
    parameters: int | None = None
    device: str | None = None  # NVML name of the GPUs, or cpu
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)
    addresses: Mapping[str, str] = field(default_factory=dict)  # of the hosts, by which the others reach them
    where: str = ""  # its folder
    backend: str | None = None  # nccl | gloo
    environment: Mapping[str, str] = field(default_factory=dict)  # variables that the ranks were given
    versions: Mapping[str, str] = field(default_factory=dict)
