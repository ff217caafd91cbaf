import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Cli
from safetensors.torch import load_file, save_file

from clusterprune import Plan, data
from clusterprune.methods import cuts

LOAD = data.load


def arguments(tiny: str, trained: Path, *more: object, out: str = "run") -> list[object]:
    return ["compress", "--model", tiny, "--weights", trained / "model.safetensors", "--out", out, *more]


def test_a_run_leaves_its_files_and_a_table(tiny: str, trained: Path, cli: Cli):
    result = cli(*arguments(tiny, trained, "--data", "digits", "--keep-macs", 0.5, "--images", 200))

    assert result.exit_code == 0, result.output
    written = json.loads(Path("run/result.json").read_text())
    before, after = written["baseline"], written["compressed"]
    assert 0.3 < after["macs"] / before["macs"] <= 0.5
    assert before["accuracy"] > 90
    assert after["accuracy"] > 50
    assert after["params"] < before["params"]
    assert after["latency_ms"] > 0
    assert before["images"] == after["images"] == 359
    assert written["settings"] == {"keep_macs": 0.5, "images": 200}
    assert written["record"] == {"images": 200}
    assert {"compress", "time both"} <= written["seconds"].keys()
    assert written["device_type"] == "cpu"
    assert len(Plan.load("run/plan").merges) >= 1
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [event["phase"] for event in events][:2] == ["open data and model", "compress"]
    assert "% kept" in result.stdout
    assert "Written to run" in result.stdout
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_the_config_repeats_the_run_with_another_budget(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    assert cli(*arguments(tiny, trained, "--data-free", "--keep-params", 0.6)).exit_code == 0
    result = cli("compress", "--config", "run/config.yaml", "--keep-macs", 0.4, "--out", "other", *trust)

    assert result.exit_code == 0, result.output
    assert json.loads(Path("other/result.json").read_text())["settings"]["keep_macs"] == 0.4
    config = yaml.safe_load(Path("other/config.yaml").read_text())
    assert config["data_free"] is True
    assert "keep_params" not in config


def test_without_data_only_the_cost_is_measured(tiny: str, trained: Path, cli: Cli):
    result = cli(*arguments(tiny, trained, "--no-data", "--keep-macs", 0.5))

    assert result.exit_code == 0, result.output
    assert json.loads(Path("run/result.json").read_text())["compressed"]["accuracy"] is None
    assert "There are no test images, so only costs were measured." in result.stderr
    assert "accuracy" not in result.stdout


def test_any_folder_of_images_will_do(tiny: str, trained: Path, images: Path, cli: Cli):
    result = cli(*arguments(tiny, trained, "--calibration", images / "train", "--keep-macs", 0.5))

    # The files are read as RGB, the network takes one channel.
    assert result.exit_code == 2
    assert "mean and std have 1 number(s), but the images have 3 channel(s)" in result.stderr


def with_labels_shuffled(name: str, image_size: int | None = None) -> data.Dataset:
    digits = LOAD(name, image_size=image_size)
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(9))
    train = data.Split.from_tensors(digits.train.images(), digits.train.labels[order], digits.classes)
    return data.Dataset(name, digits.classes, {"train": train})


def test_the_labels_are_never_used(tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    genuine = cuts.oneshot

    def watch(graph, images=None, **options):
        seen.append(images)
        return genuine(graph, images, **options)

    monkeypatch.setattr(cuts, "oneshot", watch)
    options = ("--data", "digits", "--keep-macs", 0.5, "--images", 50, "--no-evaluate")
    assert cli(*arguments(tiny, trained, *options)).exit_code == 0

    monkeypatch.setattr(data, "load", with_labels_shuffled)
    assert cli(*arguments(tiny, trained, *options, out="again")).exit_code == 0
    assert seen[0].shape == (50, 1, 8, 8)
    assert seen[0].equal(seen[1])


def test_groups_can_be_left_alone(tiny: str, trained: Path, cli: Cli):
    assert cli(*arguments(tiny, trained, "--no-data", "--keep-macs", 0.7, "--ignore", "0")).exit_code == 0

    assert "0" not in {merge.group for merge in Plan.load("run/plan").merges if len(merge.kept) < 12}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "digits"], "give at least one of keep_macs, keep_params, keep_latency"),
        (
            ["--data", "digits", "--keep-macs", "half"],
            "but got keep_macs='half'; 0.5 or 50% keeps half",
        ),
        (["--data", "digits", "--keep-macs", 50], "keep_macs must be a fraction in (0, 1], but got keep_macs=50"),
        (["--keep-macs", 0.5], "there are no images to learn from; give --data, --calibration DIR"),
        (["--keep-macs", 0.5, "--no-data", "--calibration", "x"], "--calibration is for cuts that look at images"),
        (["--keep-macs", 0.5, "--data", "folder:nowhere"], "data folder 'nowhere' does not exist"),
        (["--keep-macs", 0.5, "--data", "mnist"], "data='mnist' is not known. Accepted: digits, cifar10:DIR"),
        (["--keep-macs", 0.5, "--no-data", "--ignore", "zzz"], "ignore='zzz' matches no group or layer"),
        (["--keep-macs", 0.5, "--no-data", "--device", "abacus"], "device='abacus' cannot be used here"),
        (["--keep-macs", 0.5, "--data", "digits", "--method", "magic"], "method='magic' is not known"),
        (["--keep-macs", 0.5, "--data", "digits", "--num-classes", 7], "build the model with num_classes=10"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny: str, trained: Path, cli: Cli, options: list[object], expected: str):
    assert expected in cli.fails(*arguments(tiny, trained, *options))
    assert list(Path().iterdir()) == []


