"""The examples run and find what they claim to find."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import physnode as pn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_main_job_weighs_the_outer_planets(monkeypatch, tmp_path, capsys):
    example = load("weigh_outer_planets")
    kept = {}
    original = pn.fit

    def keep(*args, **kwargs):
        kept["result"] = original(*args, **kwargs)
        return kept["result"]

    monkeypatch.setattr(pn, "fit", keep)
    monkeypatch.setattr(sys, "argv", ["weigh_outer_planets.py", "--out", str(tmp_path), "--quiet"])
    example.main()
    out = capsys.readouterr().out
    _, gm = example.five_bodies(pn.data.open(example.DATA)[0])
    result = kept["result"]
    assert result.converged
    for i, (planet, limit) in enumerate({"Jupiter": 1e-5, "Saturn": 1e-4, "Uranus": 3e-4, "Neptune": 3e-4}.items(), start=1):
        truth = float(gm[i])
        difference = result.parameters[f"gm[{i}]"] - truth
        assert abs(difference) < limit * truth, planet
        assert abs(difference) < 5 * result.robust_errors[f"gm[{i}]"], planet
        assert planet in out
    assert result.parameters.keys() == {f"gm[{i}]" for i in range(1, 5)}
    assert (tmp_path / "outer_planets.png").stat().st_size > 10_000
    assert str(tmp_path / "outer_planets.png") in out.replace("\n", "")


def test_three_bodies_are_weighed_and_their_orbits_predicted(monkeypatch, tmp_path, capsys):
    example = load("three_body")
    weighed = []

    def keep(name):
        original = getattr(example, name)

        def kept(model, *args, **kwargs):
            found = original(model, *args, **kwargs)
            weighed.append(found.model if isinstance(found, pn.FitResult) else model)
            return found

        monkeypatch.setattr(example, name, kept)

    keep("descend")
    keep("least_squares")
    monkeypatch.setattr(example, "STEPS", pn.Adaptive(rtol=1e-8, atol=1e-9))  # a fifth fewer steps
    monkeypatch.setattr(sys, "argv", ["three_body.py", "--out", str(tmp_path), "--seed", "4"])
    example.main()
    with torch.no_grad():
        truth = example.true_positions(example.TEST)
        for model in weighed:
            assert example.squared_error(example.predict(model, example.TEST), truth).mean() < 2e-11
            assert (model.masses - example.MASSES).abs().max() < 4e-7
    assert len(weighed) == 2
    assert (tmp_path / "three_body.png").stat().st_size > 10_000
    assert "three_body.png" in capsys.readouterr().out


@pytest.mark.slow
def test_the_figure_of_the_readme_is_made(monkeypatch, tmp_path, capsys):
    example = load("learned_damping")
    monkeypatch.setattr(sys, "argv", ["learned_damping.py", "--out", str(tmp_path), "--quiet"])
    example.main()
    assert (tmp_path / "learned_damping.png").stat().st_size > 10_000
    assert "1 - SS_res / SS_tot = 0.99" in capsys.readouterr().out
