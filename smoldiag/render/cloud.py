"""The documents of `smoldiag cloud`: lists, what was detected, profiles. Returns text, or records for JSON."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smoldiag.facts.cloud import CloudProfile, Detected, ExpectedRate, ExplainedVariable, Forbidden, Setting
from smoldiag.model import ranges
from smoldiag.model.sizes import human

MAX_RATES = 12


@dataclass(frozen=True, kw_only=True)
class ListedProfile:
    name: str
    cloud: str
    family: str
    gpus: int | None
    gpu: str
    status: str
    instances: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileList:
    """`smoldiag.cloud-list/1`."""

    schema: str = "smoldiag.cloud-list/1"
    profiles: tuple[ListedProfile, ...]


def listed(profiles: Iterable[CloudProfile]) -> ProfileList:
    return ProfileList(
        profiles=tuple(
            ListedProfile(
                name=p.name,
                cloud=p.cloud,
                family=p.family,
                gpus=p.hardware.gpus,
                gpu=p.hardware.gpu_class,
                status=p.status,
                instances=p.instances,
            )
            for p in profiles
        )
    )


def list_text(found: ProfileList) -> str:
    rows = [("profile", "GPUs", "status", "instances")]
    rows += [(p.name, f"{p.gpus or '?'} x {p.gpu}", p.status, ", ".join(p.instances)) for p in found.profiles]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "".join(
        "  ".join((*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)), row[3])).rstrip() + "\n"
        for row in rows
    )


def detected_text(d: Detected) -> str:
    if d.profile:
        head = f"{d.instance or d.family} of {d.cloud}: profile {d.profile} ({d.confidence})"
    elif d.cloud != "unknown":
        head = f"{d.cloud}, but which instance is not known"
    else:
        head = "unknown: nothing names a cloud here"
    return "\n".join([head, *(f"  saw {line}" for line in d.saw)]) + "\n"


def profile_text(p: CloudProfile) -> str:
    return "\n".join(_profile(p)) + "\n"


def _profile(p: CloudProfile) -> Iterator[str]:
    h = p.hardware
    yield f"{p.name}: {p.title}"
    yield f"status {p.status}; instances {', '.join(p.instances) or 'not named'}"
    yield f"hardware: {h.gpus or '?'} x {h.gpu_class}; {_nics(p)}; {h.nvlink or 'NVLink not documented'}"
    if h.layout:
        yield f"  {h.layout}"
    yield f"  [{h.source}]"
    yield from _section("set", (_setting(s) for s in p.settings))
    yield from _section("set by itself", (f"{a.name}={a.value} by {a.by}: {a.why}" for a in p.automatic))
    yield from _section("only against a fault", (_setting(s) for s in p.conditional))
    yield from _section("do not set", (_forbidden(f) for f in p.forbidden))
    yield from _section("modules", (f"{m.name}{'' if m.required else ' (optional)'}: {m.why}" for m in p.modules))
    yield from _section("plugins", (f"{g.minimum or g.name}: {g.why}" for g in p.plugins))
    yield from _section("files", (f"{f.any_of[0]}{' (mount it)' if f.mount else ''}: {f.why}" for f in p.files))
    yield from _section("limits", (f"{limit.name} {limit.value}: {limit.why}" for limit in p.limits))
    yield from _section("expected", (_rate(e) for e in _largest(p.expected)))
    yield from _section(
        "thresholds",
        (
            f"{t.collective} {human(t.size_bytes)} on {t.nodes}: warn below {t.warn_below_gbs:g}, "
            f"fail below {t.fail_below_gbs:g} GB/s; {t.condition or 'default settings'} ({t.basis})"
            for t in p.thresholds
        ),
    )
    yield from _section("launch", (f"{c.launcher}: {c.name} {c.value}: {c.why}".replace("  ", " ") for c in p.launch))
    yield from _section("bad versions", (f"{b.what}: {b.symptom}; {b.fix}" for b in p.bad_versions))
    yield from _section("log lines", (f"{line.level}: {line.line}: {line.meaning}" for line in p.log_lines))
    yield from _section("for support", (f"{s.what}: {s.command}" for s in p.support))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    listed = list(lines)
    if listed:
        yield ""
        yield f"{title}:"
        yield from (f"  {line}" for line in listed)


def _nics(p: CloudProfile) -> str:
    h = p.hardware
    if h.nics and h.nic_gbit_per_s:
        return f"{h.nics} x {h.nic_gbit_per_s:g} Gb/s {h.nic_kind} ({h.fabric})"
    return f"{h.nics or 'some'} {h.nic_kind} ({h.fabric})" if h.nics != 0 else h.fabric


def _setting(s: Setting) -> str:
    when = f" if {s.when}" if s.when else ""
    return f"{s.name}={s.value} ({s.level}{when}; right {ranges.in_words(s.since, s.until)}; {s.scope}): {s.why}"


def _forbidden(f: Forbidden) -> str:
    values = f"={' or '.join(v or '(empty)' for v in f.values)}" if f.values else ""
    other = f" other than {' or '.join(f.allowed)}" if f.allowed else ""
    instead = f"; instead: {f.instead}" if f.instead else ""
    return f"{f.name}{values}{other} ({f.kind} {ranges.in_words(f.since, f.until)}): {f.why}{instead}"


def _rate(e: ExpectedRate) -> str:
    artefact = "; two hosts: says nothing of the NICs" if e.two_node_artefact else ""
    algorithm = f", {e.algorithm}" if e.algorithm else ""
    where = f"{human(e.size_bytes)} on {e.nodes} x {e.gpus_per_node}"
    return f"{e.busbw_gbs:g} GB/s {e.collective} of {where}{algorithm}{artefact}"


def _largest(rates: Iterable[ExpectedRate]) -> list[ExpectedRate]:
    """Per collective, node count and algorithm the largest size; the JSON has all."""
    best: dict[tuple[str, int, str], ExpectedRate] = {}
    for e in rates:
        key = (e.collective, e.nodes, e.algorithm)
        if key not in best or e.size_bytes > best[key].size_bytes:
            best[key] = e
    return sorted(best.values(), key=lambda e: (e.collective, e.nodes, e.algorithm))[:MAX_RATES]


def explained_text(e: ExplainedVariable) -> str:
    lines = [f"{e.name} on {e.profile}"]
    if e.does:
        lines.append(f"  {e.does}" + (f" (default: {e.default})" if e.default else ""))
    lines += [f"  set {_setting(s)} [{s.source}]" for s in e.settings]
    lines += [f"  only against a fault: {_setting(s)} [{s.source}]" for s in e.conditional]
    lines += [f"  set by itself: {a}" for a in e.automatic]
    lines += [f"  do not set {_forbidden(f)} [{f.source}]" for f in e.forbidden]
    if len(lines) == 1 + bool(e.does):
        lines.append("  the profile says nothing of it")
    return "\n".join(lines) + "\n"


# -- pages


def page(p: CloudProfile) -> str:
    """docs/profiles/NAME.md"""
    h = p.hardware
    lines = [f"# {p.name}", "", f"{p.title}. Status: {p.status}.", ""]
    lines += _table(
        ("", ""),
        [
            ("cloud, family", f"{p.cloud}, {p.family}"),
            ("instances", ", ".join(p.instances)),
            (
                "GPUs",
                f"{h.gpus or 'any number'} x {h.gpu_class}" + (f", {h.gpu_memory_gib} GiB" if h.gpu_memory_gib else ""),
            ),
            ("network", _nics(p)),
            ("NCCL's name of it", ", ".join(n for n in p.network if "*" not in n)),
            ("NVLink", h.nvlink),
            ("layout", h.layout),
            ("TCP between hosts", f"{h.host_gbit_per_s:g} Gb/s" if h.host_gbit_per_s else ""),
            ("recognised", p.recognise.how),
            ("source", h.source),
        ],
        drop_empty=True,
    )
    lines += _titled(
        "Set", ("variable", "value", "level", "why", "right", "scope", "source"), [_row(s) for s in p.settings]
    )
    lines += _titled(
        "Set by itself: leave it alone",
        ("variable", "value", "by", "why", "source"),
        [
            (a.name, a.value, a.by + (f", {ranges.in_words(a.since, '')}" if a.since else ""), a.why, a.source)
            for a in p.automatic
        ],
    )
    lines += _titled(
        "Only against a fault",
        ("variable", "value", "when", "why", "right", "source"),
        [(s.name, s.value, s.when, s.why, ranges.in_words(s.since, s.until), s.source) for s in p.conditional],
    )
    lines += _titled(
        "Do not set",
        ("variable", "kind", "wrong", "why", "source"),
        [
            (
                f.name
                + (f"={' or '.join(v or '(empty)' for v in f.values)}" if f.values else "")
                + (f" other than {' or '.join(f.allowed)}" if f.allowed else ""),
                f.kind,
                ranges.in_words(f.since, f.until),
                f.why + (f"; instead: {f.instead}" if f.instead else ""),
                f.source,
            )
            for f in p.forbidden
        ],
    )
    lines += _titled(
        "Plugins", ("plugin", "why", "source"), [(g.minimum or g.name, g.why, g.source) for g in p.plugins]
    )
    lines += _titled(
        "Modules",
        ("module", "why", "source"),
        [(m.name + ("" if m.required else " (optional)"), m.why, m.source) for m in p.modules],
    )
    lines += _titled(
        "Files",
        ("file", "what", "container", "why", "source"),
        [(f.any_of[0], f.what, "mount it" if f.mount else "", f.why, f.source) for f in p.files],
    )
    lines += _titled(
        "Limits", ("limit", "value", "why", "source"), [(x.name, x.value, x.why, x.source) for x in p.limits]
    )
    lines += _titled(
        "Expected bus bandwidth, largest sizes",
        ("collective", "hosts x GPUs", "size", "GB/s", "algorithm", "note", "source"),
        [
            (
                e.collective,
                f"{e.nodes} x {e.gpus_per_node}",
                human(e.size_bytes),
                f"{e.busbw_gbs:g}",
                e.algorithm or "NCCL's choice",
                "two hosts: says nothing of the NICs" if e.two_node_artefact else "",
                e.source,
            )
            for e in _largest(p.expected)
        ],
    )
    lines += _titled(
        "Thresholds",
        ("collective", "hosts", "size", "warn below", "fail below", "condition", "basis", "source"),
        [
            (
                t.collective,
                str(t.nodes),
                human(t.size_bytes),
                f"{t.warn_below_gbs:g}",
                f"{t.fail_below_gbs:g}",
                t.condition,
                t.basis,
                t.source,
            )
            for t in p.thresholds
        ],
    )
    lines += _titled(
        "Launch",
        ("launcher", "what", "why", "source"),
        [(c.launcher, f"{c.name} {c.value}".strip(), c.why, c.source) for c in p.launch],
    )
    lines += _titled(
        "Versions that do not work",
        ("what", "versions", "symptom", "fix", "source"),
        [
            (b.what, (ranges.in_words(b.since, b.until) if b.component else ""), b.symptom, b.fix, b.source)
            for b in p.bad_versions
        ],
    )
    lines += _titled(
        "Log lines", ("line", "", "meaning", "source"), [(x.line, x.level, x.meaning, x.source) for x in p.log_lines]
    )
    lines += _titled(
        "For a support ticket", ("what", "command", "source"), [(s.what, s.command, s.source) for s in p.support]
    )
    return "\n".join(lines).rstrip("\n") + "\n"


def index(profiles: Iterable[CloudProfile]) -> str:
    """docs/profiles/README.md"""
    rows = [
        (f"[{p.name}]({p.name}.md)", f"{p.hardware.gpus or '?'} x {p.hardware.gpu_class}", _nics(p), p.status)
        for p in profiles
    ]
    head = "# Cloud profiles\n\nMade from cloud_profiles/*.toml. What the columns mean: docs/cloud.md.\n\n"
    return head + "\n".join(_table(("profile", "GPUs", "network", "status"), rows)) + "\n"


def _row(s: Setting) -> tuple[str, ...]:
    value = s.value + (f" (outside of containers: {s.on_host})" if s.on_host else "")
    level = f"{s.level}, if {s.when}" if s.when else s.level
    return s.name, value, level, s.why, ranges.in_words(s.since, s.until), s.scope, s.source


def _titled(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["", f"## {title}", "", *_table(columns, rows)] if rows else []


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, drop_empty: bool = False) -> list[str]:
    kept = [row for row in rows if not drop_empty or row[-1]]
    lines = [columns, tuple("---" for _ in columns), *kept]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
