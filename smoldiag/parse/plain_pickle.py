"""Pickles of plain containers and scalars, and nothing else.

The operations are checked one by one before anything is built: those that import, call or build objects are refused,
and so is what would take memory out of proportion to the file. Then the C unpickler runs, and can find no class.
"""

import io
import pickle
import re

MAX_BYTES = 32 * 2**20  # an empty list takes one byte in the file and 56 in memory
MAX_TUPLES = 50_000  # nested tuples are hashed by recursion: CPython's stack holds about 100,000
RUNS_CODE = {
    b"c": "GLOBAL",
    b"\x93": "STACK_GLOBAL",
    b"R": "REDUCE",
    b"b": "BUILD",
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
}
_TUPLES = b"\x85\x86\x87t"
_BINUNICODE, _STOP = b"X"[0], b"."[0]


def _counted(op: bytes, *, after: bytes = b"") -> bytes:
    """An operation whose next byte counts the bytes of its argument; in groups of 16, which the matcher skips."""
    groups = []
    for first in range(0, 256, 16):
        each = b"|".join(b"\\x%02x%s.{%d}" % (n, after, n) for n in range(first, first + 16))
        groups.append(b"(?=[\\x%02x-\\x%02x])(?:%s)" % (first, first + 15, each))
    return op + b"(?:" + b"|".join(groups) + b")"


# Operations with their arguments, possessively: each byte is looked at once (pickletools names them).
_PLAIN = re.compile(
    b"(?s:"
    + b"|".join(
        (
            rb"[hqK].",  # BINGET BINPUT BININT1
            rb"[(N\x88\x89\]}aesu)\x94]",  # MARK None True False [] {} APPEND(S) SETITEM(S) () MEMOIZE
            _counted(rb"\x8c"),  # SHORT_BINUNICODE
            _counted(rb"X", after=rb"\x00\x00\x00"),  # BINUNICODE, short
            rb"[jJ]....",  # LONG_BINGET BININT
            rb"M..",  # BININT2
            b"\\x8a(?:" + b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(9)) + b")",  # LONG1 of up to 64 bits
            rb"r..[\x00-\x3f]\x00",  # LONG_BINPUT: the memo is as large as its highest place
            rb"G.{8}|\x95.{8}|\x80[\x02-\x05]",  # BINFLOAT FRAME PROTO
        )
    )
    + b")*+"
)


def loads(data: bytes) -> object:
    """What the pickle holds. ValueError, in a sentence, where it is not plain, not whole or too large."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"a pickle of {len(data) / 2**20:.0f} MiB; at most {MAX_BYTES / 2**20:.0f} are read")
    _check(data)
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"not a whole pickle ({error})") from None
    except (OverflowError, MemoryError, RecursionError):
        raise ValueError("a pickle that asks for more memory than it may have") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _check(data: bytes) -> None:
    at, tuples, end = 0, 0, len(data)
    while True:
        found = _PLAIN.match(data, at)
        at = found.end() if found else at
        if at >= end:
            raise ValueError(f"a pickle that is cut off after {end} bytes")
        op = data[at]
        if op == _STOP:
            return
        if op == _BINUNICODE:
            at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        elif op in _TUPLES:
            tuples += 1
            at += 1
            if tuples > MAX_TUPLES:
                raise ValueError(f"a pickle with more than {MAX_TUPLES} tuples")
        else:
            raise ValueError(_refusal(data[at : at + 1], at, end))


def _refusal(op: bytes, at: int, end: int) -> str:
    if op in RUNS_CODE:
        return f"refused: a pickle that would run code ({RUNS_CODE[op]} at byte {at}); nothing of it was run"
    if at + 9 >= end:
        return f"a pickle that is cut off after {end} bytes"
    return f"refused: a pickle with an operation that plain data does not need (0x{op.hex()} at byte {at})"
