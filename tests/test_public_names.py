"""The public face is a list, and this test holds it."""

import types

import physnode as pn

NAMES = {
    "ACA",
    "Adaptive",
    "ContinuousAdjoint",
    "Direct",
    "Domain",
    "Event",
    "FitResult",
    "Fixed",
    "Hamiltonian",
    "SecondOrder",
    "SeparableHamiltonian",
    "Signal",
    "Solution",
    "Status",
    "Storage",
    "Sum",
    "SymplecticAdjoint",
    "VectorField",
    "__version__",
    "check_gradient",
    "data",
    "diagnostics",
    "errors",
    "fit",
    "load",
    "methods",
    "nn",
    "solve",
    "systems",
}


def test_the_public_names_are_these():
    assert set(pn.__all__) == NAMES
    assert list(pn.__all__) == sorted(pn.__all__)


def test_nothing_else_looks_public():
    extra = {
        name
        for name, value in vars(pn).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in NAMES
    }
    assert not extra


def test_each_public_name_is_documented():
    undocumented = [name for name in pn.__all__ if name != "__version__" and not (getattr(pn, name).__doc__ or "").strip()]
    assert not undocumented


def test_names_of_the_parts_exist():
    for module in (pn.data, pn.diagnostics, pn.errors, pn.methods, pn.nn, pn.systems):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, f"{module.__name__} lists {missing}"


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert pn.__version__ == version("physnode")
