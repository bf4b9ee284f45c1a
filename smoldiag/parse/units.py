"""Numbers with units as tools and people write them: sizes, times, rates. None for what is no such number."""

import math
import re

_NUMBER = r"[+-]?(?:\d[\d_]{0,24}(?:\.\d{0,25})?|\.\d{1,25})(?:[eE][+-]?\d{1,3})?"
_VALUE = re.compile(rf"^\(?[~<>]?\s?({_NUMBER})\s?([A-Za-z\u00b5/%]{{0,12}})\)?$")
_THOUSANDS = re.compile(r"^\d{1,3}(?:,\d{3}){1,6}(?:\.\d+)?$")

_BINARY = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_RATE = re.compile(r"^([kKMGT]?)(i?)([bB])(?:ytes?|its?)?(?:/s(?:ec)?|ps)$")
_BIT_RATE = re.compile(r"^([kKMGT])bit(?:/s(?:ec)?|ps)?$", re.IGNORECASE)
_TIMES_US = {
    "ns": 1e-3,
    "us": 1.0,
    "usec": 1.0,
    "\u00b5s": 1.0,
    "ms": 1e3,
    "msec": 1e3,
    "s": 1e6,
    "sec": 1e6,
    "secs": 1e6,
    "seconds": 1e6,
}


def split(text: str) -> tuple[float, str] | None:
    """`838.0GBps` -> (838.0, "GBps"); digits may be grouped by _ or ,"""
    text = text.strip().strip("*`")
    if _THOUSANDS.match(text):
        text = text.replace(",", "")
    match = _VALUE.match(text)
    if not match:
        return None
    try:
        value = float(match[1].replace("_", ""))
    except ValueError:
        return None
    return (value, match[2]) if math.isfinite(value) else None


def number(text: str) -> float | None:
    """A bare number."""
    found = split(text)
    return found[0] if found and not found[1] else None


def size_bytes(text: str) -> int | None:
    """Bare K, M, G are powers of two, as in nccl-tests; KB, MB, GB of tables are too, as their sizes are."""
    found = split(text)
    if not found or found[0] < 0:
        return None
    value, unit = found
    match = re.fullmatch(r"([kmgt]?)(?:i?b(?:ytes?)?)?", unit, re.IGNORECASE)
    if not match or value > 2**60:
        return None
    return int(value * 1024.0 ** _BINARY[match[1].lower()])


def gb_per_s(text: str, *, unit: str = "") -> float | None:
    """GB/s (1e9) of a value with its unit, or with the column's."""
    found = split(text)
    if not found:
        return None
    factor = rate_factor(found[1] or unit)
    return None if factor is None else found[0] * factor


def rate_factor(unit: str) -> float | None:
    """What a figure of this unit is multiplied with to give GB/s; None where it is no rate."""
    match = _RATE.match(unit)
    if match:
        base = 1024.0 if match[2] else 1000.0
        bits = 8.0 if match[3] == "b" else 1.0
        return float(base ** _BINARY[match[1].lower()]) / bits / 1e9
    match = _BIT_RATE.match(unit)
    return float(1000.0 ** _BINARY[match[1].lower()]) / 8e9 if match else None


def microseconds(text: str, *, unit: str = "us") -> float | None:
    found = split(text)
    factor = _TIMES_US.get((found[1] or unit).lower()) if found else None
    return found[0] * factor if found and factor else None
