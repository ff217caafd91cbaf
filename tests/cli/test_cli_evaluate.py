import json
from pathlib import Path

import pytest
from command_line import Cli


@pytest.fixture(scope="module")
def half(tiny: str, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a compression."""
    out = tmp_path_factory.mktemp("runs") / "half"
    options = ("--data", "digits", "--keep-macs", 0.5, "--images", 100, "--out", out)
    result = Cli(out.parent)("compress", "--model", tiny, "--weights", trained, *options)
    assert result.exit_code == 0, result.output
    return out


def measured(cli: Cli, *arguments: object) -> dict[str, float]:
    result = cli("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_training_run_says_what_it_is(trust: tuple[str, str], trained: Path, cli: Cli):
    written = json.loads((trained / "result.json").read_text())["trained"]

    found = measured(cli, trained, *trust)

    for key in ("accuracy", "accuracy_top5", "images", "macs", "params"):
        assert found[key] == written[key]


def test_the_compact_model_is_loaded_as_it_was_measured(trust: tuple[str, str], half: Path, cli: Cli):
    written = json.loads((half / "result.json").read_text())["compressed"]

    for path in (half, half / "compact"):
        found = measured(cli, path, *trust)
        assert {key: found[key] for key in found if "latency" not in key} == {
            key: written[key] for key in written if "latency" not in key
        }


def test_a_weights_file_needs_a_model(trained: Path, tiny: str, cli: Cli):
    file = trained / "model.safetensors"

    assert "--model is missing" in cli.fails("evaluate", file)
    assert measured(cli, file, "--model", tiny, "--data", "digits", "--latency-batch", 8)["latency_batch"] == 8


def test_a_path_where_nothing_is(cli: Cli):
    assert "RUN_OR_WEIGHTS='no_such_dir' does not exist" in cli.fails("evaluate", "no_such_dir", "--data", "digits")


def test_without_test_images_only_the_cost_is_measured(trained: Path, tiny: str, cli: Cli):
    result = cli("evaluate", trained / "model.safetensors", "--model", tiny)

    assert result.exit_code == 0
    assert "accuracy" not in result.stdout
    assert "MACs" in result.stdout
    assert "There are no test images" in result.stderr


def test_a_compact_model_can_be_trained_and_cut_again(trust: tuple[str, str], half: Path, tiny: str, cli: Cli):
    options = ("--epochs", 2, "--lr", 0.01, "--augment", "none", "--out", "tuned")
    result = cli("train", "--model", tiny, "--weights", half, "--data", "digits", *options)

    assert result.exit_code == 0, result.output
    before = json.loads((half / "result.json").read_text())["compressed"]
    found = measured(cli, "tuned", *trust)
    assert found["macs"] == before["macs"]
    assert found["accuracy"] >= before["accuracy"] - 1

    result = cli("compress", "--model", tiny, "--weights", "tuned", "--no-data", "--keep-macs", 0.6, "--out", "quarter")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("quarter/result.json").read_text())["compressed"]["macs"] <= 0.6 * before["macs"]


class TestFolders:
    """Data that is not as it should be, on a model that reads RGB."""

    @pytest.fixture
    def color(self, tmp_path: Path, tiny: str) -> str:
        text = Path(tiny.rpartition(":")[0]).read_text()
        text = text.replace("(1, 8, 8)", "(3, 8, 8)").replace("Conv2d(1,", "Conv2d(3,")
        (tmp_path / "color.py").write_text(text.replace("(0.3,)", "(0.3,) * 3").replace("(0.37,)", "(0.37,) * 3"))
        return f"{tmp_path / 'color.py'}:build"

    def trained(self, cli: Cli, color: str, images: Path) -> int:
        options = ("--epochs", 1, "--batch-size", 30, "--augment", "none", "--out", "run")
        result = cli("train", "--model", color, "--data", f"folder:{images}", *options)
        self.said = " ".join(result.stderr.split())
        return result.exit_code

    def test_a_corrupt_image_is_reported_and_left_out(self, color: str, images: Path, cli: Cli):
        broken = sorted((images / "test" / "3").iterdir())[0]
        broken.write_bytes(broken.read_bytes()[:30])

        assert self.trained(cli, color, images) == 0
        assert f"Warning: skipped 1 image(s) that cannot be read: {broken}" in self.said
        assert json.loads(Path("run/result.json").read_text())["trained"]["images"] == 39

    def test_no_classes(self, color: str, images: Path, cli: Cli):
        (images / "flat").mkdir()
        for file in (images / "train").glob("*/*.png"):
            file.rename(images / "flat" / file.name)
        for folder in (images / "train").iterdir():
            folder.rmdir()

        assert self.trained(cli, color, images) == 2
        assert "has no class folders" in self.said

    def test_no_test_split(self, color: str, images: Path, cli: Cli):
        (images / "test").rename(images / "held")

        assert self.trained(cli, color, images) == 0
        assert "has no test images, so only costs were measured" in self.said

    def test_calibration_from_any_folder(self, color: str, images: Path, cli: Cli):
        assert self.trained(cli, color, images) == 0
        options = ("--calibration", images, "--data", f"folder:{images}", "--keep-macs", 0.6, "--out", "small")
        result = cli("compress", "--model", color, "--weights", "run", *options)

        assert result.exit_code == 0, result.output
        assert "There are 160 images to look at, fewer than the 1024 asked for." in result.stderr
        assert json.loads(Path("small/result.json").read_text())["record"]["images"] == 160

    def test_a_model_for_other_classes(self, color: str, images: Path, cli: Cli):
        assert self.trained(cli, color, images) == 0
        for split in ("train", "test"):
            for file in (images / split / "9").iterdir():
                file.unlink()
            (images / split / "9").rmdir()

        message = cli.fails("evaluate", "run", "--num-classes", 10, "--trust", "color.py")
        assert "has 10 outputs, but data=" in message
        assert "has 9 classes" in message
