"""The evaluation by hops: a report by hand, and the whole run with a tiny model."""

import json
import sys
from collections import Counter

import pytest

import longtake
import tiny
import world
from longtake.cli import main
from longtake.data.probe_world.hops import FORMS, conclusion
from longtake.eval.hops import HopRun, evaluate, hop_of, report, table
from longtake.eval.report import Asked


def asked(number: int, run: HopRun, said: str | None) -> Asked:
    """An answer; None: the right one behind a trace."""
    hop = hop_of(run, number)
    answers = {"model": conclusion(hop.trace if said is None else said), "blind": "star"}
    return Asked(video=number, question=hop.question, answers=answers, depth=None, evidence_hit=None, evidence_share=0)


def test_a_report_by_hand():
    run = HopRun(questions=24)
    rows = [asked(n, run, None if n % 4 < 2 else "nothing") for n in range(24)]  # one and two hops are right
    others = [hop_of(run, n) for n in range(24, 324)]
    found = report(run, rows, world.clips(), others)
    assert json.loads(json.dumps(found)) == found
    assert [found["by_hops"][hops]["model"]["mean"] for hops in "1234"] == [1.0, 1.0, 0.0, 0.0]
    assert found["all"]["model"]["mean"] == 0.5
    truth = [hop_of(run, n) for n in range(24)]
    stars = [hop.answer == "star" for hop in truth if hop.hops == 4]
    assert found["by_hops"]["4"]["blind"]["mean"] == pytest.approx(sum(stars) / 6, abs=1e-4)
    (commonest, _), *_ = Counter(hop.answer for hop in others if hop.form == "order").most_common(1)
    order = [hop.answer == commonest for hop in truth if hop.form == "order"]
    assert found["by_form"]["order"]["majority"]["mean"] == sum(order) / len(order)
    assert found["chance"]["between"] == 0.3333
    lines = table(found).splitlines()
    assert len(lines) == 2 + 4 + len(FORMS)
    assert {len(line) for line in lines} == {26 + 3 * 22}


@pytest.mark.slow
def test_a_whole_run_with_a_tiny_model(tmp_path):
    model = longtake.load(tiny.save_video_llm(tmp_path), device="cpu")
    seen = []
    found = evaluate(model, HopRun(questions=2, seed=2), world.clips(), lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    assert found["all"]["model"]["questions"] == 2
    assert found["by_hops"]["1"]["blind"]["questions"] == 1


def test_the_command(tmp_path, capsys, monkeypatch):
    folder = str(tiny.save_video_llm(tmp_path / "model"))
    command = ["longtake", "eval", "hops", "--model", folder, "--device", "cpu", "--cache", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "--samples", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["run"]["questions"] == 1
    monkeypatch.setattr(sys, "argv", [*command, "--frames", "9"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "frames is 9" in capsys.readouterr().err
