"""Units of stored quantities: a short list of symbols that UDUNITS, astropy and pint read alike, and nothing else.

A unit string is symbols with integer exponents, separated by blanks: ``"kg m s-1"``; ``"1"`` is dimensionless. Symbols
whose meaning differs between programs (``yr``, ``eV``, ``AU``) are refused by name, with what to write instead.
"""

from __future__ import annotations

import re

from physnode.errors import InputError

_LIST = (
    "m kg s A K mol cd rad g km cm mm um nm au min h d ms us ns Hz N J W Pa V C F T Wb H ohm bar "
    "degree arcmin arcsec marcsec uarcsec"
)
SYMBOLS = frozenset(_LIST.split())
TIME_UNITS = ("s", "ms", "us", "ns", "min", "h", "d")
MAX_UNIT_LENGTH = 200

_YEAR = "write d; a year is not one length: on import give its days, such as '365.25 d'"
_CURES = {
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "write s"),
    **dict.fromkeys(("minute", "minutes"), "write min"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "write h"),
    **dict.fromkeys(("day", "days"), "write d"),
    **dict.fromkeys(("yr", "y", "year", "years", "a"), _YEAR),
    **dict.fromkeys(("deg", "degrees", "°"), "write degree"),
    **dict.fromkeys(("radian", "radians"), "write rad"),
    **dict.fromkeys(("AU", "ua", "astronomical_unit"), "write au"),
    **dict.fromkeys(("mas", "milliarcsec"), "write marcsec"),
    **dict.fromkeys(("uas", "microarcsec"), "write uarcsec"),
    **dict.fromkeys(("as", "asec"), "write arcsec"),
    **dict.fromkeys(("meter", "metre", "meters", "metres"), "write m"),
    **dict.fromkeys(("eV", "keV", "MeV"), "convert to J; programs differ in the size of eV"),
    **dict.fromkeys(("Msun", "M_sun", "solMass"), "convert to kg, or store G times the mass in m3 s-2"),
    **dict.fromkeys(("pc", "kpc", "ly"), "convert to m, km or au"),
    **dict.fromkeys(("", "dimensionless", "none", "-"), "write 1"),
    "%": "divide by 100 and write 1",
    "Ohm": "write ohm",
    "µm": "write um",
    "L": "convert to m3",
}
_TERM = re.compile(r"([A-Za-z°µ%_]+)(-?[1-9][0-9]?)?")
_FACTOR = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s+(\S.*)")


def unit_fault(unit: str) -> str | None:
    """What is wrong with a unit string and how to cure it, or None if it is in the list."""
    allowed = f"allowed: {' '.join(sorted(SYMBOLS, key=str.lower))}"
    if unit == "1":
        return None
    if len(unit) > MAX_UNIT_LENGTH:
        return f"{len(unit)} characters (limit {MAX_UNIT_LENGTH})"
    if unit.strip() in _CURES:
        return _CURES[unit.strip()]
    if any(mark in unit for mark in "/*^.") or " per " in unit:
        return "write symbols with integer exponents, separated by blanks, such as 'kg m s-1'"
    for word in unit.split(" "):
        if word == "1":
            return "write 1 only on its own; numeric factors are not allowed"
        match = _TERM.fullmatch(word)
        if match is None:
            return f"'{word}' is not a symbol with an integer exponent; write such as 'm s-2', without numeric factors"
        if match[1] not in SYMBOLS:
            return f"'{match[1]}': {_CURES.get(match[1], allowed)}"
    return None


def check_unit(unit: object, what: str) -> str:
    """``unit`` itself if schema 1.0 allows it for ``what``; raises InputError with the cure."""
    if not isinstance(unit, str):
        raise InputError(f"the unit of '{what}' must be a string such as 'm s-1', found {unit!r}")
    fault = unit_fault(unit)
    if fault:
        raise InputError(f"unit '{unit}' of '{what}' is not allowed: {fault}")
    if what == "time" and unit not in TIME_UNITS:
        raise InputError(f"unit '{unit}' of 'time' is not allowed: write one of {', '.join(TIME_UNITS)}")
    return unit


def imported_unit(unit: str, what: str) -> tuple[float, str]:
    """(factor, stored unit) of a unit named at import, which may carry a factor ('365.25 d') or say 'mas'.

    Numbers are multiplied by the factor on reading. Raises InputError as `check_unit`.
    """
    match = _FACTOR.fullmatch(unit)
    factor, symbols = (float(match[1]), match[2]) if match else (1.0, unit)
    words = ["marcsec" + word[3:] if re.fullmatch(r"mas(-?\d+)?", word) else word for word in symbols.split()]
    if factor <= 0:
        raise InputError(f"the factor in unit '{unit}' of '{what}' must be positive")
    return factor, check_unit(" ".join(words) or unit, what)
