"""What a profile asks for, as text to source, mount or paste: each line with its reason.

For people and for the programs that they paste it into: a shell, /etc/nccl.conf, an sbatch script, a pod, docker.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping

import msgspec

from smoldiag.facts import Env
from smoldiag.facts.cloud import CloudProfile, Convention, Forbidden, Setting
from smoldiag.model import ranges

UNSET_KINDS = ("aborts", "harmful", "no-such-variable", "obsolete")
PATH_LIKE = ("LD_LIBRARY_PATH",)
WIDTH = 116


def rendered(profile: CloudProfile, kind: str, versions: Mapping[str, str]) -> str:
    """`kind` is one of KINDS. Settings whose versions exclude them are left out, and said so in a comment."""
    return "\n".join(KINDS[kind](profile, versions)) + "\n"


def _shell(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    yield from _head(profile, "source it in the job's script: . ./preset.sh")
    yield from _exports(profile, versions, in_pod=False)


def _exports(profile: CloudProfile, versions: Mapping[str, str], *, in_pod: bool) -> Iterator[str]:
    if not _wanted(profile, versions):
        yield from _comment("Nothing has to be set here: what is needed is set by the plugin or the image.")
    for s in _wanted(profile, versions):
        yield ""
        yield from _comment(_reason(s))
        value = _value(s, in_pod=in_pod)
        if s.name in PATH_LIKE:
            yield f'export {s.name}={shlex.quote(value)}"${{{s.name}:+:${s.name}}}"'
        else:
            yield f"export {s.name}={shlex.quote(value)}"
    yield from _not_set(profile, versions)
    for f in _to_unset(profile, versions):
        yield ""
        yield from _comment(f"{f.name}{_values(f)}: {f.why} (wrong {ranges.in_words(f.since, f.until)})")
        yield _unset(f)


def _unset(f: Forbidden) -> str:
    """Of a name with a pattern all that fit; of certain values only those."""
    if "*" in f.name:
        pattern = f.name.replace("*", "[A-Z_]*")
        names = f"$(env | sed -n 's/^\\({pattern}\\)=.*/\\1/p')"
        return f'for name in {names}; do unset "$name"; done'
    if not f.values and not f.allowed:
        return f"unset {f.name}"
    keep, drop = "*) ;;", f"unset {f.name} ;;"
    patterns = "|".join(dict.fromkeys(p for v in f.values or ("*",) for p in _cases(v)))
    kept = "|".join(dict.fromkeys(p for v in f.allowed for p in _cases(v)))
    arms = [f"{kept}) ;;"] if kept else []
    arms += [f"{patterns}) {drop}"] + ([keep] if f.values else [])
    return f'if [ -n "${{{f.name}+set}}" ]; then case "${{{f.name}}}" in {" ".join(arms)} esac; fi'


def _cases(pattern: str) -> Iterator[str]:
    """As case patterns: quoted but for its wildcards, in lower and upper case."""
    for text in (pattern, pattern.lower(), pattern.upper(), pattern.capitalize()):
        yield "*".join(shlex.quote(part) if part else "" for part in text.split("*")) or "''"


def _nccl_conf(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    yield from _head(profile, "for /etc/nccl.conf of the host, or mounted there: what the environment has goes first")
    elsewhere = []
    for s in _wanted(profile, versions):
        if not s.name.startswith("NCCL_"):
            elsewhere.append(s)
            continue
        yield ""
        yield from _comment(_reason(s))
        yield f"{s.name}={_value(s, in_pod=False)}"
    for s in elsewhere:
        yield ""
        yield from _comment(
            f"not for this file, set it in the environment: {s.name}={_value(s, in_pod=False)}: {s.why}"
        )
    yield from _not_set(profile, versions)
    if unset := _to_unset(profile, versions):
        yield ""
        yield from _comment("A file can't unset what the environment sets. Keep these out of both:")
        for f in unset:
            yield from _comment(f"{f.name}{_values(f)}: {f.why} (wrong {ranges.in_words(f.since, f.until)})")


def _slurm(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    yield "#!/bin/bash"
    for c in _conventions(profile, "slurm"):
        if c.kind == "option" and c.value.startswith("#SBATCH "):
            yield from _comment(f"{c.why}")
            yield c.value
    if profile.hardware.gpus:
        yield from _comment("all GPUs of a host, one task for each")
        yield f"#SBATCH --gpus-per-node={profile.hardware.gpus}"
        yield f"#SBATCH --ntasks-per-node={profile.hardware.gpus}"
    yield from _comment("nobody else on the NICs")
    yield "#SBATCH --exclusive"
    yield "set -eu"
    yield ""
    yield from _head(profile, "the head of an sbatch script")
    yield from _exports(profile, versions, in_pod=False)
    yield ""
    starts = [c for c in _conventions(profile, "slurm") if c.kind == "option" and c.value.startswith("srun")]
    for c in _conventions(profile, "slurm"):
        if c.kind == "note":
            yield from _comment(f"{c.value}: {c.why}")
    yield from _comment(f"{starts[0].why}" if starts else "one task per GPU")
    yield f'{starts[0].value if starts else "srun"} "$@"'


def _kubernetes(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    yield from _head(profile, "merge it into the pod template of the job; IMAGE is yours")
    yield "apiVersion: v1"
    yield "kind: Pod"
    yield "metadata:"
    yield f"  name: {profile.name.replace('.', '-')}"
    by_kind: dict[str, list[Convention]] = {}
    for c in _conventions(profile, "kubernetes"):
        by_kind.setdefault(c.kind, []).append(c)
    if annotations := by_kind.get("annotation"):
        yield "  annotations:"
        for c in annotations:
            yield from _comment(f"{c.why}", indent=4)
            yield f"    {c.name}: {_yaml(c.value)}"
    yield "spec:"
    for c in by_kind.get("note", ()):
        yield from _comment(f"{c.value}: {c.why}", indent=2)
    yield "  containers:"
    yield "    - name: train"
    yield "      image: IMAGE"
    wanted = _wanted(profile, versions)
    yield "      env:" if wanted else "      env: [] # nothing has to be set here"
    for s in wanted:
        yield from _comment(_reason(s), indent=8)
        yield f"        - name: {s.name}"
        yield f"          value: {_yaml(_value(s, in_pod=True))}"
    if resources := by_kind.get("resource"):
        for part in ("requests", "limits"):
            yield "      resources:" if part == "requests" else "        limits:"
            if part == "requests":
                yield "        requests:"
            for c in resources:
                if part == "requests":
                    yield from _comment(f"{c.why}", indent=10)
                yield f"          {c.name}: {_yaml(c.value)}"
    if capabilities := by_kind.get("capability"):
        yield "      securityContext:"
        yield "        capabilities:"
        yield "          add:"
        for c in capabilities:
            yield from _comment(f"{c.why}", indent=12)
            yield f"            - {c.value}"
    yield from _volumes(profile, by_kind.get("memory", []))
    yield from _not_set(profile, versions)
    for f in _to_unset(profile, versions):
        yield from _comment(f"not in env, nor in the image: {f.name}{_values(f)}: {f.why}")


def _volumes(profile: CloudProfile, memory: list[Convention]) -> Iterator[str]:
    mounts = [f for f in profile.files if f.mount]
    if not mounts and not memory:
        return
    yield "      volumeMounts:"
    for c in memory:
        yield from _comment(f"{c.why}", indent=8)
        yield "        - name: shm"
        yield f"          mountPath: {c.value}"
    for number, f in enumerate(mounts):
        yield from _comment(f"{f.what}: {f.why}", indent=8)
        yield f"        - name: file-{number}"
        yield f"          mountPath: {_yaml(f.any_of[0])}"
        yield "          readOnly: true"
    yield "  volumes:"
    if memory:
        yield "    - name: shm"
        yield "      emptyDir:"
        yield "        medium: Memory"
    for number, f in enumerate(mounts):
        yield f"    - name: file-{number}"
        yield "      hostPath:"
        yield f"        path: {_yaml(f.any_of[0])}"


def _docker(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    yield "#!/bin/bash"
    yield from _head(profile, 'options for docker run: . ./preset.sh; docker run "${docker_options[@]}" IMAGE COMMAND')
    yield "docker_options=("
    yield "    # all GPUs of the host"
    yield "    --gpus all"
    for c in _conventions(profile, "docker"):
        yield from _comment(f"{c.why}", indent=4)
        yield f"    {c.value}"
    for f in profile.files:
        if f.mount:
            yield from _comment(f"{f.what}: {f.why}", indent=4)
            yield f"    --volume {shlex.quote(f'{f.any_of[0]}:{f.any_of[0]}:ro')}"
    for s in _wanted(profile, versions):
        yield from _comment(_reason(s), indent=4)
        yield f"    --env {shlex.quote(f'{s.name}={_value(s, in_pod=True)}')}"
    yield ")"
    yield from _not_set(profile, versions)
    for unset in _to_unset(profile, versions):
        yield from _comment(f"no --env, nor ENV in the image: {unset.name}{_values(unset)}: {unset.why}")


KINDS: dict[str, Callable[[CloudProfile, Mapping[str, str]], Iterator[str]]] = {
    "shell": _shell,
    "nccl-conf": _nccl_conf,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "docker": _docker,
}


def difference(profile: CloudProfile, env: Env, versions: Mapping[str, str]) -> str:
    """What would change: + to set, ~ to change, - to unset; each with its reason."""
    lines = []
    for s in _wanted(profile, versions):
        found = env.find(s.name)
        value = _value(s, in_pod=False)
        if found is None:
            lines.append(f"+ {s.name}={value}  # {s.why}")
        elif not s.accepts(found.value):
            lines.append(f"~ {s.name}={value}  # is {found.value} ({found.origin}); {s.why}")
    for v in env:
        entry = next((f for f in profile.forbidden if f.means(v.name, v.value)), None)
        if entry and entry.kind != "redundant" and ranges.holds(entry.since, entry.until, versions) is not False:
            lines.append(f"- {v.name}={v.value}  # ({v.origin}); {entry.why}")
    return "\n".join(lines or ["# nothing differs"]) + "\n"


def _wanted(profile: CloudProfile, versions: Mapping[str, str]) -> list[Setting]:
    """Without optional ones, and without those that these versions (the newest, where unknown) exclude."""
    asked = (s for s in profile.settings if s.level != "optional" and not s.when)
    return [s for s in asked if ranges.in_force(s.since, s.until, versions)]


def _to_unset(profile: CloudProfile, versions: Mapping[str, str]) -> list[Forbidden]:
    set_here = {s.name for s in _wanted(profile, versions)}
    return [
        f
        for f in profile.forbidden
        if f.kind in UNSET_KINDS
        and f.name not in set_here
        and ranges.holds(f.since, f.until, versions) is not False
        and not _covered(f, profile)
    ]


def _covered(f: Forbidden, profile: CloudProfile) -> bool:
    """An entry of certain values, where any value of the same name is to be unset besides."""
    return bool(f.values) and any(
        g.name == f.name and not g.values and not g.allowed and g.kind in UNSET_KINDS for g in profile.forbidden
    )


def _not_set(profile: CloudProfile, versions: Mapping[str, str]) -> Iterator[str]:
    """Settings under a condition, or of other versions: as comments."""
    rest = [s for s in profile.settings if s not in _wanted(profile, versions)]
    for s in (*rest, *profile.conditional):
        condition = s.when or f"only {ranges.in_words(s.since, s.until)}"
        yield ""
        yield from _comment(
            f"only if {condition}: {s.name}={s.value}: {s.why}"
            if s.when
            else f"{condition}: {s.name}={s.value}: {s.why}"
        )


def _conventions(profile: CloudProfile, launcher: str) -> list[Convention]:
    return [c for c in profile.launch if c.launcher == launcher]


def _value(s: Setting, *, in_pod: bool) -> str:
    return s.on_host if s.on_host and not in_pod else s.value


def _reason(s: Setting) -> str:
    held = f" (right {ranges.in_words(s.since, s.until)})" if s.since or s.until else ""
    return f"{s.level}: {s.why}{held}"


def _values(f: Forbidden) -> str:
    if f.values:
        return "=" + " or ".join(f.values)
    return f" other than {' or '.join(f.allowed)}" if f.allowed else ""


def _head(profile: CloudProfile, how: str) -> Iterator[str]:
    yield from _comment(f"{profile.name}: {profile.title}")
    yield from _comment(f"{how}. Made by smoldiag cloud apply; it changes nothing by itself.")


def _comment(text: str, *, indent: int = 0) -> Iterator[str]:
    """Wrapped at a width, every line a comment."""
    line = ""
    room = max(WIDTH - indent, 40)
    for word in text.split():
        if line and len(line) + len(word) + 1 > room:
            yield f"{' ' * indent}# {line}"
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield f"{' ' * indent}# {line}"


def _yaml(text: str) -> str:
    """A JSON string is a YAML string."""
    return msgspec.json.encode(text).decode()
