import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest
import yaml
from command_line import Cli
from safetensors.torch import load_file

from clusterprune import studies

RECIPE = """
model: {model}
data: digits
method: icp
knob: ε = 0.2
settings: {{eps: 0.2, min_samples: 2, samples: 64, steps: 2, epochs_between: 2}}
training: {{epochs: {epochs}, batch_size: 128, lr: 0.05, augment: none, precision: float32}}
baseline: {{epochs: 3, batch_size: 128, lr: 0.1, augment: none, precision: float32}}
published:
  paper: Nobody (2026)
  table: "1"
  baseline: {{accuracy: 99.5, macs: 0.25}}
  compressed: {{accuracy: 99.25}}
  drop: 0.25
  macs_removed: 40
"""


@pytest.fixture
def own(tiny: str, tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(RECIPE.format(model=tiny, epochs=2))
    return file


def test_the_list_shows_every_recipe_on_a_line_of_its_own(cli: Cli):
    result = cli("reproduce", "--list")

    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "acp-resnet56-cifar10-0.035 resnet56 cifar10 acp ε = 0.035 93.18 → 93.78 -0.60 38.6" in lines
    assert "cp-resnet50-imagenet-0.618 resnet50 imagenet cp no rate 75.56 → 74.50 1.06 61.8" in lines
    assert sum(line.partition(" ")[0] in studies.names() for line in lines) == 44
    assert list(Path().iterdir()) == []


def test_published_stands_beside_measured(trust: tuple[str, str], own: Path, cli: Cli):
    result = cli("reproduce", own, "--data", "digits", "--out", "run", "--seeds", "0,1", *trust)

    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "icp on build, digits, ε = 0.2, seeds 0, 1" in text
    assert re.search(r"top-1 accuracy, original 99\.50 % \d+\.\d\d % ", text)
    assert re.search(r"top-1 accuracy, compact 99\.25 % \d+\.\d\d ±\d+\.\d\d % ", text)
    assert re.search(r"top-1 accuracy, points lost 0\.25 -?\d+\.\d\d ±", text)
    assert re.search(r"parameters, original - 0\.00 M parameters removed - \d+\.\d\d ±\d+\.\d\d % ", text)
    assert re.search(r"MACs removed 40\.00 % \d+\.\d\d ±\d+\.\d\d % ", text)
    assert "Published in Nobody (2026), table 1." in text
    assert "trial" not in text

    written = json.loads(Path("run/result.json").read_text())
    assert written["trial"] is None
    assert written["published"]["drop"] == 0.25
    assert written["compressed"]["macs"] <= written["baseline"]["macs"]
    scores = [written["seeds"][seed]["accuracy"] for seed in "01"]
    assert written["compressed"]["accuracy"] == pytest.approx(sum(scores) / 2, abs=1e-3)
    assert written["deviation"]["accuracy"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=1e-3)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["recipe"] == str(own)


def test_a_shorter_run_says_that_it_is_a_trial(trust: tuple[str, str], own: Path, cli: Cli):
    result = cli(
        *("reproduce", own, "--data", "digits", "--out", "run", "--epochs-scale", 0.1, "--limit", 100, *trust),
    )

    assert result.exit_code == 0, result.output
    trial = "0.1 times the epochs, 100 training images"
    assert f"This is a trial and no reproduction: {trial}." in result.stdout
    assert json.loads(Path("run/result.json").read_text())["trial"] == trial


def test_ctrl_c_says_how_to_go_on(trust: tuple[str, str], own: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clusterprune.methods.Method.run", interrupt)
    result = cli("reproduce", own, "--data", "digits", "--out", "a run", "--limit", 100, *trust)

    assert result.exit_code == 130
    assert "Stopped. 3 of 3 epochs of this phase (baseline) are done and on disk." in result.stderr
    go_on = shlex.split(result.stderr.rpartition("Go on with:")[2])
    assert go_on == ["clusterprune", "reproduce", "--out", "a run", "--resume", *trust]
    monkeypatch.undo()
    monkeypatch.chdir(cli.folder)
    result = cli(*go_on[1:])
    assert result.exit_code == 0, result.output
    assert "baseline:" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_killed_run_ends_like_one_that_was_not(trust: tuple[str, str], own: Path, tiny: str, cli: Cli):
    own.write_text(RECIPE.format(model=tiny, epochs=40))
    process = cli.start("reproduce", own, "--data", "digits", "--out", "killed", "--limit", 200, *trust)
    until = time.monotonic() + 300
    while not Path("killed/method/seed-0/step-2/training/checkpoint.safetensors").exists():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not Path("killed/result.json").exists()
    message = cli.fails("reproduce", "--out", "killed", "--resume", "--limit", 100)
    assert "limit=100 (the run has 200)" in message

    for arguments in (("--out", "killed", "--resume"), (own, "--data", "digits", "--limit", 200, "--out", "whole")):
        result = cli("reproduce", *arguments, *trust)
        assert result.exit_code == 0, result.output
    a, b = (load_file(next(Path(run).glob("method/seed-0/compact/*.safetensors"))) for run in ("killed", "whole"))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "RECIPE is missing: name one; 'clusterprune reproduce --list' shows them"),
        (["acp-resnet56-cifar10-0.036", "--data", "digits", "--out", "run"], "Did you mean acp-resnet56-cifar10-0.035"),
        (["icp-resnet56-cifar10-0.015"], "data is missing: give --data KIND:DIR"),
        (["icp-resnet56-cifar10-0.015", "--data", "digits"], "out is missing: give --out DIR"),
        (["icp-resnet56-cifar100-0.050", "--data", "IMAGES"], "is for cifar100 with its 100 classes, but data="),
        (["icp-resnet56-cifar10-0.015", "--data", "IMAGES", "--limit", 5], "limit=5 is less than two images for each"),
        (["OWN", "--data", "digits", "--epochs-scale", 2], "epochs_scale must be above 0 and at most 1"),
        (["OWN", "--data", "digits", "--seeds", "a"], "seeds must be whole numbers with commas between them"),
        (["OWN", "--data", "digits", "--seeds", "1,1"], "seeds must be different whole numbers"),
        (["OWN", "--data", "digits", "--seeds", "-1"], "but got seeds='-1'"),
        (["OWN", "--data", "digits", "--precision", "float8"], "precision: input should be 'auto', 'float32'"),
        (["OWN", "--data", "digits", "--device", "abacus"], "device='abacus' cannot be used here"),
        (["OWN", "--data", "digits", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    trust: tuple[str, str], own: Path, images: Path, cli: Cli, options: list[object], expected: str
):
    named = {"OWN": own, "IMAGES": f"folder:{images}"}
    given = [named.get(str(option), option) for option in options]
    if len(given) > 3 and "--out" not in given:
        given += ["--out", "run"]
    if given[1:] == ["--data", f"folder:{images}"]:
        given += ["--out", "run"]
    assert expected in cli.fails("reproduce", *given, *trust)
    assert not Path("run/config.yaml").exists()


def test_a_folder_in_use_is_refused(own: Path, trained: Path, cli: Cli):
    assert "is not empty" in cli.fails("reproduce", own, "--data", "digits", "--out", trained)


def test_weights_come_from_a_run_but_not_from_a_compact_network(
    trust: tuple[str, str], own: Path, trained: Path, cli: Cli
):
    result = cli(
        "reproduce", own, "--data", "digits", "--weights", trained, "--out", "run", "--epochs-scale", 0.1, *trust
    )
    assert result.exit_code == 0, result.output
    assert json.loads(Path("run/result.json").read_text())["baseline"]["accuracy"] > 90

    message = cli.fails(
        *("reproduce", own, "--data", "digits", "--weights", "run/method/seed-0/compact", "--out", "other", *trust)
    )
    assert "is a compact network; a recipe begins with a whole one" in message
