"""What the rules on variables share: who reads a value, as what, and how it is put right. No rules here."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from smoldiag.facts import Env, Evidence, Variable
from smoldiag.findings import Finding, Fix
from smoldiag.knowledge import variables
from smoldiag.knowledge.variables import Release, VariableSpec
from smoldiag.model import nccl_values as values

Versions = Mapping[str, str]
# keys of Host.versions by component, the first that is known counts; what is not here has a version that nobody reads
VERSION_KEYS = {
    "nccl": ("nccl", "torch_nccl"),  # the library, else what torch was built against
    "torch": ("torch",),
    "gloo": ("torch",),
    "aws-ofi-nccl": ("ofi_nccl",),
    "libfabric": ("libfabric",),
}
TORCH_OF_NCCL = "torch 2.6 and later bring NCCL 2.21.5 or newer"
USER_GUIDE = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"
SUFFIXES = {"k": 10, "m": 20, "g": 30}  # what people mean by 4M, as a power of two
MULTIPLE_OF_32 = {"NCCL_NTHREADS", "NCCL_LL128_NTHREADS"}  # src/graph/tuning.cc getNthreads
AUTOMATIC = -2  # NCCL's own value for "not set"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A variable that is set and known, with the release of the component that reads it."""

    variable: Variable
    spec: VariableSpec
    version: Release | None = None
    scripted: bool = False  # from a script, where a value may stand for what is not known yet

    @property
    def name(self) -> str:
        return self.variable.name

    @property
    def value(self) -> str:
        return self.variable.value

    @property
    def text(self) -> str:
        return f"{self.name}={self.value}"

    @property
    def release(self) -> str:
        """`NCCL 2.27.5`, or the component alone."""
        component = {"nccl": "NCCL", "gloo": "torch"}.get(self.spec.component, self.spec.component)
        return f"{component} {'.'.join(map(str, self.version))}" if self.version else component


def settings(env: Env, versions: Versions | None) -> Iterator[Setting]:
    """What is set, has a value that can be judged, and is known."""
    for v in env:
        spec = variables.find(v.name)
        if spec is not None and not (not env.complete and is_unresolved(v.value)):
            yield setting(v, spec, env, versions)


def setting(v: Variable, spec: VariableSpec, env: Env, versions: Versions | None) -> Setting:
    return Setting(variable=v, spec=spec, version=version_of(spec, versions), scripted=not env.complete)


def version_of(spec: VariableSpec, versions: Versions | None) -> Release | None:
    known = versions or {}
    return variables.release(next((known[k] for k in VERSION_KEYS.get(spec.component, ()) if known.get(k)), None))


