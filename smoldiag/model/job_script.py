"""What a job script says of the run that it starts: options, checkpoints, steps, nodes. None: it does not say.

Options are read as they are written for argparse (--name value, --name=value) and for hydra-like tools (a.b=value);
`-` and `_` in names are the same. Nothing is guessed from a configuration file that the script only names.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from smoldiag.facts.script import Command, Script

OPTION = re.compile(r"--?(?:no-)?[A-Za-z][\w.-]*|\+{0,2}[A-Za-z_]\w*(?:\.\w+)+(?==)|[A-Za-z_]\w+(?==)")
LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "torchx", "lightning", "litgpt", "composer", "tune", "axolotl"}
LAUNCHERS |= {"llamafactory-cli", "nemo", "fabric", "xtuner", "swift"}
PROGRAM = re.compile(
    r"(?:.*/)?[\w-]*(?:train|pretrain|finetune|sft|run_clm|run_mlm|main)[\w-]*\.(?:py|sh)|.*train(?:ing)?(?:\.\w+)*"
)
CHECKPOINT_OPTIONS = {
    "save",  # Megatron-LM
    "output_dir",  # Hugging Face Trainer
    "checkpoints.checkpoints_path",  # nanotron
    "job.dump_folder",  # torchtitan
    "trainer.default_root_dir",  # Lightning CLI
    "exp_manager.exp_dir",  # NeMo
    "save_folder",  # OLMo
    "checkpoint_dir",
    "checkpoint_folder",
    "checkpoint_path",
    "checkpoints_dir",
    "checkpoints_path",
    "ckpt_dir",
    "default_root_dir",
    "dirpath",
    "exp_dir",
    "out_dir",
    "outdir",
    "save_dir",
    "save_path",
}
CHECKPOINT_VARIABLES = re.compile(
    r"(?:SAVE_)?(?:CHECKPOINTS?|CKPTS?)(?:_(?:DIR|PATH|FOLDER|ROOT))?|OUTPUT_DIR|SAVE_DIR"
)
LOAD_OPTIONS = re.compile(
    r"(?:.*[._])?(?:resume\w*|load|load_\w+|restore\w*|auto_?re\w+|ckpt_path|init_from|continue\w*)"
)
RESUME_OPTIONS = re.compile(r"(?:.*[._])?(?:auto_?)?(?:resume\w*|load_checkpoint\w*)")
OFF = ("false", "none", "null", "0", "no", "never", "off", "disable")
AUTOMATIC = re.compile(r"torchtitan|nanotron|lightning|--trainer\.|\bpl_|composer|olmo|run_(?:clm|mlm|fim)\w*\.py|nemo")
ENOUGH_OPTIONS = 3
CONFIG_OPTIONS = re.compile(
    r"(?:.*[._])?(?:config|config_file|config_path|config_name|config_dir|cfg|cfg_path|yaml|recipe)"
)
CONFIG_FILE = re.compile(r".*\.(?:ya?ml|toml|json|gin)")
STEP_OPTIONS = (
    "max_steps",
    "max_train_steps",
    "num_train_steps",
    "tokens.train_steps",
    "total_steps",
    "train_iters",
    "train_steps",
    "trainer.max_steps",
    "training.steps",
)
BATCH_OPTIONS = ("global_batch_size", "training.global_batch_size", "global_train_batch_size")
MICRO_BATCHES = ("per_device_train_batch_size", "training.local_batch_size", "device_batch_size")
BUDGET_OPTIONS = ("train_tokens", "total_tokens", "max_tokens", "num_tokens", "max_train_tokens")
STEP_TIME_SAID = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|sec|seconds) ?(?:/|per|a) ?(?:step|iteration)\b", re.IGNORECASE)
SEQUENCE_OPTIONS = ("seq_length", "seq_len", "training.seq_len", "sequence_length", "max_seq_length", "block_size")
SAVE_INTERVALS = ("save_interval", "save_steps", "checkpoint.interval", "checkpoints.checkpoint_interval", "save_every")
DATA_TOKENS = re.compile(r"(?:\w+_)?(?:DATA|DATASET|CORPUS)_TOKENS|TOKENS_(?:IN_)?(?:DATA|DATASET)", re.IGNORECASE)
TOKENS_SAID = re.compile(
    r"\b(?:data(?:set)?|corpus)\b[^#\n]{0,60}?\b(\d[\d.,_]*(?:e\d+)?)\s?([KMBT]?)\s?tokens", re.IGNORECASE
)
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
NUMBER = re.compile(r"(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)\s?([kmbt]?)", re.IGNORECASE)
COPIES = {"cp", "rsync", "mv", "scp", "aws", "s5cmd", "gsutil", "gcloud", "rclone", "azcopy", "hf", "huggingface-cli"}
COPIES |= {"tar", "fpsync", "dcp", "mcp", "mpifileutils"}
NODE_LOCAL = re.compile(r"(?:/tmp|/var/tmp|/dev/shm|\$TMPDIR|\$SLURM_TMPDIR)(?:/|\Z)")
LOST_AT_THE_END = re.compile(r"(?:/dev/shm|\$TMPDIR|\$SLURM_TMPDIR)(?:/|\Z)")
DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Option:
    name: str  # normalised: save_interval, training.steps
    value: str | None
    line: int


@dataclass(frozen=True)
class Deletion:
    path: str
    line: int
    guarded: bool
    text: str


def options(script: Script) -> list[Option]:
    """Of all commands but those of the scheduler, in their order."""
    return [o for c in script.commands if c.words[0] not in ("sbatch", "export", "rm", "mkdir") for o in _options(c)]


def _options(c: Command) -> Iterator[Option]:
    for i, word in enumerate(c.words):
        match = OPTION.match(word)
        if not match or (not word.startswith("-") and i == 0 and len(c.words) == 1):
            continue
        name, rest = normal(match[0]), word[match.end() :]
        following = c.words[i + 1] if i + 1 < len(c.words) else None
        if rest.startswith("="):
            yield Option(name, rest[1:], c.line)
        elif not rest:
            is_value = following is not None and not re.match(r"-+[A-Za-z]", following)
            yield Option(name, following if is_value else None, c.line)


def normal(name: str) -> str:
    return name.lstrip("-+").replace("-", "_").lower()


def directive(script: Script, *names: str) -> Option | None:
    """An option of the scheduler: the last one counts."""
    found = [o for c in script.commands if c.words[0] == "sbatch" for o in _options(c)]
    return next((o for o in reversed(found) if o.name in names), None)


def value(script: Script, *names: str) -> Option | None:
    return next((o for o in reversed(options(script)) if o.name in names and o.value is not None), None)


def number(text: str | None) -> float | None:
    """300B, 1e12, 2_359_296; None for what is none."""
    match = NUMBER.fullmatch((text or "").strip())
    if not match:
        return None
    try:
        return float(match[1].replace("_", "").replace(",", "")) * UNITS[match[2].lower()]
    except ValueError:
        return None


def trains(c: Command) -> bool:
    """Whether this command starts training."""
    names = [w.rpartition("/")[2] for w in c.words]
    if names[0] in COPIES | {"rm", "echo", "mkdir", "cd", "source", "sbatch", "export", "pip", "trap", "git", "cat"}:
        return False
    if LAUNCHERS & set(names):
        return True
    runs_python = any(re.fullmatch(r"python[\d.]*|srun|mpirun|bash|sh", n) for n in names)
    return (runs_python or names[0].endswith(".sh")) and any(PROGRAM.fullmatch(w) for w in c.words)


def training(script: Script) -> list[Command]:
    return [c for c in script.commands if trains(c)]


def configured_elsewhere(script: Script) -> bool:
    """Whether the run is described in a file that the script only names."""
    if any(re.fullmatch(r"CONFIG(?:_FILE|_PATH)?|RECIPE", name) for name in script.variables):
        return True
    for c in training(script):
        program = next((i for i, w in enumerate(c.words) if w.endswith(".py") or w == "-m"), -1)
        own = c.words[program + 1 :]
        if any(CONFIG_FILE.fullmatch(w.partition("=")[2] or w) for w in own if not w.startswith("--deepspeed")):
            return True
        if any(CONFIG_OPTIONS.fullmatch(normal(w.partition("=")[0])) for w in own if w.startswith("-")):
            return True
    return False


def framework(script: Script) -> str | None:
    """megatron | transformers, whose runs are described by options alone; None: another one, or nobody knows."""
    if configured_elsewhere(script) or not training(script):
        return None
    names = {o.name for o in options(script)}
    if names & {"train_iters", "train_samples"} and names & {"num_layers", "micro_batch_size", "use_checkpoint_args"}:
        return "megatron"
    if "per_device_train_batch_size" in names and "output_dir" in names:
        return "transformers"
    return None


def described(script: Script) -> bool:
    """Whether the options of the script describe the run: enough of them, and no configuration file."""
    own = [o for c in training(script) for o in _own_options(c)]
    return framework(script) is not None or (len(own) >= ENOUGH_OPTIONS and not configured_elsewhere(script))


def _own_options(c: Command) -> list[Option]:
    """Of the program that is trained, not of its launcher."""
    program = next((i for i, w in enumerate(c.words) if w.endswith((".py", ".sh"))), None)
    if program is None:
        program = next((i + 1 for i, w in enumerate(c.words) if w == "-m"), len(c.words) - 1)
    return list(_options(Command(words=c.words[program:], line=c.line)))


def resumes_by_itself(script: Script) -> bool:
    """Frameworks that look for the newest checkpoint without being told."""
    words = " ".join(w for c in script.commands for w in c.words).lower()
    return bool(AUTOMATIC.search(words))


# -- checkpoints


def checkpoint_paths(script: Script) -> dict[str, Option]:
    """Where checkpoints go, as written -> the option or variable that says so."""
    found = {path(o.value): o for o in options(script) if o.name in CHECKPOINT_OPTIONS and o.value}
    if found:
        return found
    named = {n: v for n, v in script.variables.items() if CHECKPOINT_VARIABLES.fullmatch(n) and v}
    return {path(v): Option(n, v, 0) for n, v in named.items()}


def path(text: str) -> str:
    """Without what differs in writing only: ${A} and $A, ${A:?}, ${A%/}, // and a slash at the end."""
    plain = re.sub(r"\$\{(\w+)(?::?\?[^{}]*|%%?/)?\}", r"$\1", text)
    return posixpath.normpath(plain) if plain else plain


