"""What a shared library says of itself, without loading it: words in it, what it needs, which glibc."""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x7fELF\x02\x01"  # 64 bit, little endian
MOST_SECTIONS = 256
MOST_BYTES = 16 << 20  # of one section; .rodata of libnccl is some MiB, its GPU code lies elsewhere
DT_NEEDED, DT_RPATH, DT_RUNPATH = 1, 15, 29


@dataclass(frozen=True, kw_only=True)
class Elf:
    rodata: bytes
    needed: tuple[str, ...]
    search: tuple[str, ...]  # its own RPATH or RUNPATH
    glibc: tuple[int, int] | None  # the newest version whose symbols it asks for (or, of libc itself, has)


def read(path: Path, *, rodata: bool = True) -> Elf:
    """OSError or ValueError: no such file, or not an ELF file of 64 bits."""
    with path.open("rb") as file:
        head = file.read(64)
        if not head.startswith(MAGIC):
            raise ValueError(f"{path} is no 64-bit ELF file")
        offset, size, count, names_at = *struct.unpack_from("<Q", head, 40), *struct.unpack_from("<HHH", head, 58)
        if size != 64 or count > MOST_SECTIONS or names_at >= count:
            raise ValueError(f"{path} has no table of sections")
        file.seek(offset)
        table = file.read(size * count)
        sections = [struct.unpack_from("<IIQQQQ", table, i * size) for i in range(len(table) // size)]

        def content(place: tuple[int, ...]) -> bytes:
            file.seek(place[4])
            return file.read(min(place[5], MOST_BYTES))

        names = content(sections[names_at])
        named = {names[s[0] : names.find(b"\0", s[0])].decode(errors="replace"): s for s in sections}
        strings = content(named[".dynstr"]) if ".dynstr" in named else b""
        dynamic = content(named[".dynamic"]) if ".dynamic" in named else b""
        words = content(named[".rodata"]) if rodata and ".rodata" in named else b""
    entries = [struct.unpack_from("<QQ", dynamic, i) for i in range(0, len(dynamic) - 15, 16)]

    def texts(*tags: int) -> tuple[str, ...]:
        return tuple(
            strings[at : strings.find(b"\0", at)].decode(errors="replace")
            for tag, at in entries
            if tag in tags and at < len(strings)
        )

    glibc = [(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d)\.(\d+)", strings)]
    search = tuple(part for value in texts(DT_RPATH, DT_RUNPATH) for part in value.split(":") if part)
    return Elf(rodata=words, needed=texts(DT_NEEDED), search=search, glibc=max(glibc, default=None))
