"""Hosts, addresses, users, ids and paths by pseudonyms: the same name becomes the same pseudonym everywhere.

Numbers are given in the order in which names are met, so that equal hosts give equal pseudonyms. What rules read out of
a value stays: private, link-local and mapped addresses keep their kind, neighbours in a network stay neighbours, and
folders of the system and of software keep their names.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from smoldiag.facts import Host, System, Variable

T = TypeVar("T")
PLAIN = {"versions", "version", "firmware", "kernel", "created", "distribution", "dmi", "driver", "product", "model"}
NOT_NAMES = {"localhost", "ip6-localhost", "root", "none", "unknown", "0", ""}
WHOLE = {"SLURM_JOB_NAME", "ROLE_NAME"}  # variables whose value is a name that a person gave
SERVERS = {"MASTER_ADDR", "PET_MASTER_ADDR", "RDZV_ENDPOINT"}
SYSTEM_FOLDERS = {"bin", "boot", "dev", "etc", "lib", "lib64", "nix", "proc", "run", "sbin", "sys", "tmp", "usr", "var"}
SOFTWARE = re.compile(
    r"(?i)\.*(?:lib(?:32|64|exec)?|s?bin|include|share|src|opt|local|home|root|mnt|data|users?|scratch|python[\d.]*"
    r"|(?:site|dist)-packages|(?:mini|ana)?conda\d?|envs?|\.?venv\w*|nvidia\w*|nccl[\w.-]*|cuda[\w.-]*|torch|triton"
    r"|amazon|efa|aws-ofi-nccl|openmpi|ompi|hpcx[\w.-]*|mellanox|ofed|plugins?|tests?|extras|stubs|compat|\S+\.so[\d.]*)"
)
TOKENS = re.compile(
    r"(?P<url>(?<=://)[^\s'\"<>]+)"
    r"|(?P<mac>(?<![\w:.-])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![\w:]))"
    r"|(?P<guid>(?<![\w:.-])(?:[0-9A-Fa-f]{4}:){3}[0-9A-Fa-f]{4}(?![\w:]))"
    r"|(?P<ip6>(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4})?(?![\w:]))"
    r"|(?P<ip4>(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]))"
    r"|(?P<path>(?<![\w./-])~?(?:/[\w.+@%,=-]+)+)"
    r"|(?P<word>[A-Za-z0-9_][\w.-]*)"
)


@dataclass
class Pseudonyms:
    """What each name has become."""

    words: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    octets: dict[tuple[int, ...], int] = field(default_factory=dict)

    def named(self, kind: str, name: str) -> str:
        """A pseudonym like host-3."""
        if name.lower() in NOT_NAMES:
            return name
        if name not in self.words:
            self.words[name] = f"{kind}-{self.number(kind)}"
        return self.words[name]

    def number(self, kind: str) -> int:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self.counts[kind]

    def keep_host(self, host: Host) -> None:
        """Its names, aliases and ids are replaced wherever they are met."""
        own = self.named("host", host.name)
        ids = set((host.ids or {}).values())
        for alias in host.aliases:
            if _is_address(alias) or alias in ids or alias in self.words:
                continue
            stem, _, domain = alias.partition(".")
            if stem == host.name.partition(".")[0]:
                self.words.setdefault(alias, f"{own}.example" if domain else own)
            else:
                self.named(f"{own}-alias", alias)
        self.words.setdefault(host.name.partition(".")[0], own)
        for key, value in (host.ids or {}).items():
            self.named(key, value)

    # -- parts of a text

    def text(self, words: str) -> str:
        return TOKENS.sub(self._token, words)

    def _token(self, match: re.Match[str]) -> str:
        found = match[0]
        kind = match.lastgroup or ""
        if kind == "word":
            return self.words.get(found) or self._domain(found)
        return str(getattr(self, f"_{kind}")(found))

    def _domain(self, word: str) -> str:
        """node7.cluster.local where node7 is known; a word that ends a sentence."""
        if word.endswith((".", "-")):
            return self.words.get(word[:-1], word[:-1]) + word[-1]
        stem, dot, _ = word.partition(".")
        return f"{self.words[stem]}.example" if dot and stem in self.words else word

    def _url(self, url: str) -> str:
        authority, slash, path = url.partition("/")
        return self._server(authority) + (self.text(slash + path) if slash else "")

    def _server(self, authority: str) -> str:
        account, at, rest = authority.rpartition("@")
        server, colon, port = rest.partition(":")
        name = self._ip4(server) if _is_address(server) else self.words.get(server) or self.named("server", server)
        return f"{'user:[redacted]@' if at and account else ''}{name}{colon}{port}"

    def _mac(self, mac: str) -> str:
        if mac.lower() in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"):
            return mac
        if mac not in self.words:
            self.words[mac] = ":".join(re.findall("..", f"02{self.number('mac'):010x}"))
        return self.words[mac]

    def _guid(self, guid: str) -> str:
        if not guid.strip("0:"):
            return guid
        if guid not in self.words:
            self.words[guid] = ":".join(re.findall("....", f"{self.number('guid'):016x}"))
        return self.words[guid]

    def _ip4(self, address: str) -> str:
        parts = [int(p) for p in address.split(".")]
        if max(parts) > 255 or parts[0] in (0, 127, 255) or parts[0] >= 224 or parts[:2] == [169, 254]:
            return address
        kept = 2 if parts[:2] == [192, 168] or (parts[0] == 172 and 16 <= parts[1] < 32) else int(parts[0] == 10)
        same = (0, 255)  # of a network or broadcast address
        made = [n if i < kept or n in same else self._octet(tuple(parts[: i + 1])) for i, n in enumerate(parts)]
        return ".".join(map(str, made))

    def _octet(self, prefix: tuple[int, ...]) -> int:
        if prefix not in self.octets:
            siblings = sum(len(p) == len(prefix) and p[:-1] == prefix[:-1] for p in self.octets)
            self.octets[prefix] = siblings + 1
        return self.octets[prefix]

    def _ip6(self, text: str) -> str:
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError:
            return text
        value = int(address)
        if address.is_unspecified or address.is_loopback or address.is_multicast:
            return text
        if address.ipv4_mapped is not None:
            mapped = self._ip4(str(address.ipv4_mapped))
            if "." in text:
                return f"::ffff:{mapped}"
            made = ipaddress.IPv6Address(f"::ffff:{mapped}")
        else:
            network = value >> 64 if address.is_link_local else 0x20010DB8 << 32 | self._part("network", value >> 64)
            made = ipaddress.IPv6Address(network << 64 | self._part("interface", value & (1 << 64) - 1))
        return made.exploded if "::" not in text else str(made)

    def _part(self, kind: str, value: int) -> int:
        if value == 0:
            return 0
        key = f"{kind} {value:016x}"
        if key not in self.words:
            self.words[key] = str(self.number(kind))
        return int(self.words[key])

    def _path(self, path: str) -> str:
        parts = path.split("/")
        first = next((p for p in parts if p and p != "~"), "")
        after_home = False
        made = []
        for part in parts:
            if part in ("", "~", ".", ".."):
                made.append(part)
            elif after_home:
                made.append(self.named("user", part))
            elif part in self.words:
                made.append(self.words[part])
            elif (first in SYSTEM_FOLDERS and not part.isdigit()) or SOFTWARE.fullmatch(part):
                made.append(self.text(part) if first in SYSTEM_FOLDERS else part)
            else:
                made.append(self._component(part))
            after_home = part in ("home", "users", "Users")
        return "/".join(made)

    def _component(self, part: str) -> str:
        if part.isdigit():
            return part
        stem, dot, ending = part.rpartition(".")
        if not stem or len(ending) > 8:
            return self.named("folder", part)
        return self.named("file", stem) + dot + ending


def anonymised(facts: T, names: Pseudonyms) -> T:
    """The same facts with pseudonyms."""
    made: T = _made(facts, names)
    return made


def pseudonyms(hosts: Sequence[Host], *, others: Iterable[str] = (), users: Iterable[str] = ()) -> Pseudonyms:
    """For these hosts, and others that were not reached; host-1 is the first host."""
    names = Pseudonyms()
    for host in hosts:
        names.keep_host(host)
    for name in others:
        if not _is_address(name) and name.partition(".")[0] not in names.words:
            names.named("host", name)
    for host in hosts:
        for gpu in host.gpus or ():
            for kind, value in (("GPU", gpu.uuid), ("serial", gpu.serial)):
                if value:
                    names.named(kind, value)
        if host.system:
            for kind, value in (("boot", host.system.boot_id), ("machine", host.system.machine_id)):
                if value:
                    names.named(kind, value)
        for name in SERVERS:
            value = host.env.get(name) if host.env else None
            server = (value or "").partition(":")[0]
            if server and not _is_address(server) and server not in names.words:
                names.named("server", server)
    for user in users:
        names.named("user", user)
    return names


def _made(value: Any, names: Pseudonyms) -> Any:
    if isinstance(value, str):
        return names.text(value)
    if isinstance(value, Variable) and value.name in WHOLE:
        return replace(value, value=names.named("name", value.value), origin=names.text(value.origin))
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _made(getattr(value, f.name), names) for f in fields(value) if f.name not in PLAIN}
        if isinstance(value, System) and value.host_id:
            changed["host_id"] = names.named("identity", value.host_id)
        return replace(value, **changed)
    if isinstance(value, Mapping):
        return {k: _made(v, names) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_made(v, names) for v in value)
    return value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