def deletions(script: Script) -> Iterator[Deletion]:
    """Folders that are removed as a whole."""
    for c in script.commands:
        words = c.words
        if words[0] == "trap":
            text = " ".join(words[1:])
            for operand in m[1].split() if (m := TRAPPED_RM.search(text)) else ():
                yield Deletion(whole(operand), c.line, c.guarded, f"trap {text}")
        elif removed := _removed_folders(words):
            yield from (Deletion(whole(w), c.line, c.guarded, " ".join(words)) for w in removed)
        elif words[0] == "find" and "-delete" in words and not FILTERS & set(words):
            yield Deletion(path(words[1]), c.line, c.guarded, " ".join(words))


def _removed_folders(words: tuple[str, ...]) -> list[str]:
    """What an rm takes with all that is in it, run here or on the nodes."""
    names = [w.rpartition("/")[2] for w in words]
    if names[0] != "rm" and not (names[0] in ON_THE_NODES and "rm" in names):
        return []
    given = words[names.index("rm") + 1 :]
    recursive = any(re.fullmatch(r"-\w*[rR]\w*|--recursive", w) for w in given)
    return [w for w in given if not w.startswith("-")] if recursive else []


TRAPPED_RM = re.compile(r"\brm\s+-\w*[rR]\w*\s+([^;&|]+)")
ON_THE_NODES = {"srun", "pdsh", "mpirun", "ssh"}
FILTERS = {"-name", "-iname", "-mtime", "-mmin", "-newer", "-path", "-regex", "-size", "-empty", "-type", "-ctime"}


