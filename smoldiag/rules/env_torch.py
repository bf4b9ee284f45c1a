"""ENV: what torch, CUDA and the launcher read."""

import re
from collections.abc import Iterator
from difflib import get_close_matches

from smoldiag.facts import Cpu, Env
from smoldiag.findings import Confidence, Finding, Fix, Severity
from smoldiag.rules import rule
from smoldiag.rules.env_reading import Plain, Setting, Versions, finding, plain, remove, replace_by

FSDP = ("FSDP_", "ACCELERATE_USE_FSDP")
PRIVILEGED_PORTS = 1024
ALLOCATOR_OPTIONS = {  # docs.pytorch.org/docs/stable/notes/cuda.html, optimizing memory usage
    *("backend", "max_split_size_mb", "max_non_split_rounding_mb", "roundup_power2_divisions"),
    *("garbage_collection_threshold", "expandable_segments", "pinned_use_cuda_host_register"),
    *("pinned_num_register_threads", "pinned_use_background_threads", "pinned_reserve_segment_size_mb"),
    *("release_lock_on_cudamalloc", "graph_capture_record_stream_reuse", "per_process_memory_fraction"),
}
ALLOCATOR_SWITCHES = {"expandable_segments", "pinned_use_background_threads", "pinned_use_cuda_host_register"}


