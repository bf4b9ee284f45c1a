"""Where the time of each training step goes, on one rank, at a cost of well under 1 %.

Phases are exclusive: time in an inner phase (a garbage collection, a collective) is not counted in the one around it,
so that phases and what is left add up to the step. Collectives are timed one by one, from the moment this rank enters
until it may go on; over all ranks the shortest stay in a collective is its transfer, what others stay longer is waiting
for a peer. On GPUs the phases are those of the device, from events that are read one step later, without a stop.

The monitor never ends a job: what it cannot record is counted as lost.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from smoldiag.monitor import samples
from smoldiag.monitor.windows import Windows

Record = Callable[[str, Mapping[str, Any]], None]
c10d: Any = dist
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "broadcast",
    "reduce",
    "all_to_all",
    "all_to_all_single",
    "gather",
    "scatter",
    "barrier",
)
NAMES = {  # the same collective under an older name
    "all_gather_into_tensor": "all_gather",
    "all_gather_single": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
MAX_COLLECTIVES = 4096  # of one step that are kept one by one; the rest is only summed
MAX_SPANS = 1024
MIN_SPAN_NS = 20_000  # shorter parts of a phase are only summed


class Monitor:
    """Times the steps of this rank and hands one record per step to `record`."""

    def __init__(
        self,
        record: Record,
        *,
        rank: int,
        host: str = "",
        device: torch.device | str = "cpu",
        entering: Callable[[], None] = lambda: None,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        """`entering` and `left` are called around every collective: they tell a watchdog where this rank is."""
        self.record, self.rank, self.host = record, rank, host
        self.entering, self.left = entering, left
        self.device = torch.device(device)
        self.lost = 0
        self.spent_ns = 0  # CPU time of the monitor itself
        self.number = -1
        self._phases: dict[str, int] = {}
        self._stack: list[str] = []
        self._since = 0
        self._began = 0
        self._wall = 0.0
        self._notes: dict[str, Any] = {}
        self._collectives: list[tuple[str, str, int, int, int, str, int]] = []
        self._spans: list[tuple[str, int, int]] = []
        self._processor = samples.Processor()
        self._groups: dict[Any, str] = {}  # process group -> its ranks, in words
        self._gc_since = 0
        self._wrapped: list[tuple[Any, str, Any]] = []
        self._inside = False
        self._thread = 0  # that runs the steps
        self._retries = 0
        self._pending: list[tuple[dict[str, Any], list[tuple[str, Any, Any]]]] = []
        self._events: list[tuple[str, Any, Any]] = []
        self._windows = Windows() if self.device.type == "cuda" else None
        self._open: list[tuple[str, Any]] = []  # phases of the device that have not ended

    # -- for training loops

    def __enter__(self) -> "Monitor":
        gc.callbacks.append(self._collected)
        for name in COLLECTIVES:
            self._wrap(name)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ValueError):
            gc.callbacks.remove(self._collected)
        for owner, name, original in reversed(self._wrapped):
            setattr(owner, name, original)
        self._wrapped.clear()
        self._resolve(wait=True)
        if error and error[0] is None:
            self.through()

    def through(self) -> None:
        """This rank has done all its steps: a run in which others go on had uneven data."""
        with suppress(OSError, ValueError):
            what = {"rank": self.rank, "host": self.host, "step": self.number, "time": round(time.time(), 3)}
            self.record("end", what)

    @contextmanager
    def step(self, number: int | None = None) -> Iterator[None]:
        """One step. What happens in it outside of any phase counts as `other`; one that an error ends is none."""
        self.begin(number)
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        self.end()

    def begin(self, number: int | None = None) -> None:
        """A step begins here."""
        self.number = self.number + 1 if number is None else number
        self._phases, self._collectives, self._notes, self._events = {}, [], {}, []
        self._spans = []
        self._stack = ["other"]
        if self._windows is not None:
            self._windows.begin(self.number)
        if self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            self._processor = samples.Processor()
        self._processor.begin()
        self._wall = time.time()
        self._began = self._since = time.perf_counter_ns()

    def end(self) -> None:
        """The step that began last ends here."""
        if not self._stack:
            return
        window = self._windows.end() if self._windows is not None else None
        ended = time.perf_counter_ns()
        self._switch(ended)
        self._stack = []
        self._finish(ended, window)

    def abandon(self) -> None:
        """The step that began last was none: nothing is recorded of it."""
        self._stack = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the step: data, h2d, forward, backward, optimizer, checkpoint, evaluation, or a name of yours."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """A phase begins here."""
        self._push(name)
        if self.device.type == "cuda":
            self._open.append((name, self._event()))

    def leave(self) -> None:
        """The phase that began last ends here."""
        if self._open:
            name, start = self._open.pop()
            self._events.append((name, start, self._event()))
        self._pop()

    def note(self, **values: Any) -> None:
        """Numbers to keep with the step: loss, gradient norm, tokens. Tensors are read when the record is written."""
        self._notes |= values

    # -- the clock

    def _push(self, name: str) -> None:
        if self._stack:
            self._switch(time.perf_counter_ns())
            self._stack.append(name)

    def _pop(self) -> None:
        if len(self._stack) > 1:
            self._switch(time.perf_counter_ns())
            self._stack.pop()

    def _switch(self, now: int) -> None:
        """Book the time since the last switch on the phase that it was spent in."""
        name = self._stack[-1]
        self._phases[name] = self._phases.get(name, 0) + now - self._since
        if now - self._since >= MIN_SPAN_NS and len(self._spans) < MAX_SPANS:
            self._spans.append((name, self._since - self._began, now - self._since))
        self._since = now

    def _event(self) -> Any:
        made: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        made.record()
        return made

    def _collected(self, when: str, info: Mapping[str, int]) -> None:
        if not self._stack:
            return
        if when == "start":
            self._push("gc")
        elif self._stack[-1] == "gc":
            self._pop()

    # -- collectives

    def _wrap(self, name: str) -> None:
        original = getattr(c10d, name, None)
        if original is None:
            return
        short = NAMES.get(name, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside or not self._stack or self._is_beside():
                return original(*args, **kwargs)
            self._inside = True
            entered = time.perf_counter_ns()
            self.entering()
            try:
                work = original(*args, **kwargs)
            finally:
                self._inside = False
            if isinstance(work, c10d.Work) and self.device.type == "cpu":
                return _Timed(self, work, short, self._group(args, kwargs), num_bytes(args, kwargs), entered)
            left = time.perf_counter_ns()
            self.left()
            self._stayed(short, self._group(args, kwargs), num_bytes(args, kwargs), entered, left)
            return work

        for owner in (c10d, c10d.distributed_c10d):
            if getattr(owner, name, None) is original:
                self._wrapped.append((owner, name, original))
                setattr(owner, name, timed)

    def _is_beside(self) -> bool:
        """Whether this thread works beside the step, as one that saves a checkpoint. Backward on GPUs has its own."""
        return threading.get_ident() != self._thread and (self.device.type == "cpu" or self._stack[-1] != "backward")

    def _group(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Its ranks: 0-3, 0,2 or, of the whole world, all."""
        group = kwargs.get("group") or next((a for a in args if isinstance(a, c10d.ProcessGroup)), None)
        if group is None or group is c10d.group.WORLD:
            return "all"
        if group not in self._groups:
            self._groups[group] = in_words(c10d.get_process_group_ranks(group))
        return self._groups[group]

    def _stayed(
        self, name: str, group: str, size_bytes: int, entered: int, left: int, *, waited_since: int | None = None
    ) -> None:
        """`waited_since`: when this rank began to do nothing but wait, where the collective ran beside its work."""
        if len(self._collectives) < MAX_COLLECTIVES and self._stack:
            since = entered if waited_since is None else waited_since
            at = entered - self._began
            self._collectives.append((name, group, size_bytes, at, left - since, self._stack[-1], left - self._began))

    # -- records

    def _finish(self, ended: int, window: Mapping[str, float] | None) -> None:
        began = time.thread_time_ns()
        us = {name: round(ns / 1e3, 1) for name, ns in self._phases.items()}
        line: dict[str, Any] = {
            "rank": self.rank,
            "host": self.host,
            "step": self.number,
            "time": round(self._wall, 6),
            "step_us": round((ended - self._began) / 1e3, 1),
            "phases_us": us,
            "collectives": [
                [name, group, size, round(at / 1e3, 1), round(stay / 1e3, 1), phase, round(left / 1e3, 1)]
                for name, group, size, at, stay, phase, left in self._collectives
            ],
            "spans": [[name, round(at / 1e3, 1), round(length / 1e3, 1)] for name, at, length in self._spans],
            **self._processor.since_begin(),
        }
        if self.device.type == "cuda":
            retries = torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0)
            line["alloc_retries"], self._retries = retries - self._retries, retries
            line["memory_bytes"] = torch.cuda.max_memory_reserved(self.device)
        if window is not None:
            line["window_us"] = window
        line["notes"] = self._notes
        self._pending.append((line, self._events))
        self._resolve(wait=self.device.type == "cpu")
        self.spent_ns += time.thread_time_ns() - began

    def _resolve(self, *, wait: bool) -> None:
        """Write the records whose device events have happened."""
        while self._pending:
            line, events = self._pending[0]
            if events and not wait and not events[-1][2].query():
                return
            if events:
                if wait:
                    events[-1][2].synchronize()
                device: dict[str, float] = {}
                for name, start, end in events:
                    device[name] = device.get(name, 0.0) + round(start.elapsed_time(end) * 1e3, 1)
                line["device_us"] = device
            self._pending.pop(0)
            line["notes"] = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in line["notes"].items()}
            try:
                self.record("step", line)
            except (OSError, ValueError):
                self.lost += 1


class _Timed(c10d.Work):  # type: ignore[misc]
    """A collective under way: its stay ends when somebody waits for it and it is done."""

    def __init__(self, monitor: Monitor, work: Any, name: str, group: str, size_bytes: int, entered: int) -> None:
        super().__init__()
        self._monitor, self._work, self._what = monitor, work, (name, group, size_bytes, entered)
        self._seen = False

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        since = time.perf_counter_ns()
        done = self._work.wait(*args, **kwargs)
        if not self._seen:
            self._seen = True
            self._monitor.left()
            self._monitor._stayed(*self._what, time.perf_counter_ns(), waited_since=since)
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def num_bytes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of the largest tensor among the arguments: size as nccl-tests counts it for the collectives above."""
    flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, list) else [a])]
    return max((x.numel() * x.element_size() for x in flat if isinstance(x, torch.Tensor)), default=0)


def in_words(ranks: list[int]) -> str:
    """0-3 for ranks in a row, else 0,2,4."""
    if len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))
