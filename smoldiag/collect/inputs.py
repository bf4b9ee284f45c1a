"""Files that people have: named ones, folders, standard input, compressed or not, as streams of bounded memory.

Only opening and telling weights from text is done here; what a file means is for the readers of `smoldiag.explain`.
"""

import atexit
import bz2
import codecs
import importlib
import io
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from smoldiag.errors import SmoldiagError

HEAD_BYTES = 4096  # enough to tell weights from text
CHUNK_BYTES = 2 * 2**20
PACKED_BYTES = 512 * 2**10  # read at once of a gz file
GZIP_BITS = 31  # zlib's word for gzip's header and checksum
MAX_FILES = 20_000  # of one call; 1,024 ranks with logs and dumps are a few thousand
MAX_DEPTH = 8  # folders below a named one
MAX_LINE = 16_384  # characters of a line that are kept
BOMB_BYTES = 256 * 2**20  # from here on the ratio of a compressed file is watched
BOMB_RATIO = 300  # logs compress 10 to 60 times; zeros 1,000 times
MAX_UNPACKED_BYTES = 64 * 2**30
SPOOL_BYTES = 32 * 2**20  # of standard input that stays in memory

ZIP, TAR = "checkpoint or archive (zip)", "archive (tar)"
IN_ARCHIVES = (".json", ".json.gz", ".jsonl", ".log", ".out", ".err", ".txt")

