import json
import re
from pathlib import Path

import pytest
from command_line import Cli

from clusterprune import models, trace
from clusterprune.studies import demo
from clusterprune.studies.demo import drop_by_norm


def test_the_short_demo_runs_to_its_table(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "IMAGES", 48)
    monkeypatch.setattr(demo, "LATENCY_BATCH", 4)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/mine.txt").write_text("keep me")

    result = cli("demo", "--epochs", 1)

    assert result.exit_code == 0, result.output
    written = json.loads(Path("runs/demo-2/result.json").read_text())
    assert written["compressed"]["macs"] <= 0.45 * written["baseline"]["macs"]
    assert len(written["others"]) == 2
    for row in written["others"].values():
        assert 0.43 < row["macs"] / written["baseline"]["macs"] <= 0.45
    assert len(re.findall(r"^ (trained network|one-shot, .*|dropping .*?)  .* M ", result.stdout, re.MULTILINE)) == 4
    assert Path("runs/demo/mine.txt").read_text() == "keep me"
    assert {"compact", "config.yaml", "log.jsonl", "model.safetensors", "plan", "result.json"} == {
        path.name for path in Path("runs/demo-2").iterdir()
    }

    again = cli("evaluate", "runs/demo-2", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["accuracy"] == written["compressed"]["accuracy"]


@pytest.mark.slow
def test_the_demo_halves_the_macs_for_less_than_a_point(cli: Cli):
    result = cli("demo")

    assert result.exit_code == 0, result.output
    written = json.loads(Path("runs/demo/result.json").read_text())
    before, after = written["baseline"], written["compressed"]
    assert before["accuracy"] >= 97
    assert before["macs"] >= 2 * after["macs"]
    assert before["accuracy"] - after["accuracy"] < 1


def test_an_impossible_budget_is_refused_before_training(cli: Cli):
    assert "keep_macs must be a fraction in (0, 1], but got keep_macs=3" in cli.fails("demo", "--keep-macs", 3)
    assert "keep_macs=0.0001 is below what can be reached" in cli.fails("demo", "--keep-macs", 0.0001)
    assert list(Path().iterdir()) == []


def test_dropping_keeps_the_largest_norms_of_every_group():
    model = models.build("resnet20", seed=0)
    graph = trace(model, models.resolve("resnet20").example())
    plan = drop_by_norm(graph, 0.5)

    norms = model.get_submodule("layer1.0.conv1").weight.detach().abs().sum((1, 2, 3))
    kept = plan.by_group["layer1.0.conv1"].kept
    shares = [len(merge.kept) / graph.by_name[merge.group].width for merge in plan.merges]
    assert max(shares) - min(shares) < 0.15
    assert sorted(norms.topk(len(kept)).indices.tolist()) == kept.tolist()
    assert not any(merge.mixing for merge in plan.merges)
