"""Variables that a file sets for the programs which it starts: sbatch and shell scripts, command lines, Dockerfiles,
Kubernetes and compose YAML, NCCL's configuration files.

Nothing is run. Shell variables are put in where the script itself gives them a value; what only its run can tell
stays as it is written (`$HOSTNAME`).
"""

import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from smoldiag import redact
from smoldiag.facts import Env, Variable
from smoldiag.facts.script import Command, Script
from smoldiag.model.environment import conf_lines, is_relevant

MOST_LINES = 200  # of one command: an open quote ends there
MOST_COMMANDS = 20_000
MOST_GIVEN_UP = 50  # lines whose quotes nothing closes; with more of them each line is taken for itself
NOT_PLAIN = re.compile(r"[\\'\"`#]|\$\(")
MOST_DEPTH = 4  # of scripts within scripts (bash -c, here-documents)
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?[-=]([^{}]*)|:?\?[^{}]*|%/)?\})")
COUNT_OF_TOKENS = re.compile(r"(?i)\w*TOKENS\w*=[\d.,_]+(?:e\d+)?[KMBT]?")
HEREDOC = re.compile(r"(?<!<)<<(-?)\s*(['\"]?)([A-Za-z_][\w.-]*)\2")
DIRECTIVE = re.compile(r"#(?:SBATCH|PBS|\$)\s+(.*)")
COMMENT = re.compile(r"\s*#(?!!|SBATCH|PBS)")
SUBSTITUTED = "$SMOLDIAG_SUBSTITUTED"  # stands for $(...) while a line is cut into words
RESERVED = {
    "if",
    "then",
    "else",
    "elif",
    "do",
    "while",
    "until",
    "{",
    "!",
    "time",
    "exec",
    "nohup",
    "sudo",
    "eval",
    "command",
}
SHELLS = {"sh", "bash", "zsh", "dash", "ksh"}
MPI = {"mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prun"}
SLURM = {"srun", "sbatch", "salloc"}
CONTAINERS = {"docker", "podman", "nerdctl", "singularity", "apptainer"}
SLURM_COUNTS = {  # options of sbatch whose value its job gets as a variable
    "--nodes": "SLURM_NNODES",
    "-N": "SLURM_NNODES",
    "--ntasks-per-node": "SLURM_NTASKS_PER_NODE",
    "--ntasks": "SLURM_NTASKS",
    "-n": "SLURM_NTASKS",
}


@dataclass
class State:
    """What a script has set so far."""

    file: str
    shell: dict[str, str] = field(default_factory=dict)  # exported or not
    exported: dict[str, list[tuple[str, int]]] = field(
        default_factory=dict
    )  # values and their lines, the last in force
    set_at: dict[str, int] = field(default_factory=dict)
    export_all: bool = False
    commands: list[Command] | None = None  # None: nobody asks for them
    open_ifs: int = 0

    def export(self, name: str, value: str, line: int) -> None:
        value = self.expanded(value)
        self.shell[name] = value
        self.exported.setdefault(name, []).append((value, line))

    def expanded(self, text: str) -> str:
        """With the variables put in that the script has set, and defaults as in ${NAME:-default}."""

        def value(match: re.Match[str]) -> str:
            found = self.shell.get(match[1] or match[2], match[0] if match[3] is None else match[3])
            return found.removesuffix("/") if match[0].endswith("%/}") else found

        return REFERENCE.sub(value, text).replace(SUBSTITUTED, "$(...)")


def parse(text: str, *, file: str, export_all: bool | None = None) -> Env:
    """What the file sets, each value with `file:line`. `file` is its path: the name tells what it is.

    `export_all`: whether plain assignments reach programs, too; None: only those of a file named .env.
    """
    state = State(file=file)
    read = {"dockerfile": dockerfile, "yaml": yaml, "conf": conf}.get(kind(text, file), shell)
    state.export_all = file.endswith(".env") if export_all is None else export_all
    read(text.replace("\r\n", "\n"), state)
    variables = tuple(_variable(name, state) for name in sorted(state.exported) if is_relevant(name))
    return Env(variables=variables, complete=False)