def test_a_budget_out_of_reach_states_the_minimum(tiny: str, trained: Path, cli: Cli):
    message = cli.fails(*arguments(tiny, trained, "--no-data", "--keep-macs", 0.0001))

    assert "keep_macs=0.0001" in message
    assert list(Path().iterdir()) == []


def test_a_folder_in_use_is_refused_before_any_work(tiny: str, trained: Path, cli: Cli):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("keep me")

    message = cli.fails(*arguments("no_such_model", trained, "--data", "digits", "--keep-macs", 0.5))

    assert "out='run' exists and is not empty; choose another folder" in message
    assert Path("run/mine.txt").read_text() == "keep me"


def test_an_unknown_model_is_named(trained: Path, cli: Cli):
    message = cli.fails(*arguments("resnet57", trained, "--data", "digits", "--keep-macs", 0.5))

    assert "model='resnet57' is not known. Did you mean resnet56" in message


def test_a_named_network_needs_weights(cli: Cli):
    message = cli.fails("compress", "--model", "resnet20", "--data", "digits", "--keep-macs", 0.5, "--out", "run")

    assert "weights is missing: model='resnet20' would have random weights; give --weights FILE" in message


class TestWeights:
    def test_missing(self, tiny: str, cli: Cli):
        options = ("--weights", "gone.safetensors", "--data", "digits", "--keep-macs", 0.5, "--out", "run")
        message = cli.fails("compress", "--model", tiny, *options)

        assert "gone.safetensors' does not exist" in message

    def refused(self, cli: Cli, tiny: str, file: str) -> str:
        return cli.fails("compress", "--model", tiny, "--weights", file, "--no-data", "--keep-macs", 0.5, "--out", "r")

    def test_of_another_network(self, tiny: str, cli: Cli):
        save_file({"conv.weight": torch.zeros(3, 3)}, "other.safetensors")

        assert "Missing from the file (" in self.refused(cli, tiny, "other.safetensors")

    def test_with_nan(self, tiny: str, trained: Path, cli: Cli):
        state = load_file(trained / "model.safetensors")
        state["3.weight"][0] = float("nan")
        save_file(state, "nan.safetensors")

        assert "NaN or infinite in the model's type: 3.weight" in self.refused(cli, tiny, "nan.safetensors")

    def test_a_pickle_in_disguise(self, tiny: str, cli: Cli):
        torch.save({"a": torch.zeros(1)}, "disguised.safetensors")

        assert "is named .safetensors but holds a pickle" in self.refused(cli, tiny, "disguised.safetensors")

    def test_a_folder_without_a_model(self, tiny: str, cli: Cli):
        Path("empty").mkdir()

        assert "is a folder without a model" in self.refused(cli, tiny, "empty")

    def test_a_training_that_is_not_finished(self, tiny: str, cli: Cli):
        Path("half").mkdir()
        Path("half/checkpoint.safetensors").write_bytes(b"")

        assert "finish it with 'clusterprune train --out half --resume'" in self.refused(cli, tiny, "half")


NORMED = """
from torch import nn

INPUT_SHAPE = (1, 8, 8)
MEAN = (0.3,)
STD = (0.37,)


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(1, 12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1),
        nn.GroupNorm(1, 12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, num_classes),
    )
"""


def test_norms_over_channels_are_cut_when_asked_to(cli: Cli, tmp_path: Path):
    (tmp_path / "normed.py").write_text(NORMED)
    options = ["--model", f"{tmp_path / 'normed.py'}:build", "--data-free", "--data", "digits", "--no-evaluate"]
    message = cli.fails("compress", *options, "--keep-macs", 0.5, "--out", "exact")
    assert "no group of this model may be cut" in message
    assert "approximate=True" in cli("inspect", "--model", options[1]).stdout.replace("\n", " ")

    result = cli("compress", *options, "--keep-macs", 0.5, "--approximate", "--out", "run")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("run/result.json").read_text())
    assert written["compressed"]["macs"] <= 0.5 * written["baseline"]["macs"]
    assert Plan.load("run/plan").approximate
    assert yaml.safe_load(Path("run/config.yaml").read_text())["approximate"] is True
    facts = json.loads(cli("inspect", "--model", options[1], "--approximate", "--json").stdout)
    assert [group["approximate"] for group in facts["groups"] if group["frozen"] is None] == [True, True]
    message = cli.fails("compress", *options[:2], "--data", "digits", "--method", "cp", "--approximate", "--out", "no")
    assert "approximate is not for method='cp'" in message
