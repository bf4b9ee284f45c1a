"""`smoldiag train` before, during and after the run: its configuration, its folder, and what is said of its steps.

A run folder:
    run.json             what was run, on what, and when: `smoldiag.run/1`, one entry in `attempts` per start
    hosts/HOST.json      facts of each host at the start
    steps/HOST.jsonl     one line per rank and step, as it happened
    checkpoints/         unless --checkpoint names another folder
    traces/              torch.profiler traces, where asked for
"""

import base64
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from smoldiag import __version__, launch
from smoldiag.collect import inputs
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Fault, Host, Launch, World
from smoldiag.facts.run import Run, StepTimes
from smoldiag.knowledge import hardware
from smoldiag.launch import Choice, Event, Finished, Request
from smoldiag.model import steps as model
from smoldiag.model import training
from smoldiag.model.training import TrainConfig
from smoldiag.parse import steps

SCHEMA = "smoldiag.run/1"
RUN_FILE, HOSTS, STEPS, CHECKPOINTS, TRACES = "run.json", "hosts", "steps", "checkpoints", "traces"
MAX_OPEN_FILES = 512  # one per host; beyond that they are opened for each line
MAX_RUN_BYTES = 16 * 2**20


@dataclass
class Folder:
    """The folder of one run, while it is written. What can't be written is counted, not fatal."""

    path: Path
    one_host: bool = True  # what is written here is seen by all ranks
    about: dict[str, Any] = field(default_factory=dict)
    lost: int = 0
    _files: dict[str, IO[str]] = field(default_factory=dict)

    def start(self, *, command: str, config: Mapping[str, Any]) -> None:
        """Make it, or go on in it. Raises SmoldiagError where it can't be written."""
        try:
            for name in (HOSTS, STEPS, TRACES):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            before = read_about(self.path) if (self.path / RUN_FILE).is_file() else {}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            attempts = [*before.get("attempts", []), {"started": now, "command": command}]
            self.about = {
                "schema": SCHEMA,
                "version": __version__,
                "created": before.get("created", now),
                "command": command,
                "config": dict(config),
                "attempts": attempts,
            }
            self.save()
        except OSError as error:
            raise SmoldiagError(
                f"can't write the run folder {self.path}: {error.strerror}", hint="name another one with --output"
            ) from None

    def save(self) -> None:
        part = self.path / f".{RUN_FILE}.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self.about), indent=1))
        part.replace(self.path / RUN_FILE)

    def add(self, host: str, record: Mapping[str, Any]) -> None:
        """One line of a host's file."""
        try:
            file = self._files.get(host)
            if file is None:
                file = (self.path / STEPS / f"{host}.jsonl").open("a", encoding="utf-8")
                if len(self._files) < MAX_OPEN_FILES:
                    self._files[host] = file
            file.write(json.dumps(record) + "\n")
            file.flush()
            if host not in self._files:
                file.close()
        except OSError:
            self.lost += 1

    def add_trace(self, record: Mapping[str, Any]) -> None:
        """One part of a rank's trace; its file gets its name with the last one."""
        whole = self.path / TRACES / f"rank{int(record['rank'])}.json.gz"
        part = whole.with_name(f".{whole.name}.part")
        try:
            with part.open("wb" if record["part"] == 0 else "ab") as file:
                file.write(base64.b64decode(record["data"]))
            if record["part"] == record["parts"] - 1:
                part.replace(whole)
        except OSError:
            self.lost += 1

    def told(self, **what: Any) -> None:
        self.about |= what
        try:
            self.save()
        except OSError:
            self.lost += 1

    def add_host(self, host: Host) -> None:
        """The facts of a host; those that are there are replaced."""
        try:
            facts = msgspec.json.format(msgspec.json.encode(host), indent=1)
            (self.path / HOSTS / f"{host.name}.json").write_bytes(facts)
        except OSError:
            self.lost += 1

    def end(self, finished: Finished) -> None:
        """Close the files, and keep what the run ended with."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        for host in finished.hosts:
            if not (self.path / HOSTS / f"{host.name}.json").exists():  # one that did not answer: what is known of it
                self.add_host(host)
        faults = msgspec.to_builtins(finished.launch.faults)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.about["attempts"][-1] |= {"ended": ended, "interrupted": finished.launch.interrupted, "faults": faults}
        self.told(
            launcher=finished.launch.launcher,
            backend=finished.backend,
            world=msgspec.to_builtins(finished.world),
            addresses=addresses(finished),
            versions=dict(finished.versions),
            environment=dict(finished.environment),
            lost_records=self.lost,
        )


def addresses(finished: Finished) -> dict[str, str]:
    """Of the hosts, by which their ranks reach each other."""
    return {seat.host: seat.address for seat in finished.launch.seats if seat.address}


def read_about(folder: Path) -> dict[str, Any]:
    """run.json of a run folder. Raises SmoldiagError for what is none."""
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > MAX_RUN_BYTES:
            raise ValueError("it is too large")
        about = msgspec.json.decode(path.read_bytes())
        if about["schema"] != SCHEMA:
            raise ValueError(f"its schema is {str(about['schema'])[:40]!r}")
    except OSError as error:
        raise SmoldiagError(f"{folder} is no run folder: {error.strerror} ({RUN_FILE})") from None
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise SmoldiagError(f"{path} is no run of smoldiag: {str(error)[:120]}") from None
    return dict(about)


def read(folder: Path) -> Run:
    """All that a run folder holds. Of a step that ran twice (before and after a resume) the later one counts."""
    about = read_about(folder)
    files = sorted(map(str, (folder / STEPS).glob("*.jsonl")))
    return of_sources(about, inputs.find(files).sources if files else (), where=str(folder))


def of_sources(about: Mapping[str, Any], sources: Iterable[inputs.Source], *, where: str) -> Run:
    """From the files of records."""
    latest: dict[tuple[int, int], StepTimes] = {}
    others: list[dict[str, Any]] = []
    for source in sources:
        with suppress(ValueError):  # no step in it
            latest |= {(s.rank, s.step): s for s in steps.parse(source.lines(steps.MAX_LINE), where=source.name)}
        others += steps.beside(source.lines())
    return of(about, latest.values(), others, where=where)


def launch_of(about: Mapping[str, Any]) -> Launch | None:
    """What kept the last start of a run from finishing; None where nothing is known of it."""
    attempts = about.get("attempts") or [{}]
    try:
        faults = msgspec.convert(attempts[-1]["faults"], tuple[Fault, ...])
    except (KeyError, TypeError, msgspec.ValidationError):
        return None
    interrupted = attempts[-1].get("interrupted")
    return Launch(launcher=str(about.get("launcher", "")), seats=(), faults=faults, interrupted=interrupted)


def of(
    about: Mapping[str, Any], records: Iterable[StepTimes], others: Iterable[Mapping[str, Any]], *, where: str
) -> Run:
    records = tuple(sorted(records, key=lambda s: (s.step, s.rank)))
    told, world = _part(about, "run"), _part(about, "world")
    made = Run(
        steps=(),
        hosts=world.get("hosts", ()),
        world_size=world.get("ranks"),
        tokens_per_step=told.get("tokens_per_step"),
        flops_per_token=told.get("flops_per_token"),
        parameters=told.get("parameters"),
        device=told.get("device"),
        config=_part(about, "config"),
        addresses=_part(about, "addresses"),
        where=where,
        backend=about.get("backend"),
        environment=_part(about, "environment"),
        versions=_part(about, "versions"),
    )
    try:
        made = msgspec.convert(msgspec.to_builtins(made), Run)
    except msgspec.ValidationError as error:
        raise SmoldiagError(f"{RUN_FILE} of {where} is damaged: {error}") from None
    return replace(made, steps=records, beside=steps.seen_beside(others, records))


def _part(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = about.get(name)
    return found if isinstance(found, dict) else {}


def configured(given: Mapping[str, Any], *, faults: Iterable[str]) -> TrainConfig:
    """The configuration that was typed. Raises SmoldiagError for what no trainer could run."""
    try:
        config = TrainConfig(**given, faults=tuple(training.fault(f) for f in faults))
        training.check(config)
    except ValueError as error:
        raise SmoldiagError(str(error)) from None
    if config.tokens_file is not None:
        check_tokens(Path(config.tokens_file))
    return config


def rank_numbers(text: str) -> tuple[int, ...]:
    """Of 0,5. Raises SmoldiagError for anything else."""
    try:
        return tuple(sorted({int(word) for word in text.split(",") if int(word) >= 0}))
    except ValueError:
        raise SmoldiagError(f"--trace-ranks {text[:40]!r} are no ranks", hint="e.g. --trace-ranks 0,5") from None


def check_tokens(path: Path) -> None:
    """Raises SmoldiagError for what is no tokens file. One that only the hosts have is theirs to check."""
    with suppress(FileNotFoundError):
        try:
            with path.open("rb") as file:
                begins = file.read(len(training.TOKENS_MAGIC))
        except IsADirectoryError:
            raise SmoldiagError(f"--tokens {path} is a folder") from None
        if begins != training.TOKENS_MAGIC.encode():
            raise SmoldiagError(f"{path} is no tokens file", hint="make one: smoldiag train --prepare FILE.txt")


def resumed(folder: Path) -> TrainConfig:
    """That of a run that was started before."""
    about = read_about(folder)
    try:
        config = training.from_dict(about["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise SmoldiagError(f"{folder / RUN_FILE} has no configuration that this trainer knows: {error}") from None
    return config


def prepare(text: Path, tokens: Path) -> int:
    """Write a tokens file from a text: its bytes, documents separated by blank lines. Gives the number of tokens."""
    part = tokens.with_name(f".{tokens.name}.part")
    count = 0
    try:
        with text.open("rb") as lines, part.open("wb") as out:
            header = f"{training.TOKENS_MAGIC} uint16 {training.BYTE_VOCAB} {training.BYTE_END}"
            out.write(header.encode().ljust(training.TOKENS_HEADER_BYTES))
            ended = True
            for line in lines:
                if line.strip():
                    out.write(line.decode("latin-1").encode("utf-16-le"))
                    count, ended = count + len(line), False
                elif not ended:
                    out.write(training.BYTE_END.to_bytes(2, "little"))
                    count, ended = count + 1, True
        part.replace(tokens)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SmoldiagError(f"--prepare {text}: {error.strerror}") from None
    if not count:
        tokens.unlink(missing_ok=True)
        raise SmoldiagError(f"--prepare {text}: there is no text in it")
    return count


class Live:
    """Takes the records of a run as they come: into the folder, and one line of progress."""

    def __init__(self, folder: Folder | None, on_event: Callable[[Event], None], board: Any = None) -> None:
        self.folder, self.on_event, self.board = folder, on_event, board
        self.latest: dict[tuple[int, int], StepTimes] = {}
        self.beside: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}
        self.world_size = 1

    def take(self, host: str, record: Mapping[str, Any]) -> bool:
        """Whether the record was one of a run."""
        kind = record.get("kind")
        if kind == "run":
            self.told = {k: v for k, v in record.items() if k != "kind"}
            if self.folder:
                self.folder.told(run=self.told)
            return True
        if kind == "trace":
            if self.folder:
                self.folder.add_trace(record)
            return True
        if kind not in ("step", "sample", "end", "weights"):
            return False
        if self.folder:
            self.folder.add(host, record)
        if kind != "step":
            self.beside.append(dict(record))
        if kind == "step":
            s = steps.step(dict(record) | {"host": host})
            self.latest[s.rank, s.step] = s
            if s.rank == 0:
                self.on_event(Event(text=self.line(s)))
                if self.board is not None:
                    for name, value in {**s.notes, "step_ms": s.step_us / 1e3}.items():
                        self.board.add_scalar(name, value, s.step)
        return True

    def line(self, s: StepTimes) -> str:
        """step 12/30  loss 3.21  1,234 tokens/s  617 tokens/s/GPU  MFU 41.2 %  norm 1.3  memory 12.1 GiB"""
        total = self.told.get("config", {}).get("steps", "?")
        parts = [f"step {s.step + 1}/{total}"]
        if "loss" in s.notes:
            parts.append(f"loss {s.notes['loss']:.4f}")
        tokens = self.told.get("tokens_per_step")
        if tokens:
            rate = tokens / s.step_us * 1e6
            each = rate / self.world_size
            device = str(self.told.get("device", ""))
            unit = "rank" if device == "cpu" else "GPU"
            share = model.mfu(each, float(self.told.get("flops_per_token", 0.0)), peak_tflops(device))
            parts += [f"{rate:,.0f} tokens/s", f"{each:,.0f} tokens/s/{unit}"]
            parts.append(f"MFU {share:.1%}" if share is not None else "MFU unknown")
        if "grad_norm" in s.notes:
            parts.append(f"norm {s.notes['grad_norm']:.3g}")
        if s.memory_bytes:
            parts.append(f"memory {s.memory_bytes / 2**30:.1f} GiB")
        return "  ".join(parts)


def summary_writer(folder: Folder) -> Any:
    """TensorBoard's. Raises SmoldiagError where it is not installed."""
    try:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise SmoldiagError("--tensorboard needs the package tensorboard", hint="pip install tensorboard") from None
    return tensorboard.SummaryWriter(str(folder.path / "tensorboard"))


