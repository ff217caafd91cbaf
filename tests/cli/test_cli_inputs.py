"""Images as people have them: sizes, means and classes that nobody states, or that only the weights' run knows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import MODEL_FILE, Cli
from PIL import Image

from clusterprune import data, load, models
from clusterprune.data.outputs import imagenet_classes
from clusterprune.evaluate import accuracy

STATED = "INPUT_SHAPE = (1, 8, 8)\nMEAN = (0.3,)\nSTD = (0.37,)\n"
SILENT = MODEL_FILE.replace(STATED, "").replace("Conv2d(1,", "Conv2d(3,")
SHORT = ("--epochs", 1, "--batch-size", 30, "--augment", "none")


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """Return the --model of a file that says nothing of its input."""
    (tmp_path / "silent.py").write_text(SILENT)
    return f"{tmp_path / 'silent.py'}:build"


def ran(cli: Cli, *arguments: object) -> str:
    """Call what must go well, and return what it said on its way."""
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stderr.split())


def measured(cli: Cli, *arguments: object) -> dict[str, float]:
    result = cli("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_images_of_one_size_are_read_at_it_and_the_run_remembers(silent: str, images: Path, cli: Cli):
    said = ran(cli, "train", "--model", silent, "--data", f"folder:{images}", *SHORT, "--out", "run")

    assert "Input 3 x 8 x 8 (the images' own size); mean 0.485, 0.456, 0.406 (assumed)" in said
    assert yaml.safe_load(Path("run/config.yaml").read_text())["image_size"] == 8
    for file in images.glob("test/*/*.png"):
        Image.open(file).resize((20, 17)).save(file)
    said = ran(cli, "evaluate", "run", "--model", silent)
    assert "Input 3 x 8 x 8 (as in the run of the weights)" in said


def test_images_of_several_sizes_are_read_at_224_and_it_is_said(silent: str, images: Path, cli: Cli):
    file = next(images.glob("train/*/*.png"))
    Image.open(file).resize((9, 8)).save(file)
    options = ("--calibration", images / "train", "--keep-macs", 0.8, "--images", 4, "--out", "small")
    said = ran(cli, "compress", "--model", silent, *options)

    assert "Input 3 x 224 x 224 (assumed, for the images differ in size)" in said
    assert ran(cli, "inspect", "small", "--trust", "silent.py").startswith("Input 3 x 224 x 224")
    assert "Input 3 x 40 x 40 (as asked for)" in ran(cli, "inspect", "--model", silent, "--image-size", 40)


def test_a_compact_folder_alone_says_how_its_images_are_read(silent: str, images: Path, cli: Cli, tmp_path: Path):
    statistics = ("--mean", "0.5,0.4,0.3", "--std", 0.2)
    options = ("--data", f"folder:{images}", "--keep-macs", 0.7, "--images", 40, *statistics, "--out", "run")
    said = ran(cli, "compress", "--model", silent, *options)

    assert "mean 0.5, 0.4, 0.3 (as asked for); std 0.2, 0.2, 0.2 (as asked for)" in said
    written = json.loads(Path("run/result.json").read_text())["compressed"]
    shutil.move("run/compact", "alone")
    message = cli.fails("evaluate", "alone", "--data", f"folder:{images}")
    assert "alone/origin.json names model=" in message
    assert "--trust" in message
    found = measured(cli, "alone", "--data", f"folder:{images}", "--trust", "silent.py")
    assert {key: found[key] for key in found if "latency" not in key} == {
        key: written[key] for key in written if "latency" not in key
    }
    assert load("alone", trust=tmp_path / "silent.py")(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_numbers_that_are_none(silent: str, cli: Cli):
    torch.save(models.build(silent, seed=0).state_dict(), "w.pt")
    for option, value in (("mean", "a"), ("mean", "0.1,0.2"), ("std", "0"), ("std", "nan"), ("std", "1,1,-1")):
        message = cli.fails("evaluate", "w.pt", "--model", silent, f"--{option}", value)
        assert f"{option} must be" in message
        assert repr(value) in message


class TestClasses:
    """Fewer classes of data than outputs of the model."""

    @pytest.fixture
    def three(self, images: Path, tmp_path: Path) -> Path:
        """Return three of the ten digits, as folders with other names."""
        for split in ("train", "test"):
            for number, name in {7: "seven", 3: "three", 1: "one"}.items():
                shutil.copytree(images / split / str(number), tmp_path / "few" / split / name)
        return tmp_path / "few"

    def test_a_file_names_the_outputs(self, silent: str, images: Path, three: Path, cli: Cli):
        ran(cli, "train", "--model", silent, "--data", f"folder:{images}", *SHORT, "--out", "run")
        names = "zero one two three four five six seven eight nine".split()
        Path("names.txt").write_text("\n".join(names))
        message = cli.fails("evaluate", "run", "--model", silent, "--data", f"folder:{three}")
        assert "has 10 outputs, but data=" in message
        options = ("--data", f"folder:{three}", "--classes", "names.txt")
        assert "3 of 10 classes seen." in ran(cli, "evaluate", "run", "--model", silent, *options)

        found = measured(cli, "run", "--model", silent, *options)["accuracy"]
        spec = models.resolve(silent)
        network = models.build(spec, weights="run/model.safetensors")
        whole = data.load(f"folder:{images}", image_size=8).test
        labels = whole.labels
        assert labels is not None
        part = whole.subset(torch.isin(labels, torch.tensor([1, 3, 7])))
        assert found == pytest.approx(accuracy(network, part, mean=spec.mean, std=spec.std).top1, abs=1e-3)

        # A run remembers its classes, and so does what it writes.
        ran(cli, "compress", "--model", silent, "--weights", "run", *options, "--keep-macs", 0.8, "--out", "small")
        assert json.loads(Path("small/compact/origin.json").read_text())["origin"]["classes"] == names
        assert "3 of 10 classes seen." in ran(cli, "evaluate", "small", "--trust", "silent.py")

    def test_wordnet_ids_need_no_file(self, silent: str, three: Path, cli: Cli):
        for split in ("train", "test"):
            for name, number in (("seven", 217), ("three", 0), ("one", 701)):
                (three / split / name).rename(three / split / imagenet_classes()[number])
        options = ("--data", f"folder:{three}", "--num-classes", 1000, "--keep-macs", 0.8, "--out", "small")
        assert "3 of 1,000 classes seen." in ran(cli, "compress", "--model", silent, *options)
