"""An ablation's table: what is shown, what JSON keeps, and pictures that are drawn."""

import json
import math

import numpy as np
import pytest

from longtake.eval.ablation import Estimate, difference, figure
from longtake.eval.ablation_report import (
    AblationTable,
    Finding,
    Row,
    TaskStart,
    as_json,
    as_markdown,
    as_text,
    write,
)
from longtake.eval.plot import bars, curves


def exact(*by_seed: float, error: float = 0.0) -> Estimate:
    mean = sum(by_seed) / len(by_seed)
    return Estimate(mean=mean, by_seed=by_seed, standard_error=error, degrees=math.inf)


def table() -> AblationTable:
    held, lost = exact(0.1, 0.2, 0.3, error=0.05), exact(-0.1, 0.1, 0.0, error=0.05)
    return AblationTable(
        name="demo",
        title="A table",
        notes=("One note.",),
        rows=(
            Row(arm="mean", cells={"what": exact(0.5, 0.6, 0.7, error=0.01), "error": figure(np.array([0.25]))}),
            Row(arm="dts", cells={"what": exact(0.8)}),
        ),
        findings=(
            Finding(arm="dts", against="mean", measure="what", found=held),
            Finding(arm="dts", against="mean", measure="when", found=lost),
        ),
        tasks={"what": TaskStart(start=0.5, blind=0.1, majority=0.2, standing="open"),
               "count": TaskStart(start=0.95, blind=0.1, majority=0.2, standing="ceiling")},
        settings={"command": "python -m longtake", "size": {"steps": 3, "seeds": (0, 1)}},
    )  # fmt: skip


def test_a_table_as_text():
    said = as_text(table()).splitlines()
    assert said[0] == "A table"
    assert said[2] == "One note."
    assert "count  0.950  0.100  0.200     no: ceiling" in said
    assert next(line for line in said if line.startswith("mean")).split() == [
        "mean", "3", "0.600", "[0.580,", "0.620]", "0.250",
    ]  # fmt: skip
    assert next(line for line in said if line.startswith("dts   1")).split() == [
        "dts", "1", "0.800", "[0.800,", "0.800]", "-",
    ]  # fmt: skip
    holds = next(line for line in said if "holds" in line)
    assert holds.split() == ["dts", "mean", "what", "+0.200", "[+0.102,", "+0.298]", "+0.100", "+0.200", "+0.300",
                             "holds", "-"]  # fmt: skip
    undetermined = next(line for line in said if "undetermined" in line)
    assert undetermined.split()[-1] == "0.140"  # (1.960 + 0.842) x 0.05


def test_a_table_as_markdown_and_json(tmp_path):
    page = as_markdown(table())
    assert page.startswith("# A table\n\nOne note.\n")
    assert "| arm | seeds | what | error |\n| --- | --- | --- | --- |\n| mean | 3 |" in page
    assert "- command: `python -m longtake`" in page
    assert "- size: steps 3, seeds 0, 1" in page
    write(table(), tmp_path / "results")
    kept = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert kept == json.loads(json.dumps(as_json(table())))
    assert kept["arms"]["mean"]["error"] == {"mean": 0.25, "low": None, "high": None, "by_seed": [0.25]}
    assert kept["differences"][0]["verdict"] == "holds"
    assert kept["tasks"]["count"]["standing"] == "ceiling"
    assert (tmp_path / "results" / "demo.md").read_text() == page
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"demo.json", "demo.md"}


def test_a_table_without_differences_says_so():
    none = AblationTable(name="n", title="t", notes=(), rows=table().rows, findings=())
    assert "## Differences" in as_markdown(none)
    assert "None." in as_markdown(none)
    assert "verdict" not in as_text(none)


def panels() -> dict[str, dict[str, Estimate]]:
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(30), 4)
    names = ("no compression", "mean", "DTS, stride 4", "DTS, stride 8")
    right = {name: rng.random((3, 120)) < 0.5 + n / 10 for n, name in enumerate(names)}
    wrong = np.zeros((3, 120))
    shown = {name: difference(hits.astype(float), wrong, videos) for name, hits in right.items()}
    return {task: shown for task in ("what", "when", "order", "count")} | {"error": {"mean": figure(np.array([0.3]))}}


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bars("Compression at equal frames", panels(), tmp_path / "bars.png")
    lines = {
        task: {arm: [(share, cell) for share in (0.05, 0.1, 0.25, 0.5, 1.0)] for arm, cell in panel.items()}
        for task, panel in panels().items()
        if task != "error"
    }
    curves("Selection", lines, tmp_path / "curves.png", across="share of tokens", up="accuracy", log=True)
    for name in ("bars.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size > 10_000