def is_unresolved(value: str) -> bool:
    """A script's value that only its run will tell: $HOME, `hostname`, $(NODE_NAME)."""
    return "$" in value or "`" in value


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a value is not simply what was typed."""

    kind: str  # quoted | misread | ignored | refused | range
    taken: str = ""  # what the reader takes instead
    about: str = ""  # the part of the value that is wrong
    better: str = ""  # what was probably meant
    is_octal: bool = False


def trouble(s: Setting) -> Trouble | None:
    """The first thing that is wrong with a value; None where it is read as it stands, or nobody knows how it is."""
    if not s.value and s.spec.reads != "torch-bool":
        return None  # NCCL takes an empty value as unset
    if found := _quoted(s):
        return found
    check = {
        "integer": _integer,
        "torch-bool": _torch_bool,
        "torch-integer": _torch_integer,
        "libfabric-bool": _libfabric_bool,
        "python-integer": _python_integer,
        "number": _python_integer,
        "level": _level,
        "word": _word,
        "strict-word": _strict_word,
        "exact-word": _exact_word,
        "words": _words,
        "interfaces": _interfaces,
        "algorithms": _elements,
        "protocols": _elements,
    }.get(s.spec.reads)
    return check(s) if check else None


def _quoted(s: Setting) -> Trouble | None:
    value = s.value
    bare = value.strip()
    while len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1].strip()
    if _is_typed(s) and bare == value.strip():
        return None  # the typed parser trims
    if bare != value and (bare != value.strip() or s.spec.reads not in ("integer", "torch-integer", "number", "")):
        return Trouble(kind="quoted", about="quotes" if bare != value.strip() else "blanks", better=bare)
    if s.spec.kind == "list" and re.search(r",\s|\s,", value) and s.spec.component in ("nccl", "gloo", "ucx"):
        return Trouble(kind="quoted", about="blanks", better=re.sub(r"\s*,\s*", ",", value))
    return None


def _integer(s: Setting) -> Trouble | None:
    if _is_typed(s):
        if values.typed_bool(s.value) is None:
            return Trouble(kind="ignored", about=s.value)
        return None
    read = values.integer(s.value)
    if read is None:
        return Trouble(kind="ignored", about=s.value)
    value, rest = read
    if rest.strip():
        return Trouble(kind="misread", taken=str(value), about=rest.strip(), better=_meant(s.value))
    if re.fullmatch(r"\s*0\d+\s*", s.value) and value != int(s.value, 10):
        return Trouble(
            kind="misread",
            taken=str(value),
            about="a leading 0 means octal",
            better=s.value.strip().lstrip("0"),
            is_octal=True,
        )
    return _range(s, value)


def _is_typed(s: Setting) -> bool:
    typed = variables.release(s.spec.typed)
    return typed is not None and s.version is not None and s.version >= typed


def _range(s: Setting, value: int) -> Trouble | None:
    low, high = s.spec.lowest, s.spec.highest
    if s.spec.component == "nccl" and (value == AUTOMATIC or str(value) in {d for _, d in s.spec.defaults}):
        return None
    if (low is not None and value < low) or (high is not None and value > high):
        return Trouble(kind="range", about=f"{low} to {high}" if high is not None else f"{low} or more")
    if s.name in MULTIPLE_OF_32 and value % 32:
        return Trouble(kind="range", about="multiples of 32")
    return None


def _meant(text: str) -> str:
    """4M -> 4194304, true -> 1; "" where nobody can tell."""
    if match := re.fullmatch(r"\s*(\d+)\s*([kmgKMG])i?[bB]?\s*", text):
        return str(int(match[1]) << SUFFIXES[match[2].lower()])
    switch = {"on": True, "off": False, "enable": True, "disable": False}.get(text.lower(), values.torch_bool(text))
    if switch is not None:
        return str(int(switch))
    match = re.match(r"\s*(\d+)\s*#", text)
    return match[1] if match else ""


def _torch_bool(s: Setting) -> Trouble | None:
    if values.torch_bool(s.value) is None:
        return Trouble(kind="refused", about=s.value, better=_meant(s.value))
    return None


def _libfabric_bool(s: Setting) -> Trouble | None:
    if values.libfabric_bool(s.value) is None:
        return Trouble(kind="ignored", about=s.value, better=_meant(s.value))
    return None


def _torch_integer(s: Setting) -> Trouble | None:
    read = values.stoi(s.value)
    if read is None:
        return Trouble(kind="refused", about=s.value, better=_meant(s.value))
    if read[1].strip():
        return Trouble(kind="misread", taken=str(read[0]), about=read[1].strip(), better=str(read[0]))
    return _range(s, read[0])


def _python_integer(s: Setting) -> Trouble | None:
    text = s.value.partition(",")[0] if s.name == "OMP_NUM_THREADS" else s.value
    try:
        return _range(s, int(text))
    except ValueError:
        kind = "refused" if s.spec.reads == "python-integer" else "ignored"
        return Trouble(kind=kind, about=s.value, better=_meant(s.value))


def _level(s: Setting) -> Trouble | None:
    if values.level(s.value) is not None:
        return None
    upper = s.value.strip().upper()
    return Trouble(kind="ignored", about=s.value, better=upper if upper in values.LEVELS else "")


def _word(s: Setting) -> Trouble | None:
    upper = s.value.strip().upper()
    if (upper if _is_typed(s) else s.value.upper()) in s.spec.choices:
        return None
    return Trouble(kind="ignored", about=s.value, better=upper if upper in s.spec.choices else "")


def _strict_word(s: Setting) -> Trouble | None:
    if s.value.upper() in s.spec.choices:
        return None
    return Trouble(kind="refused", about=s.value)


def _exact_word(s: Setting) -> Trouble | None:
    if s.value in s.spec.choices:
        return None
    meant = s.value.strip().upper()
    return Trouble(kind="ignored", about=s.value, better=meant if meant in s.spec.choices else "")


def _words(s: Setting) -> Trouble | None:
    unknown = [w for w in s.value.removeprefix("^").split(",") if w.upper() not in s.spec.choices]
    return Trouble(kind="ignored", about=unknown[0]) if unknown else None


def _interfaces(s: Setting) -> Trouble | None:
    """NCCL takes NCCL_SOCKET_IFNAME of one letter as unset (src/misc/socket.cc)."""
    return Trouble(kind="ignored", about=s.value) if s.name == "NCCL_SOCKET_IFNAME" and len(s.value) < 2 else None


def _elements(s: Setting) -> Trouble | None:
    known = values.ALGORITHMS if s.spec.reads == "algorithms" else values.PROTOCOLS
    try:
        values.elements(s.value, known)
    except values.UnknownToken as unknown:
        old = s.version is not None and s.version < (2, 24, 0)  # passes over what it does not know
        return Trouble(kind="ignored" if old else "refused", about=str(unknown))
    return None


def is_default(s: Setting) -> bool | None:
    """Whether the value is what its reader takes anyway. None: in some releases."""
    if not s.spec.defaults or not s.value or trouble(s):
        return False
    if s.version is not None:
        return _same(s, variables.default_at(s.spec, s.version))
    newest = _same(s, s.spec.defaults[-1][1])
    others = {_same(s, default) for _, default in s.spec.defaults}
    return newest if others == {newest} else None if newest else False


def _same(s: Setting, default: str | None) -> bool:
    if default is None:
        return False
    if s.spec.reads == "torch-bool":
        return values.torch_bool(s.value) is values.torch_bool(default)
    if s.spec.reads in ("integer", "torch-integer", "number"):
        return values.integer(s.value) == values.integer(default)
    return s.value.upper() == default.upper()


def is_read(s: Setting) -> bool:
    """False where the release is known not to know the variable."""
    return not variables.is_removed(s.spec, s.version) and not variables.is_missing_yet(s.spec, s.version)


@dataclass(frozen=True)
class Plain:
    """What is set, read as it stands by the releases here, and other than the default: name -> setting."""

    by_name: Mapping[str, Setting] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.by_name.values())

    def get(self, name: str) -> Setting | None:
        return self.by_name.get(name)

    def text(self, name: str) -> str | None:
        found = self.by_name.get(name)
        return found.value if found else None

    def number(self, name: str) -> int | None:
        read = values.integer(self.by_name[name].value) if name in self.by_name else None
        return read[0] if read else None

    def on(self, name: str) -> bool | None:
        """A switch of torch."""
        return values.torch_bool(self.by_name[name].value) if name in self.by_name else None


def plain(env: Env, versions: Versions | None) -> Plain:
    found = (
        s for s in settings(env, versions) if s.value and is_read(s) and not trouble(s) and is_default(s) is not True
    )
    return Plain({s.name: s for s in found})


def finding(s: Setting, message: str, **more: Any) -> Finding:
    """About one variable: who says so and where it stands are filled in."""
    given = {"subject": s.name, "evidence": evidence(s), "sources": sources(s.spec)}
    return Finding(message=message, **(given | more))


def evidence(*found: Setting | None) -> tuple[Evidence, ...]:
    return tuple(Evidence(text=s.text, where=s.variable.origin) for s in found if s)


def sources(spec: VariableSpec) -> tuple[str, ...]:
    guide = (
        (f"{USER_GUIDE}#{spec.name.lower().replace('_', '-')}",) if spec.component == "nccl" and spec.documented else ()
    )
    return (*guide, spec.source)


def remove(v: Variable, *, scripted: bool = False) -> Fix:
    """The line to type, or the line to take out, where the variable is set."""
    path, colon, line = v.origin.rpartition(":")
    if not colon or not line.isdigit():
        return Fix(do="remove it", command=f"unset {v.name}")
    if scripted:
        return Fix(do=f"take {v.name} out of {v.origin}")
    return Fix(do=f"take the line out of {path}", command=f"sed -i '{line}d' {path}")


def replace_by(v: Variable, value: str, *, name: str = "", scripted: bool = False) -> Fix:
    """The same for a better value, or another name."""
    new = f"{name or v.name}={value}"
    typed = f"export {name or v.name}={shlex.quote(value)}"
    path, colon, line = v.origin.rpartition(":")
    if not colon or not line.isdigit():
        gone = f"unset {v.name}; " if name else ""
        return Fix(do="set what was meant", command=gone + typed)
    if scripted:
        return Fix(do=f"in {v.origin} write", command=new)
    return Fix(do=f"in {path} write", command=f"sed -i '{line}c {new}' {path}")