_ANSI = re.compile(rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,512}(?:\x07|\x1b\\)|[@-Z\\-_])")
_COMPRESSED = (
    (b"\x1f\x8b", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
)
# What a file starts with that holds weights, arrays or programs: (magic, kind)
_BINARY = (
    (b"PK\x03\x04", ZIP),
    (b"\x93NUMPY", "array (npy)"),
    (b"\x89HDF\r\n", "checkpoint or data (HDF5)"),
    (b"GGUF", "weights (GGUF)"),
    (b"PAR1", "data (Parquet)"),
    (b"ARROW1", "data (Arrow)"),
    (b"\x7fELF", "program or library (ELF)"),
    (b"SQLite format 3\x00", "database (SQLite)"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"%PDF", "PDF"),
    (b"!<arch>\n", "library archive"),
)
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
_TORCH_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the magic number that torch.save wrote before zip


@dataclass(kw_only=True)
class Source:
    """One file or stream: its name, how it starts, and ways to read it from the start. Read as often as needed."""

    name: str
    head: bytes  # of the content, decompressed
    size_bytes: int  # as it lies there
    open: Callable[[], BinaryIO]  # the content as it lies there
    packed: str | None = None  # gz | zst | bz2 | xz
    path: Path | None = None  # of a file that other processes can open, too
    written_s: float | None = None  # when the file was last written, since 1970
    problems: list[str] = field(default_factory=list)  # why less was read than is there

    @property
    def binary(self) -> str | None:
        """What kind of weights, data or program it is; None for text and for what readers may know."""
        return binary_kind(self.head)

    def raw(self) -> Iterator[bytes]:
        """The content in chunks, decompressed; stops with a note where it is broken, with an error at a bomb."""
        with self.open() as file:
            stream = _unpacked(file, self.packed)
            read = stream.read1 if self.packed else stream.read  # of a file that ends early all that is there
            total = 0
            parts: list[bytes] = []
            while True:
                try:
                    part = read(CHUNK_BYTES)
                except Exception as error:
                    if not isinstance(error, _BROKEN) and type(error).__name__ != "ZstdError":
                        raise
                    self._note(f"{self.name}: ends early ({_reason(error)}); what was read until there is used")
                    part = b""
                total += len(part)
                if self.packed and _is_bomb(total, self.size_bytes):
                    raise SmoldiagError(
                        f"{self.name}: unpacks to more than {total // 2**20} MiB from {self.size_bytes} bytes, "
                        "which no log does; left alone",
                        hint="unpack it yourself if you trust it, and name the result",
                    )
                parts.append(part)
                if sum(map(len, parts)) >= CHUNK_BYTES or not part:
                    yield from filter(None, [b"".join(parts)])
                    parts = []
                if not part:
                    return

    def chunks(self) -> Iterator[bytes]:
        """Text as UTF-8 bytes in chunks that end at a line's end; no NUL bytes, colours or carriage returns."""
        coding = _coding(self.head)
        decoder = codecs.getincrementaldecoder(coding)("replace") if coding else None
        rest = b""
        for raw in self.raw():
            chunk = decoder.decode(raw).encode("utf-8", "replace") if decoder else raw
            if b"\x00" in chunk:
                chunk = chunk.replace(b"\x00", b"")
            if rest:
                chunk = rest + chunk
            end = chunk.rfind(b"\n") + 1
            if end:
                rest = chunk[end:]
                yield _plain(chunk[:end])
            elif len(chunk) >= CHUNK_BYTES:  # a line without end
                yield _plain(chunk)[:MAX_LINE]
                rest = b""
            else:
                rest = chunk
        if rest:
            yield _plain(rest)

    def lines(self, most: int = MAX_LINE) -> Iterator[str]:
        """Lines of text without their ends; of a progress bar's line its last state. Longer ones are cut."""
        for chunk in self.chunks():
            for line in chunk.removesuffix(b"\n").split(b"\n"):
                last = line.rstrip(b"\r").rpartition(b"\r")[2] if b"\r" in line else line
                yield last[: most * 4].decode("utf-8", "replace")[:most]

    def data(self, limit: int) -> bytes:
        """All of it, or an error where it is larger than `limit` bytes."""
        parts: list[bytes] = []
        total = 0
        for chunk in self.raw():
            total += len(chunk)
            if total > limit:
                raise SmoldiagError(f"{self.name}: larger than {limit // 2**20} MiB, left alone")
            parts.append(chunk)
        return b"".join(parts)

    def _note(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found under the names that were given."""

    sources: tuple[Source, ...]
    left_alone: tuple[tuple[str, int, int], ...] = ()  # (kind of binary file, how many, bytes)
    problems: tuple[str, ...] = ()  # what could not be opened, a sentence each


def find(names: Sequence[str], *, stdin: BinaryIO | None = None) -> Found:
    """Open what was named; `-` is standard input. Weights and other binary files are only counted.

    A name that does not exist is an error; a file below a folder that can't be read is a note.
    """
    sources: list[Source] = []
    problems: list[str] = []
    counted: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name in dict.fromkeys(names):
        if name == "-":
            sources.append(_spooled("standard input", stdin or sys.stdin.buffer))
            continue
        path = Path(name)
        for file in _files(path, problems):
            try:
                source = _source(file, file.name if len(names) == 1 and file == path else str(file))
                if file == path and source.binary in (ZIP, TAR) and (members := _members(source, problems)):
                    sources += members
                    continue
            except OSError as error:
                problems.append(f"{file}: {error.strerror or error}")
                continue
            if kind := source.binary:
                counted[kind] += 1
                sizes[kind] += source.size_bytes
            elif len(sources) >= MAX_FILES:
                problems.append(f"only the first {MAX_FILES} files are read")
                break
            else:
                sources.append(source)
    left = tuple((kind, count, sizes[kind]) for kind, count in counted.most_common())
    return Found(sources=tuple(sources), left_alone=left, problems=tuple(dict.fromkeys(problems)))


def of_text(name: str, text: str) -> Source:
    """A source of what a command said."""
    data = text.encode("utf-8", "replace")
    return _sniffed(name, len(data), lambda: io.BytesIO(data))


def binary_kind(head: bytes) -> str | None:
    """Weights, arrays, data, programs, by how they start."""
    for magic, kind in _BINARY:
        if head.startswith(magic):
            return kind
    if _TORCH_LEGACY in head[:64]:
        return "checkpoint (torch)"
    if len(head) > 16 and 2 <= int.from_bytes(head[:8], "little") < 2**30 and head[8:9] == b"{":
        return "weights (safetensors)"
    if head[257:262] == b"ustar":
        return TAR
    return None


def is_text(head: bytes) -> bool:
    """Whether most of it is printable: no encoding is demanded."""
    if _coding(head):
        return True
    if not head:
        return False
    control = sum(head.count(bytes([c])) for c in range(32) if c not in (8, 9, 10, 12, 13, 27))
    high = len(head) - len(head.translate(None, bytes(range(128, 256))))
    return control <= len(head) * 0.05 and high <= len(head) * 0.4


def _files(path: Path, problems: list[str]) -> Iterator[Path]:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SmoldiagError(f"{path}: {reason}", hint="name a file, a folder, or - for standard input") from None
    if not stat.S_ISDIR(mode):
        yield path
        return
    found = 0
    for folder, folders, names in os.walk(path, onerror=lambda e: problems.append(f"{e.filename}: {e.strerror}")):
        depth = len(Path(folder).relative_to(path).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        if depth >= MAX_DEPTH:
            folders.clear()
        for name in sorted(names, key=_natural):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                found += 1
                yield file
    if not found:
        problems.append(f"{path}: no file in this folder")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """rank2 before rank10."""
    return [(0, int(p), "") if p.isdigit() and len(p) < 19 else (1, 0, p) for p in re.split(r"(\d+)", name)]


def _source(path: Path, name: str) -> Source:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe, as `<(command)` gives it
        with path.open("rb") as stream:
            return _spooled(name, stream)
    source = _sniffed(name, status.st_size, lambda: path.open("rb"))
    source.written_s = status.st_mtime
    source.path = path
    return source


def _members(archive: Source, problems: list[str]) -> list[Source]:
    """Texts in a tar or zip file, unpacked into TMPDIR while we run. Of a broken one what can be read."""
    import tarfile
    import zipfile

    folder = Path(tempfile.mkdtemp(prefix=f"smoldiag-{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names: list[str] = []
    total = 0
    try:
        with archive.open() as file:
            for name, stream in _from_tar(file) if archive.binary == TAR else _from_zip(file):
                names.append(name)
                with (folder / str(len(names))).open("wb") as kept:
                    while part := stream.read(CHUNK_BYTES):
                        kept.write(part)
                        total += len(part)
                        if _is_bomb(total, archive.size_bytes):
                            raise OSError("it unpacks to far more than texts do; unpack it yourself if you trust it")
                if len(names) >= MAX_FILES:
                    break
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, NotImplementedError, *_BROKEN) as error:
        problems.append(f"{archive.name}: broken ({_reason(error)}); {len(names)} files of it were read")
    return [_source(folder / str(n), f"{archive.name}:{name}") for n, name in enumerate(names, 1)]


def _from_tar(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    import tarfile

    with tarfile.open(fileobj=file, mode="r|*") as members:
        for member in members:
            if member.isfile() and member.name.endswith(IN_ARCHIVES):
                yield member.name, members.extractfile(member)


def _from_zip(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    import zipfile

    with zipfile.ZipFile(file) as members:
        for info in members.infolist():
            if info.filename.endswith(IN_ARCHIVES):
                with members.open(info) as stream:
                    yield info.filename, stream


def _spooled(name: str, stream: BinaryIO) -> Source:
    """A stream is kept while we run, so that it can be read more than once: in memory, if long in TMPDIR."""
    data = stream.read(SPOOL_BYTES)
    if len(data) < SPOOL_BYTES:
        return _sniffed(name, len(data), lambda: io.BytesIO(data))
    handle, path = tempfile.mkstemp(prefix=f"smoldiag-stdin-{os.getpid()}-")
    atexit.register(Path(path).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as kept:
        kept.write(data)
        shutil.copyfileobj(stream, kept, CHUNK_BYTES)
    return _sniffed(name, Path(path).stat().st_size, lambda: open(path, "rb"))


def _sniffed(name: str, size: int, opener: Callable[[], BinaryIO]) -> Source:
    with opener() as file:
        head = file.read(HEAD_BYTES)
    packed = next((kind for magic, kind in _COMPRESSED if head.startswith(magic)), None)
    source = Source(name=name, head=head, size_bytes=size, open=opener, packed=packed)
    if packed:
        source.head = next(source.raw(), b"")[:HEAD_BYTES]
    return source


def _unpacked(file: BinaryIO, packed: str | None) -> Any:
    if packed == "gz":
        return _Gunzip(file)
    if packed == "bz2":
        return bz2.BZ2File(file)
    if packed == "xz":
        return lzma.LZMAFile(file)
    if packed == "zst":
        return _zstd(file)
    return file


class _Gunzip:
    """What of gzip.GzipFile is needed, in larger pieces and so in a third of its time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.inner = zlib.decompressobj(GZIP_BITS)
        self.rest = b""
        self.within = False  # a member of the file

    def read1(self, size: int) -> bytes:
        """Up to so many bytes. EOFError where the file is cut off, zlib.error where it is broken."""
        while data := self.rest or self.file.read(PACKED_BYTES):
            part = self.inner.decompress(data, size)
            self.within = not self.inner.eof
            if self.inner.eof:
                self.rest = self.inner.unused_data.lstrip(b"\x00")  # members may be padded
                self.inner = zlib.decompressobj(GZIP_BITS)
            else:
                self.rest = self.inner.unconsumed_tail
            if part:
                return part
        if self.within:
            raise EOFError("compressed file ended before the end of its data")
        return b""


def _zstd(file: BinaryIO) -> Any:
    """Python has it from 3.14 on; before, the zstandard package."""
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.open(file, "rb")
    raise SmoldiagError(
        "a .zst file needs Python 3.14 or the package zstandard", hint="pip install zstandard, or unpack it: zstd -d"
    )


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > MAX_UNPACKED_BYTES or (unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * max(packed, 1))


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__


def _coding(head: bytes) -> str | None:
    """UTF-16, which Windows shells write; None for everything that is ASCII below."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) >= 16 and len(head) % 2 == 0:
        odd, even = head[1::2].count(0), head[0::2].count(0)
        half = len(head) // 2
        if odd > half * 0.9 and even < half * 0.05:
            return "utf-16-le"
        if even > half * 0.9 and odd < half * 0.05:
            return "utf-16-be"
    return None


def _plain(chunk: bytes) -> bytes:
    if b"\x1b" in chunk:
        chunk = _ANSI.sub(b"", chunk)
    if b"\r" in chunk:  # one byte is looked for much faster than two
        chunk = chunk.replace(b"\r\n", b"\n")
    return chunk