def peak_tflops(device: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its NVML name."""
    spec = hardware.gpu(device)
    return spec.bf16_tflops if spec else None


COMPARED_STEPS = 12  # of the run without a profile's settings; with the warm-up a few seconds


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of a run."""

    finished: Finished
    run: Run
    budget: model.Budget | None
    config: TrainConfig
    notes: tuple[str, ...] = ()


def of_profile(name: str) -> dict[str, str]:
    """What a cloud profile sets for every job: required and recommended variables. Raises SmoldiagError if unknown."""
    from smoldiag import profiles  # its files are not needed otherwise

    found = profiles.find(name)
    return {s.name: s.value for s in found.settings if s.level != "optional" and s.scope != "host"}


def without_settings(
    choice: Choice, request: Request, config: TrainConfig, *, on_event: Callable[[Event], None]
) -> Trained:
    """A few steps of the same run, for comparison."""
    short = replace(config, steps=min(config.steps, COMPARED_STEPS), checkpoint_folder=None, trace_steps=0)
    return train(choice, request, short, folder=None, on_event=on_event)


def compared(name: str, settings: Mapping[str, str], without: Trained, with_them: Trained) -> str:
    """One sentence: tokens/s with and without the settings of a profile."""
    rates = [model.tokens_per_s(t.run, t.budget.step_us) if t.budget else None for t in (with_them, without)]
    words = ", ".join(f"{k}={v}" for k, v in settings.items()) or "nothing"
    shown = [f"{rate:,.0f} tokens/s" if rate else "no finished step" for rate in rates]
    return f"profile {name} sets {words}: {shown[0]} with it, {shown[1]} without (median step)"


def opened(path: Path, config: TrainConfig, *, one_host: bool) -> Folder:
    """A run's folder, new or of a run that stopped before its end. Raises SmoldiagError where neither is so."""
    if (path / RUN_FILE).is_file():
        before = resumed(path)
        if _without_folders(before) != _without_folders(config):
            raise SmoldiagError(
                f"{path} holds another run",
                hint=f"name a new folder, or go on with that one: smoldiag train --resume {path}",
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SmoldiagError(f"{path} is there and is no run folder", hint="name a new folder with --output")
    return Folder(path, one_host=one_host)


def _without_folders(config: TrainConfig) -> TrainConfig:
    return replace(config, checkpoint_folder=None)


def train(
    choice: Choice,
    request: Request,
    config: TrainConfig,
    *,
    folder: Folder | None,
    on_event: Callable[[Event], None],
    tensorboard: bool = False,
) -> Trained:
    """Launch the ranks, keep what they record, and give it as a Run."""
    if folder is not None:
        if config.checkpoint_folder is None and folder.one_host:
            config = replace(config, checkpoint_folder=str((folder.path / CHECKPOINTS).absolute()))
        folder.start(command="train", config=asdict(config))
    else:
        config = replace(config, trace_steps=0)  # there is no place for them
    live = Live(folder, on_event, summary_writer(folder) if folder is not None and tensorboard else None)

    def configure(hosts: Sequence[Host], world: World, backend: str) -> dict[str, Any]:
        live.world_size = world.ranks
        try:
            config.accumulation(world.ranks)
        except ValueError as error:
            raise SmoldiagError(str(error), hint="change --global-batch, --micro-batch or the ranks") from None
        if config.trace_steps and max(config.trace_ranks, default=0) >= world.ranks:
            raise SmoldiagError(f"--trace-ranks names rank {max(config.trace_ranks)}, and there are {world.ranks}")
        return asdict(config)

    request = replace(request, on_record=live.take, on_host=folder.add_host if folder is not None else None)
    finished = launch.run(choice, request, on_event=on_event, configure=configure)
    if live.board is not None:
        live.board.close()
    if folder is not None and finished.reporting:
        folder.end(finished)
    about = {"run": live.told, "config": asdict(config), "world": msgspec.to_builtins(finished.world)}
    about["addresses"] = addresses(finished)
    run = of(about, live.latest.values(), live.beside, where=str(folder.path) if folder else "this run")
    return Trained(finished=finished, run=run, budget=model.budget(run), config=config)
