"""What README.md and docs/ show can be run as it stands."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)


def test_the_fifteen_lines_of_the_readme(monkeypatch, tmp_path, capsys):
    [code] = blocks("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert "robust error" in out
    assert "unseen trajectories: reduced chi-square" in out
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    result = names["result"]
    assert abs(result.parameters["frequency"] - 2.0) < 5 * result.errors["frequency"]
    assert abs(result.parameters["damping"] - 0.15) < 5 * result.errors["damping"]
    assert 0.8 < result.validate(names["data"].split("test")).reduced_chi2 < 1.2
    assert names["curve"].y.shape == (301, 2)


def test_the_examples_of_the_page_on_differentiating(capsys):
    import physnode as pn

    names = {"torch": torch, "pn": pn}
    for code in blocks("docs/differentiating.md"):
        exec(compile(code, "docs/differentiating.md", "exec"), names)
    out = capsys.readouterr().out
    assert re.search(r"symplectic keeps checkpoints \(\d+ states of 2000 steps", out)
    assert names["check"].ok


def test_the_examples_of_the_page_on_solving():
    import physnode as pn

    names = {"torch": torch, "pn": pn}
    shapes = []
    for code in blocks("docs/solving.md"):
        exec(compile(code, "docs/solving.md", "exec"), names)
        shapes.append(tuple(names["sol"].ys.shape))
    assert shapes[0] == (2, 200, 4)
    assert bool((names["torque"].grad != 0).any())
    assert names["mass"].grad.shape == (2, 1)
    assert names["sol"].events.t.shape == (2, 3)
    wanted = -sum((2 * h / 9.81) ** 0.5 / (2 * 9.81) for h in (1.0, 2.0))
    assert float(names["gravity"].grad) == pytest.approx(wanted, rel=1e-9)
    spring = names["Spring"](4.0)
    sol = pn.solve(spring, [1.0, 0.0], [0.0, torch.pi / 2], method="kahan_li8", controller=pn.Fixed(0.01))
    torch.testing.assert_close(sol.ys[-1], torch.tensor([-1.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / "docs" / page).read_text()):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), f"{page} links to {target}"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target
