from __future__ import annotations

import pytest

from physnode.data.units import check_unit, imported_unit, unit_fault
from physnode.errors import InputError


@pytest.mark.parametrize("unit", ["1", "m", "kg m s-1", "m3 kg-1 s-2", "km3 d-2", "marcsec d-1", "degree", "N m"])
def test_allowed(unit: str) -> None:
    assert unit_fault(unit) is None


@pytest.mark.parametrize(
    ("unit", "cure"),
    [
        ("yr", "365.25 d"),
        ("eV", "J"),
        ("AU", "au"),
        ("deg", "degree"),
        ("mas", "marcsec"),
        ("seconds", "write s"),
        ("m/s", "kg m s-1"),
        ("m^2", "exponents"),
        ("10 m", "numeric factors"),
        ("m s-1.5", "exponents"),
        ("m  s-1", "symbol"),
        ("", "write 1"),
        ("furlong", "allowed:"),
        ("1 m", "own"),
        ("m0", "symbol"),
    ],
)
def test_refused_with_a_cure(unit: str, cure: str) -> None:
    fault = unit_fault(unit)
    assert fault is not None
    assert cure in fault


def test_time_takes_units_of_time_only() -> None:
    assert check_unit("d", "time") == "d"
    with pytest.raises(InputError, match="one of s, ms"):
        check_unit("km", "time")
    with pytest.raises(InputError, match="string"):
        check_unit(3, "x")


def test_import_takes_factors_and_mas() -> None:
    assert imported_unit("365.25 d", "time") == (365.25, "d")
    assert imported_unit("1e-3 arcsec", "x") == (1e-3, "arcsec")
    assert imported_unit("mas d-1", "x") == (1.0, "marcsec d-1")
    assert imported_unit("1", "x") == (1.0, "1")
    with pytest.raises(InputError, match="positive"):
        imported_unit("0 m", "x")
