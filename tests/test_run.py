import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from clusterprune import data, runs
from clusterprune.errors import ArgumentError, DataError, OutputError
from clusterprune.evaluate import Latency
from clusterprune.tasks import Classification


class TestOut:
    def test_new_and_empty_folders_are_fine(self, tmp_path: Path):
        assert runs.check_out(tmp_path) == tmp_path
        assert runs.check_out(tmp_path / "a" / "b") == tmp_path / "a" / "b"

    def test_what_would_be_lost_is_named(self, tmp_path: Path):
        (tmp_path / "file").write_text("")

        with pytest.raises(OutputError, match=r"exists and is not empty; choose another folder"):
            runs.check_out(tmp_path)
        with pytest.raises(OutputError, match=r"file' is a file, not a folder"):
            runs.check_out(tmp_path / "file")
        with pytest.raises(OutputError, match=r"lies below '.*file', which is a file"):
            runs.check_out(tmp_path / "file" / "a" / "b")

    def test_folders_of_others_are_refused(self, plain_folder: Path):
        plain_folder.chmod(0o500)

        with pytest.raises(OutputError, match="may not be written"):
            runs.check_out(plain_folder / "new")

    def test_the_first_free_number_is_taken(self, tmp_path: Path):
        assert runs.numbered(tmp_path / "demo").name == "demo"
        for name in ("demo", "demo-2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text("")
        assert runs.numbered(tmp_path / "demo").name == "demo-3"


class TestTimeline:
    def test_phases_are_timed_and_told(self):
        told: list[tuple[str, int, int]] = []
        timeline = runs.Timeline(lambda *event: told.append(event))

        with timeline.phase("read") as tell:
            tell(1, 2)
        with timeline.phase("plan", announce=False):
            pass

        assert list(timeline.seconds) == ["read", "plan"]
        assert told == [("read", 0, 0), ("read", 1, 2), ("read", 1, 1)]
        assert [event["phase"] for event in timeline.events] == ["read", "plan"]

    def test_a_phase_that_fails_is_not_done(self):
        timeline = runs.Timeline()

        with pytest.raises(ValueError, match="no"), timeline.phase("read"):
            raise ValueError("no")

        assert timeline.seconds == {}


class TestMeasure:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    example = torch.zeros(1, 1, 8, 8)

    def test_cost_alone(self):
        found = runs.measure(self.model, self.example, latency_batch=3)

        assert found.params == 36 + 50
        assert found.macs == 36 * 36 + 40
        assert found.metrics == {"accuracy": None, "accuracy_top5": None}
        assert found.images == 0
        assert found.latency_batch == 3
        assert found.latency_ms > 0

    def test_models_are_timed_in_turns(self, monkeypatch: pytest.MonkeyPatch):
        order: list[nn.Module] = []

        def time_one(model: nn.Module, images: torch.Tensor, *, warmup: int, runs: int) -> Latency:
            order.append(model)
            return Latency(float(len(order)), 0.5, runs, len(images))

        monkeypatch.setattr("clusterprune.runs.measurement.evaluate.latency", time_one)
        one, other = runs.time_in_turns(["a", "b"], self.example, batch=4, rounds=3)

        assert order == ["a", "b"] * 3
        assert (one.median_ms, other.median_ms) == (3, 4)
        assert (one.batch, one.runs) == (4, 30)

    def test_accuracy_is_rounded_only_in_the_file(self):
        test = data.load("digits").test

        found = runs.measure(self.model, self.example, test, Classification(test, mean=(0.5,), std=(0.5,)))

        assert found.images == 359
        assert found.to_dict()["accuracy"] == round(found.metrics["accuracy"], 4)
        names = "params macs accuracy accuracy_top5 images latency_ms latency_iqr_ms latency_batch"
        assert list(found.to_dict()) == names.split()


class TestFiles:
    def test_options_come_back(self, tmp_path: Path):
        options = {"model": "resnet20", "weights": Path("w"), "ignore": ("a", "b"), "lr": 1e-05, "seed": None}
        runs.write_config(tmp_path / "new", "train", options)

        read = runs.read_config(tmp_path / "new" / "config.yaml")

        assert {key: read[key] for key in options if key in read} == {
            "model": "resnet20",
            "weights": "w",
            "ignore": ["a", "b"],
            "lr": 1e-05,
        }
        assert read["command"] == "train"

    def test_yaml_runs_no_code(self, tmp_path: Path):
        (tmp_path / "config.yaml").write_text("model: !!python/object/apply:os.getcwd []")

        with pytest.raises(DataError, match="is not YAML"):
            runs.read_config(tmp_path / "config.yaml")

    @pytest.mark.parametrize("text", ["- a", "a", ""])
    def test_what_is_no_mapping_is_refused(self, tmp_path: Path, text: str):
        (tmp_path / "config.yaml").write_text(text)

        with pytest.raises(DataError, match="one option per line"):
            runs.read_config(tmp_path / "config.yaml")

    def test_results_come_back_and_damaged_ones_do_not(self, tmp_path: Path):
        assert runs.read_result(tmp_path) is None
        runs.write_result(tmp_path, {"a": 1})
        assert runs.read_result(tmp_path) == {"a": 1}
        (tmp_path / "result.json").write_text('{"a": ')
        assert runs.read_result(tmp_path) is None

    def test_figures_in_quotation_marks_are_numbers(self, tmp_path: Path):
        measured = runs.Measurement(10, 20, {"accuracy": 91.5, "accuracy_top5": None}, 100, 1.5, 0.1, 8).to_dict()
        runs.write_result(tmp_path, {"trained": {**measured, "latency_batch": "8", "accuracy": "91.5"}, "seed": 0})
        assert runs.read_result(tmp_path, "trained") == {"trained": measured, "seed": 0}

    def test_log_has_one_record_a_line(self, tmp_path: Path):
        runs.write_log(tmp_path, [{"a": 1}, {"b": "two\nlines"}])

        assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
            {"a": 1},
            {"b": "two\nlines"},
        ]

    def test_shared_and_strided_weights_are_written(self, tmp_path: Path):
        from safetensors.torch import load_file

        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        model[0].bias.data = torch.arange(6.0)[::2]
        runs.write_weights(tmp_path, model)

        read = load_file(tmp_path / "model.safetensors")
        assert read["1.weight"].equal(model[0].weight)
        assert read["0.bias"].tolist() == [0, 2, 4]

    def test_a_full_disk_is_our_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("clusterprune.runs.folder.replace_file", full)
        with pytest.raises(OutputError, match=r"result\.json cannot be written \(No space left on device\)"):
            runs.write_result(tmp_path, {})


def test_the_environment_says_what_a_repeat_needs():
    found = runs.environment(torch.device("cpu"))

    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["device_type"] == "cpu"
    assert found["device"]
    assert found["threads"] == torch.get_num_threads()
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_devices_that_are_not_there_are_named():
    assert runs.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="device='cuda:99' cannot be used here"):
        runs.pick_device("cuda:99")