def whole(operand: str) -> str:
    """`DIR/*` empties DIR."""
    return path(re.sub(r"/(?:\*|\.\*|\{,\.\}\*)\Z", "", operand))


def covers(deleted: str, kept: str) -> bool:
    """Whether `deleted` is `kept` or a folder above it."""
    return deleted == kept or kept.startswith(deleted.rstrip("/") + "/")


def copied(script: Script, folder: str, *, before: int) -> bool:
    """Whether a command up to that line takes the folder elsewhere."""
    return any(
        COPIES & {w.rpartition("/")[2] for w in c.words}
        and c.line <= before
        and any(path(w).startswith(folder) for w in c.words)
        for c in script.commands
    )


def resume_is_off(script: Script) -> Option | None:
    """An option that says to start from nothing."""
    return next(
        (
            o
            for o in options(script)
            if (RESUME_OPTIONS.fullmatch(o.name) and not is_on(o))
            or (o.name in ("no_resume", "from_scratch", "no_load", "fresh", "ignore_checkpoint") and is_on(o))
        ),
        None,
    )


def is_on(o: Option) -> bool:
    return (o.value or "true").lower() not in OFF


def resumes(script: Script) -> bool:
    """Whether anything in the script speaks of going on from a checkpoint."""
    if resume_is_off(script):
        return False
    if any(LOAD_OPTIONS.fullmatch(o.name) and is_on(o) for o in options(script)):
        return True
    words = " ".join([*(w for c in script.commands for w in c.words), *script.variables]).lower()
    return bool(re.search(r"resum|latest|last\.ckpt|--load\b|restor|continue", words))