@rule("ENV025", Severity.WARNING)
def one_hardware_queue(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """CUDA_DEVICE_MAX_CONNECTIONS=1 runs kernels of all streams in the order of their launch.

    Megatron's tensor parallelism wants that order; with FSDP a reduce-scatter then waits behind
    compute that was launched before it, and nothing overlaps.

    Fix: remove it for FSDP; with FSDP and tensor parallelism together, 16 or 32.
    """
    taken = plain(env, versions)
    s = taken.get("CUDA_DEVICE_MAX_CONNECTIONS")
    if s is None or s.value.strip() != "1":
        return
    fsdp = [v.name for v in env if v.name.startswith(FSDP)]
    yield finding(
        s,
        f"{s.text}: right for tensor parallelism as in Megatron, but FSDP's collectives no longer overlap with compute"
        + (f", and {fsdp[0]} says that this is FSDP" if fsdp else ""),
        cause="cuda-device-max-connections",
        severity=Severity.WARNING if fsdp else Severity.INFO,
        confidence=Confidence.LIKELY if fsdp else Confidence.POSSIBLE,
        evidence=env.evidence(s.name, *fsdp[:1]),
        why="one hardware queue keeps kernels of different streams in the order of their launch",
        fixes=(remove(s.variable, scripted=s.scripted),),
        confirm="a trace of one step: with it, reduce-scatter starts only when the compute before it has ended",
        sources=("https://github.com/verl-project/verl-omni/issues/421", s.spec.source),
        explains=("comm-not-overlapped",) if fsdp else (),
    )


@rule("ENV026", Severity.WARNING)
def torch_does_not_notice_failures(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """torch's watchdog is off or powerless: a failed collective hangs the job.

    With blocking waits there is no watchdog and no dump; with error handling 0 nothing happens upon
    a timeout; without monitoring a stuck watchdog is never ended.

    Fix: remove it.
    """
    taken = plain(env, versions)
    for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        if (s := taken.get(name)) and taken.on(name):
            yield _blind(s, "wait() blocks the host, and no watchdog runs: no dump upon a timeout")
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"):
        if (s := taken.get(name)) and taken.number(name) == 0:
            yield _blind(s, "nothing happens when a collective fails or times out")
    if (s := taken.get("TORCH_NCCL_ENABLE_MONITORING")) and taken.on(s.name) is False:
        yield _blind(s, "a watchdog that is stuck is never ended, and nothing is dumped")


def _blind(s: Setting, effect: str) -> Finding:
    return finding(
        s,
        f"{s.text}: {effect}",
        cause="torch-error-handling-off",
        why="the job then holds its hosts until the scheduler's limit",
        fixes=(remove(s.variable, scripted=s.scripted),),
    )


@rule("ENV027", Severity.INFO)
def traces_of_a_hang_are_not_kept(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """The Flight Recorder or NCCL's RAS service is off.

    They cost next to nothing, and are what says afterwards which rank was missing in which
    collective.

    Fix: remove it.
    """
    taken = plain(env, versions)
    off = {
        "TORCH_FR_BUFFER_SIZE": "the Flight Recorder keeps nothing",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "the Flight Recorder keeps nothing",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "the Flight Recorder is not dumped upon a timeout",
        "NCCL_RAS_ENABLE": "a hanging job can't be asked for its state (ncclras)",
    }
    for name, effect in off.items():
        s = taken.get(name)
        if s and (taken.on(name) is False or taken.number(name) == 0) and s.value.strip():
            yield finding(
                s,
                f"{s.text}: {effect}",
                cause="hang-traces-off",
                severity=Severity.INFO,
                why="without them a hang leaves only the fact that it hung",
                fixes=(remove(s.variable, scripted=s.scripted),),
            )


@rule("ENV028", Severity.WARNING)
def more_threads_than_cpus(env: Env, cpu_count: int, cpu: Cpu | None) -> Iterator[Finding]:
    """OMP_NUM_THREADS asks for more CPU threads than there are CPUs.

    The threads of all ranks then take turns: data loading, launches and NCCL's proxy threads wait
    for one another.

    Fix: CPUs of the host divided by its ranks, less a few for data loading.
    """
    s = plain(env, None).get("OMP_NUM_THREADS")
    first = s.value.partition(",")[0] if s else ""
    if s is None or not first.isdigit():
        return
    threads, ranks = int(first), _ranks_here(env)
    machine = cpu.threads if cpu and cpu.threads else None
    if threads > cpu_count:
        message = f"{s.text}, but a process here may use {cpu_count} CPUs"
        fair = cpu_count
    elif ranks and machine and threads * ranks > machine:
        message = f"{s.text} with {ranks} ranks are {threads * ranks} threads on {machine} CPUs"
        fair = max(machine // ranks, 1)
    else:
        return
    yield finding(
        s,
        message,
        cause="cpu-oversubscribed",
        confidence=Confidence.LIKELY,
        evidence=env.evidence("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"),
        why="threads that take turns on a CPU delay each other, and the ranks that wait for them",
        fixes=(replace_by(s.variable, str(fair), scripted=s.scripted),),
        confirm="smoldiag nccl-bench --backend gloo, and the step time with fewer threads",
    )


def _ranks_here(env: Env) -> int | None:
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if (text := env.get(name)) and text.isdigit():
            return int(text)
    return None


@rule("ENV029", Severity.ERROR)
def rendezvous_variables_contradict(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT do not fit together.

    Ranks then wait for peers that do not exist, or for an address that nobody listens on, until
    their timeout.

    Fix: let torchrun or the scheduler set them.
    """
    taken = plain(env, versions)
    for rank, world in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("GROUP_RANK", "GROUP_WORLD_SIZE")):
        s, of = taken.get(rank), taken.get(world)
        if s and of and (taken.number(rank) or 0) >= (taken.number(world) or 0):
            yield _no_meeting(s, f"{s.text} with {of.text}: ranks count from 0 to {world} - 1", env, of)
    local, world_size = taken.get("LOCAL_WORLD_SIZE"), taken.get("WORLD_SIZE")
    if local and world_size and (taken.number(local.name) or 0) > (taken.number("WORLD_SIZE") or 0):
        yield _no_meeting(local, f"{local.text} is more than {world_size.text}", env, world_size)
    if (s := taken.get("MASTER_ADDR")) and ("://" in s.value or re.fullmatch(r"[^:\[\]]+:\d+", s.value)):
        host = re.sub(r"^\w+://", "", s.value).partition(":")[0]
        yield _no_meeting(s, f"{s.text} is no host name: the port goes into MASTER_PORT", env, better=host)
    port = taken.number("MASTER_PORT")
    if (s := taken.get("MASTER_PORT")) and port is not None and port < PRIVILEGED_PORTS:
        message = f"{s.text}: ports below {PRIVILEGED_PORTS} are for root, and mostly taken"
        yield _no_meeting(s, message, env, better="29500", cause="port-in-use", severity=Severity.WARNING)


def _no_meeting(
    s: Setting,
    message: str,
    env: Env,
    other: Setting | None = None,
    *,
    better: str = "",
    cause: str = "rendezvous-variables-contradict",
    severity: Severity = Severity.ERROR,
) -> Finding:
    return finding(
        s,
        message,
        cause=cause,
        severity=severity,
        evidence=env.evidence(s.name, *((other.name,) if other else ())),
        why="ranks do not meet, and wait until their timeout",
        fixes=(
            replace_by(s.variable, better, scripted=s.scripted) if better else remove(s.variable, scripted=s.scripted),
        ),
        sources=("https://docs.pytorch.org/docs/stable/distributed.html#environment-variable-initialization",),
    )


@rule("ENV030", Severity.WARNING)
def visible_gpus_are_cut_short(env: Env) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES hides GPUs by an entry that CUDA does not take.

    CUDA reads the list up to the first entry that names no GPU, and sees none at all where one is
    named twice.

    Fix: name each GPU once, or remove the variable.
    """
    v = env.find("CUDA_VISIBLE_DEVICES")
    if v is None or not v.value.strip() or (not env.complete and "$" in v.value):
        return
    entries = [e.strip() for e in v.value.split(",")]
    bad = next((e for e in entries if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", e)), None)
    if len(entries) > 1 and bad is not None and entries.index(bad) < len(entries) - 1:
        message = f"CUDA_VISIBLE_DEVICES={v.value}: CUDA stops at {bad!r} and does not see what follows"
    elif len(set(entries)) < len(entries):
        message = f"CUDA_VISIBLE_DEVICES={v.value} names a GPU twice: CUDA then sees none"
    else:
        return
    yield Finding(
        message=message,
        cause="visible-gpus-cut-short",
        subject=v.name,
        evidence=env.evidence(v.name),
        why="ranks of the hidden GPUs fail with `invalid device ordinal`",
        fixes=(remove(v, scripted=not env.complete),),
        confirm='python3 -c "import torch; print(torch.cuda.device_count())"',
        sources=("CUDA C++ programming guide: CUDA_VISIBLE_DEVICES",),
    )


@rule("ENV031", Severity.ERROR)
def allocator_options_are_not_read(env: Env, versions: Versions | None) -> Iterator[Finding]:
    """PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF holds an option that torch refuses.

    torch raises at the first use of CUDA for an option that it does not know or a switch other than
    True and False, and reads one of the two variables alone where both are set.

    Fix: option:value, with commas between, e.g. expandable_segments:True
    """
    taken = plain(env, versions)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if s := taken.get(name):
            yield from _bad_options(s)
    yield from _two_allocators(taken)


def _bad_options(s: Setting) -> Iterator[Finding]:
    for option in re.sub(r"\[[^]]*\]", "[]", s.value).split(","):
        key, _, value = (part.strip() for part in option.partition(":"))
        meant = get_close_matches(key.partition("=")[0], ALLOCATOR_OPTIONS, n=1, cutoff=0.8)
        if key in ALLOCATOR_OPTIONS and not (key in ALLOCATOR_SWITCHES and value not in ("True", "False")):
            continue
        if not meant:
            continue  # an option of a release that we do not know
        value = (value or key.partition("=")[2]).capitalize() if meant[0] in ALLOCATOR_SWITCHES else value
        switched = {"1": "True", "0": "False"}.get(value, value)
        yield finding(
            s,
            f"{s.name}: torch refuses {option.strip()!r}; {meant[0]}:{switched or 'VALUE'} was probably meant",
            cause="variable-value-refused",
            severity=Severity.ERROR,
            confidence=Confidence.LIKELY,
            why="torch raises at the first use of CUDA",
            fixes=(Fix(do="write", command=f"{meant[0]}:{switched or 'VALUE'}"),),
            confirm="python3 -c \"import torch; torch.zeros(1, device='cuda')\"",
        )
        return


def _two_allocators(taken: Plain) -> Iterator[Finding]:
    new, old = taken.get("PYTORCH_ALLOC_CONF"), taken.get("PYTORCH_CUDA_ALLOC_CONF")
    if new and old and new.value != old.value:
        yield finding(
            old,
            f"{old.name} and {new.name} are both set and differ; torch reads {new.name} from 2.9 on, the other before",
            cause="variables-contradict",
            severity=Severity.WARNING,
            why="which options are in force depends on the release",
            fixes=(remove(old.variable, scripted=old.scripted),),
        )