def commands(text: str, *, file: str) -> Script:
    """What the file would run: the same reading, for whoever asks what happens rather than what is set."""
    kept: list[Command] = []
    state = State(file=file, commands=kept)
    read = {"dockerfile": dockerfile, "yaml": yaml, "conf": conf}.get(kind(text, file), shell)
    text = text.replace("\r\n", "\n")
    read(text, state)
    comments = ((i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if COMMENT.match(line))
    return Script(
        file=file,
        commands=tuple(kept),
        variables={name: _value_shown(name, value) for name, value in state.shell.items()},
        comments=tuple((i, redact.text(line)) for i, line in comments),
    )


def _value_shown(name: str, value: str) -> str:
    if COUNT_OF_TOKENS.fullmatch(f"{name}={value}"):
        return value
    return redact.variable(name, redact.command(_words_of(value)) if "--" in value else value)


def kind(text: str, file: str) -> str:
    """dockerfile | yaml | conf | shell"""
    name = file.rpartition("/")[2].lower()
    if re.search(r"(?m)^apiVersion:\s", text):
        return "yaml"
    if name.startswith(("dockerfile", "containerfile")) or name.endswith((".dockerfile", ".containerfile")):
        return "dockerfile"
    if name.endswith((".yaml", ".yml")):
        return "yaml"
    if name.endswith("nccl.conf"):
        return "conf"
    if re.search(r"(?m)^services:\s*$", text):
        return "yaml"
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    return "dockerfile" if re.match(r"(?i)(FROM\s+\S+|ARG\s+\w+)", first) and "ENV" in text.upper() else "shell"


def _variable(name: str, state: State) -> Variable:
    *before, (value, line) = state.exported[name]
    return Variable(
        name=name,
        value=redact.variable(name, value),
        origin=f"{state.file}:{line}",
        shadowed=tuple(f"{state.file}:{at} ({redact.variable(name, old)})" for old, at in reversed(before)),
    )


def conf(text: str, state: State) -> None:
    """NCCL's own format: the first line of a name counts."""
    for line, name, value in conf_lines(text):
        if name not in state.exported:
            state.exported[name] = [(value, line)]


# -- shell


def shell(text: str, state: State, *, first_line: int = 1, depth: int = 0) -> None:
    lines = text.split("\n")
    at = given_up = 0
    while at < len(lines):
        start = at
        if directive := DIRECTIVE.match(lines[at]):
            _command(["sbatch", *_words_of(directive[1])], [start + first_line] * 99, state, depth)
            at += 1
            continue
        command, at, is_closed = _logical_line(lines, at, MOST_LINES if given_up < MOST_GIVEN_UP else 1)
        given_up += not is_closed
        for dash, _, word in HEREDOC.findall(command):
            at = _here_document(lines, at, word, bool(dash), command, state, first_line, depth)
        for words, numbers in _statements(command, start + first_line):
            _statement(words, numbers, state, depth)
        if SUBSTITUTED in command and depth < MOST_DEPTH:
            for line, inner in _substitutions("\n".join(lines[start:at])):
                shell(inner, state, first_line=start + first_line + line, depth=depth + 1)


@dataclass
class Open:
    """What a line leaves open for the next one."""

    quote: str = ""
    brackets: int = 0  # of $( ... )
    inner: str = ""  # a quote within them
    ticks: bool = False  # ` ... `
    continued: bool = False  # a backslash at the end

    def __bool__(self) -> bool:
        return bool(self.quote or self.brackets or self.ticks or self.continued)


def _logical_line(lines: list[str], at: int, most: int) -> tuple[str, int, bool]:
    """A command with its continued lines and open quotes, cleaned; the line after it; whether its quotes end."""
    is_open = Open()
    cleaned: list[str] = []
    for end in range(at, min(at + most, len(lines))):
        cleaned.append(_cleaned(lines[end], is_open))
        if not is_open:
            break
    if is_open.quote or is_open.brackets or is_open.ticks:  # nothing closes it: a line of its own
        return re.sub(r"['\"]", " ", _cleaned(lines[at], Open())), at + 1, False
    return "\n".join(cleaned), at + len(cleaned), True


def _cleaned(line: str, is_open: Open) -> str:
    """A line without comments and continuations, with $(...) as one word; `is_open` goes on from the line before."""
    if not is_open and not NOT_PLAIN.search(line):
        return line
    is_open.continued = False
    out: list[str] = []
    i = 0
    while i < len(line):
        c = line[i]
        step = 1
        if c == "\\" and (is_open.inner or is_open.quote) != "'":
            step = 2
            if i + 1 == len(line):
                is_open.continued = True
            elif not is_open.brackets and not is_open.ticks:
                out.append(line[i : i + 2])
        elif is_open.brackets:
            _within_brackets(c, is_open)
        elif is_open.ticks:
            is_open.ticks = c != "`"
        elif line.startswith("$(", i) and is_open.quote != "'":
            step = 2
            is_open.brackets = 1
            out.append(SUBSTITUTED)
        elif c == "`" and is_open.quote != "'":
            is_open.ticks = True
            out.append(SUBSTITUTED)
        elif c == "#" and not is_open.quote and (i == 0 or line[i - 1] in " \t;&|("):
            break
        else:
            if is_open.quote:
                is_open.quote = "" if c == is_open.quote else is_open.quote
            elif c in "\"'":
                is_open.quote = c
            out.append(c)
        i += step
    return "".join(out)


def _within_brackets(c: str, is_open: Open) -> None:
    if is_open.inner:
        is_open.inner = "" if c == is_open.inner else is_open.inner
    elif c in "\"'":
        is_open.inner = c
    else:
        is_open.brackets += {"(": 1, ")": -1}.get(c, 0)


def _substitutions(text: str) -> Iterator[tuple[int, str]]:
    """The commands in $(...), each with the number of lines before it."""
    at = 0
    while (start := text.find("$(", at)) >= 0:
        is_open = Open(brackets=1)
        at = start + 2
        while at < len(text) and is_open.brackets:
            if text[at] == "\\" and is_open.inner != "'":
                at += 1
            else:
                _within_brackets(text[at], is_open)
            at += 1
        if "=" in text[start:at] and not text.startswith("$((", start):
            yield text.count("\n", 0, start), text[start + 2 : at - 1]


def _here_document(
    lines: list[str], at: int, word: str, indented: bool, command: str, state: State, first_line: int, depth: int
) -> int:
    """Reads what follows up to the word: a script that is written or run, or NCCL's configuration. Gives its end."""
    end = at
    while end < len(lines) and (lines[end].lstrip("\t") if indented else lines[end]).rstrip() != word:
        end += 1
    body = "\n".join(line.lstrip("\t") if indented else line for line in lines[at:end])
    if depth < MOST_DEPTH and end < len(lines):
        if "nccl.conf" in command:
            for number, name, value in conf_lines(body):
                state.exported.setdefault(name, []).append((state.expanded(value), number + at + first_line - 1))
        elif not re.search(r"\bpython[\d.]*\b", command):
            shell(body, state, first_line=at + first_line, depth=depth + 1)
    return end + 1


def _statements(command: str, line: int) -> Iterator[tuple[list[str], list[int]]]:
    """The simple commands of a line: their words, and the line of each."""
    words: list[str] = []
    numbers: list[int] = []
    skip = False
    for word, number in _words(command, line):
        if word and not word.strip("();&|"):
            if words:
                yield words, numbers
            words, numbers, skip = [], [], False
        elif word and not word.strip("<>&"):
            skip = True  # the next word is a file
        elif skip:
            skip = False
        else:
            words.append(word)
            numbers.append(number)
    if words:
        yield words, numbers


def _words(command: str, line: int) -> Iterator[tuple[str, int]]:
    stream = io.StringIO(command)
    lexer = shlex.shlex(stream, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        while (word := lexer.get_token()) is not None:
            yield word, line + command.count("\n", 0, max(stream.tell() - 1, 0))
    except ValueError:  # a quote that never ends
        return


def _words_of(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _statement(words: list[str], numbers: list[int], state: State, depth: int) -> None:
    if words and words[0] in ("if", "fi"):
        state.open_ifs = max(state.open_ifs + (1 if words[0] == "if" else -1), 0)
    while words and words[0] in RESERVED:
        words, numbers = words[1:], numbers[1:]
    prefix: list[tuple[str, str, int]] = []
    while words and (match := ASSIGNMENT.fullmatch(words[0])):
        old = state.shell.get(match[1], "") if match[2] else ""
        prefix.append((match[1], old + match[3], numbers[0]))
        words, numbers = words[1:], numbers[1:]
    for name, value, line in prefix:
        if words or name in state.exported or state.export_all:
            state.export(name, value, line)
        else:
            state.shell[name] = state.expanded(value)
            state.set_at[name] = line
    if words:
        _command(words, numbers, state, depth)


def _command(words: list[str], numbers: list[int], state: State, depth: int) -> None:
    name, rest, lines = words[0].rpartition("/")[2], words[1:], numbers[1:]
    if state.commands is not None and len(state.commands) < MOST_COMMANDS:
        line = numbers[0] if numbers else 0
        state.commands.append(Command(words=_shown(words, state), line=line, guarded=state.open_ifs > 0))
    if name in ("export", "declare", "typeset", "local", "readonly"):
        if name == "export" or any(re.fullmatch(r"-\w*x\w*", w) for w in rest):
            _exported(rest, lines, state)
    elif name == "setenv" and len(rest) > 1:
        state.export(rest[0], rest[1], lines[0])
    elif name in ("unset", "unsetenv"):
        for word in rest:
            state.exported.pop(word, None)
            state.shell.pop(word, None)
    elif name == "set":
        state.export_all |= "-a" in rest or "allexport" in rest
        state.export_all &= "+a" not in rest
    elif name == "env":
        _env(rest, lines, state, depth)
    elif name in SHELLS and any(re.fullmatch(r"-\w*c", w) for w in rest):
        at = next(i for i, w in enumerate(rest) if re.fullmatch(r"-\w*c", w)) + 1
        if at < len(rest) and depth < MOST_DEPTH:
            shell(rest[at], state, first_line=lines[at] - rest[at].count("\n"), depth=depth + 1)
    else:
        _launcher(name, rest, lines, state, depth)


def _shown(words: list[str], state: State) -> tuple[str, ...]:
    """Expanded and redacted; what a variable holds becomes the words that it is."""
    whole = [part for word in words for part in _parts(word, state.expanded(word))]
    shown: list[str] = []
    option = ""
    for word in whole:
        shown.append(redact.variable(option, word) if option and not word.startswith("-") else redact.text(word))
        option = word.lstrip("-").replace("-", "_") if word.startswith("-") and "=" not in word else ""
    return tuple(shown)


def _parts(word: str, expanded: str) -> list[str]:
    return _words_of(expanded) if "$" in word and any(c.isspace() for c in expanded) else [expanded]


def _exported(words: list[str], lines: list[int], state: State) -> None:
    for word, line in zip(words, lines, strict=True):
        if match := ASSIGNMENT.fullmatch(word):
            state.export(match[1], (state.shell.get(match[1], "") if match[2] else "") + match[3], line)
        elif word in state.shell and word not in state.exported:
            state.exported[word] = [(state.shell[word], state.set_at.get(word, line))]


def _env(words: list[str], lines: list[int], state: State, depth: int) -> None:
    i = 0
    while i < len(words):
        if words[i] in ("-u", "--unset"):
            i += 1
        elif match := ASSIGNMENT.fullmatch(words[i]):
            state.export(match[1], match[3], lines[i])
        elif not words[i].startswith("-"):
            _command(words[i:], lines[i:], state, depth)
            return
        i += 1


def _launcher(name: str, words: list[str], lines: list[int], state: State, depth: int) -> None:
    """Options of launchers that set variables, and the command that they start."""
    i = 0
    while i < len(words):
        word, line = words[i], lines[i]
        following = words[i + 1] if i + 1 < len(words) else ""
        option, equals, attached = word.partition("=")
        given = attached if equals and word.startswith("--") else following
        if name in MPI and word == "-x":
            i += _pair(following, line, state)
        elif name in MPI and word in ("-genv", "-env", "--genv", "--env") and i + 2 < len(words):
            if "=" in following:
                i += _pair(following, line, state)
            else:
                state.export(following, words[i + 2], line)
                i += 2
        elif name in SLURM and option == "--export":
            _listed(given, line, state)
        elif name in SLURM and (found := _slurm_count(word, following)):
            state.export(*found, line)
        elif name in CONTAINERS and (word in ("-e", "--env") or option == "--env"):
            _listed(given, line, state) if name in ("singularity", "apptainer") else _pair(given, line, state)
        elif name == "qsub" and word == "-v":
            _listed(following, line, state)
        elif word.rpartition("/")[2] in {*SHELLS, *MPI, *SLURM, "env"} and i + 1 < len(words):
            _command(words[i:], lines[i:], state, depth)
            return
        i += 1


def _pair(text: str, line: int, state: State) -> int:
    if match := ASSIGNMENT.fullmatch(text):
        state.export(match[1], match[3], line)
    return 1


def _listed(text: str, line: int, state: State) -> None:
    """ALL,A=b,C=d,e: a part that is no name belongs to the value before it."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and "=" in parts[-1] and not re.fullmatch(r"[A-Za-z_]\w*(=.*)?", part, re.DOTALL):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    for part in parts:
        _pair(part, line, state)


def _slurm_count(word: str, following: str) -> tuple[str, str] | None:
    option, equals, attached = word.partition("=")
    value = attached if equals else following
    if match := re.fullmatch(r"(-[Nn])(\d+)", word):
        option, value = match[1], match[2]
    return (SLURM_COUNTS[option], value) if option in SLURM_COUNTS and value.isdigit() else None


# -- Dockerfile


def dockerfile(text: str, state: State) -> None:
    """ENV in both forms; of the last stage, with what its base stages set."""
    stages: dict[str, tuple[dict[str, str], dict[str, list[tuple[str, int]]]]] = {}
    name = ""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        start = at
        parts = [lines[at]]
        while parts[-1].rstrip().endswith("\\") and at + 1 < len(lines):
            at += 1
            parts.append("\\" if lines[at].lstrip().startswith("#") else lines[at])
        at += 1
        body = " \n".join(part.rstrip().removesuffix("\\") for part in parts)
        match = re.match(r"\s*([A-Za-z]+)\s+(.*)", body, re.DOTALL)
        if not match or body.lstrip().startswith("#"):
            continue
        instruction, rest = match[1].upper(), match[2]
        if instruction == "FROM":
            stages[name] = (dict(state.shell), dict(state.exported))
            image, _, alias = rest.partition(" AS " if " AS " in rest else " as ")
            base = stages.get(image.strip())
            state.shell, state.exported = (dict(base[0]), dict(base[1])) if base else ({}, {})
            name = alias.strip()
        elif instruction == "ARG" and (given := ASSIGNMENT.fullmatch(rest.strip())):
            state.shell[given[1]] = given[3].strip("\"'")
        elif instruction == "ENV":
            _docker_env(rest, start + 1, state)
        elif instruction in ("CMD", "ENTRYPOINT", "RUN") and not rest.lstrip().startswith("["):
            inner = State(file=state.file, shell=dict(state.shell))
            shell(rest, inner, first_line=start + 1)
            if instruction != "RUN":  # what RUN sets is gone with it
                state.exported.update(inner.exported)


def _docker_env(rest: str, line: int, state: State) -> None:
    words = list(_words(rest, line))
    if words and "=" in words[0][0]:
        for word, number in words:
            _pair(word, number, state)
    elif words:
        value = rest.strip()[len(words[0][0]) :].strip()
        state.export(words[0][0], value, line)


# -- YAML


NAME = re.compile(r"^(\s*)(-\s+)?name:\s*([\"']?)([A-Za-z_]\w*)\3\s*(?:#.*)?$")
VALUE = re.compile(r"^(\s*)(-\s+)?value:\s*(.*?)\s*$")
FROM_ELSEWHERE = re.compile(r"^\s*valueFrom:")
FLOW = re.compile(r"\{[^{}]*\bname:\s*[\"']?(\w+)[\"']?\s*,\s*value:\s*(\"[^\"]*\"|'[^']*'|[^,}]*)[^{}]*\}")
MAPPING = re.compile(r"^\s*([A-Z][A-Z0-9_]+):\s+(\S.*?)\s*$")
ITEM = re.compile(r"^\s*-\s+(\S.*?)\s*$")
YAML_NULL = ("null", "~", "Null", "NULL")
BLOCK = re.compile(r"^(\s*)(-\s+)?(?:[\w.-]+:\s*)?[|>][+-]?\d*\s*(?:#.*)?$")


def yaml(text: str, state: State) -> None:
    """`env:` of containers, ConfigMaps, compose files, and the shell in `command:` and `args:`."""
    lines = text.split("\n")
    at = 0
    pending: dict[str, tuple[str, int]] = {}
    while at < len(lines):
        line = lines[at]
        if block := BLOCK.match(line):
            at = _yaml_block(lines, at, len(block[1]), state)
            continue
        if (name := NAME.match(line)) or (value := VALUE.match(line)):
            if line.lstrip().startswith("-"):
                pending = {}
            if name:
                pending["name"] = (name[4], at + 1)
            else:
                pending["value"] = (_scalar(value[3]) if value else "", at + 1)
            if len(pending) == 2:
                state.exported.setdefault(pending["name"][0], []).append(pending["value"])
                pending = {}
        elif FROM_ELSEWHERE.match(line) and "name" in pending:
            state.exported.setdefault(pending["name"][0], []).append(("$(...)", at + 1))
            pending = {}
        else:
            for flow_name, flow_value in FLOW.findall(line):
                state.exported.setdefault(flow_name, []).append((_scalar(flow_value), at + 1))
            _yaml_plain(line, at + 1, state)
        at += 1


def _yaml_plain(line: str, number: int, state: State) -> None:
    if mapping := MAPPING.match(line):
        value = _scalar(mapping[2])
        if value not in YAML_NULL or mapping[2][0] in "\"'":
            state.exported.setdefault(mapping[1], []).append((value, number))
    elif (item := ITEM.match(line)) or (item := re.match(r"^\s*(?:command|args):\s*(\[.*\])\s*$", line)):
        text = _scalar(item[1])
        if ASSIGNMENT.fullmatch(text) and " " not in text.partition("=")[0]:
            _pair(text, number, state)
        elif "=" in text:
            for part in re.findall(r"\"((?:[^\"\\]|\\.)*)\"|'([^']*)'", text) if text.startswith("[") else [(text, "")]:
                shell(part[0].replace('\\"', '"') or part[1], state, first_line=number, depth=1)


def _yaml_block(lines: list[str], at: int, indent: int, state: State) -> int:
    """A block scalar: a script, or a text that only looks like one."""
    end = at + 1
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    body = lines[at + 1 : end]
    margin = min((len(b) - len(b.lstrip()) for b in body if b.strip()), default=0)
    shell("\n".join(b[margin:] for b in body), state, first_line=at + 2, depth=1)
    return end


def _scalar(text: str) -> str:
    """A scalar of YAML on one line, without its quotes and comment."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        return text[1:end] if end > 0 else text
    return re.sub(r"\s+#.*$", "", text)
