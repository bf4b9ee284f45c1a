"""Message sizes: as people type them, and as they are shown."""

import re

UNITS = {
    "": 1,
    "b": 1,
    "k": 2**10,  # bare K, M, G are powers of two, as in nccl-tests
    "m": 2**20,
    "g": 2**30,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
MAX_BYTES = 2**40
MAX_SIZES = 200
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]{0,3})")
DEFAULT_SWEEP = {
    "gloo": tuple(2**n for n in range(3, 27, 2)),  # 8 B to 32 MiB
    "nccl": tuple(2**n for n in range(3, 34)),  # 8 B to 8 GiB
}


def parse(text: str) -> tuple[int, ...]:
    """Sizes in bytes of `8B:64MiB:x2`, `1MiB:16MiB:+1MiB`, `1MiB,16MiB`, or a mixture separated by commas.

    Raises ValueError with what is wrong.
    """
    sizes: list[int] = []
    for part in text.split(","):
        sizes += _sweep(part) if ":" in part else [size(part)]
        if len(sizes) > MAX_SIZES:
            raise ValueError(f"{text[:60]!r} is more than {MAX_SIZES} sizes")
    return tuple(dict.fromkeys(sizes))


def size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text[:40]!r} is no size; write 8B, 64KiB, 16MiB, 1GiB")
    value = float(match[1]) * unit
    if not 1 <= value <= MAX_BYTES:
        raise ValueError(f"{text[:40]!r} is not between 1 B and {human(MAX_BYTES)}")
    return int(value)


def _sweep(text: str) -> list[int]:
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{text[:60]!r} is no sweep; write FIRST:LAST:xFACTOR or FIRST:LAST:+STEP")
    first, last, step = size(parts[0]), size(parts[1]), parts[2].strip()
    if first > last:
        raise ValueError(f"{text[:60]!r} starts above its end")
    factor = float(step[1:]) if re.fullmatch(r"x\d{1,4}(\.\d{1,4})?", step) else None
    if factor is not None and factor < 1.01:
        raise ValueError(f"{step!r} does not grow")
    if factor is None and not step.startswith("+"):
        raise ValueError(f"{step[:20]!r} is no step; write x2 or +1MiB")
    added = size(step[1:]) if factor is None else 0
    found, value = [], float(first)
    while value <= last:
        found.append(int(value))
        value = value * factor if factor else value + added
        if len(found) > MAX_SIZES:
            raise ValueError(f"{text[:60]!r} is more than {MAX_SIZES} sizes")
    return found


def human(num_bytes: int) -> str:
    """16 MiB, 1.5 KiB, 24 B"""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        shown = f"{num_bytes / factor:.4g}"
        if float(shown) >= 1:
            return f"{shown} {unit}"
    return f"{num_bytes} B"