# -- sizes


def num_nodes(script: Script) -> int | None:
    """Of the scheduler's lines: --nodes=4, --nodes 4, -N4, -N 4; of a range its upper end is not known."""
    lines = (" ".join(c.words) for c in script.commands if c.words[0] == "sbatch")
    found = [int(m[1]) for line in lines if (m := re.search(r"\s(?:--nodes[= ]|-N[ =]?)(\d+)(?![\d-])", line))]
    return found[-1] if found else None


def steps(script: Script) -> float | None:
    found = value(script, *STEP_OPTIONS)
    return number(found.value) if found else None


def tokens_needed(script: Script) -> float | None:
    """As the script says it, else steps x sequences x tokens of a sequence."""
    if (said := value(script, *BUDGET_OPTIONS)) and (found := number(said.value)):
        return found
    batch, sequence = global_batch(script), value(script, *SEQUENCE_OPTIONS)
    parts = (steps(script), batch, number(sequence.value) if sequence else None)
    return None if None in parts else (parts[0] or 0) * (parts[1] or 0) * (parts[2] or 0)


def global_batch(script: Script) -> float | None:
    """Sequences per step: said, or those of one GPU times GPUs times accumulation."""
    if whole := value(script, *BATCH_OPTIONS):
        return number(whole.value)
    micro, accumulation = value(script, *MICRO_BATCHES), value(script, "gradient_accumulation_steps", "grad_accum")
    gpus, nodes = gpus_per_node(script), num_nodes(script)
    own = number(micro.value) if micro else None
    times = number(accumulation.value) if accumulation else 1.0
    return None if own is None or gpus is None or nodes is None or times is None else own * times * gpus * nodes


def gpus_per_node(script: Script) -> int | None:
    """Of the scheduler's lines: --gpus-per-node=8, --gres=gpu:h100:8, with a kind or without."""
    lines = " ".join(w for c in script.commands if c.words[0] == "sbatch" for w in c.words)
    match = re.search(r"--(?:gpus-per-node|gres)[= ](?:gpu:)?(?:[A-Za-z]\w*:)?(\d+)\b", lines)
    return int(match[1]) if match else None


def step_s(script: Script) -> tuple[float, str] | None:
    """(seconds of a step, where it says so): a variable or a comment."""
    for name, text in script.variables.items():
        if re.fullmatch(
            r"(?:S|SEC|SECS|SECONDS)_PER_(?:STEP|ITER|ITERATION)|STEP_(?:TIME_)?S(?:ECONDS)?", name
        ) and number(text):
            return number(text) or 0.0, f"{name}={text}"
    for line, text in script.comments:
        if match := STEP_TIME_SAID.search(text):
            return float(match[1]) / (1000 if match[2].lower() == "ms" else 1), f"line {line}: {text[:80]}"
    return None


def tokens_of_data(script: Script) -> tuple[float, str] | None:
    """(tokens, where it says so)."""
    for name, text in script.variables.items():
        if DATA_TOKENS.fullmatch(name) and (found := number(text)):
            return found, f"{name}={text}"
    for o in options(script):
        if DATA_TOKENS.fullmatch(o.name) and (found := number(o.value)):
            return found, f"--{o.name} {o.value}"
    for line, text in script.comments:
        if (match := TOKENS_SAID.search(text)) and (found := number(match[1] + match[2])):
            return found, f"line {line}: {text[:80]}"
    return None


def limit_s(script: Script) -> float | None:
    """The scheduler's time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    given = directive(script, "time", "t")
    match = DURATION.fullmatch(given.value or "") if given else None
    if not match:
        return None
    days, a, b, c = (int(x) if x else None for x in match.groups())
    if days is not None:
        return days * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if b is None:
        return (a or 0) * 60
    return (a or 0) * 60 + b if c is None else (a or 0) * 3600 + b * 60 + c
