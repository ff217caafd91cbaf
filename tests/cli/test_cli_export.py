"""From a run or a folder to a file of every format, by one command."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from command_line import Cli
from examples import first

from clusterprune import data, exporters, models
from clusterprune.exporters import FromFile

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def half(tiny: str, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a compression."""
    out = tmp_path_factory.mktemp("runs") / "half"
    options = ("--data", "digits", "--keep-macs", 0.5, "--images", 100, "--out", out)
    result = Cli(out.parent)("compress", "--model", tiny, "--weights", trained, *options)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", first(1, sorted(exporters.names(), key=lambda name: name != "int8")))
def test_a_run_becomes_a_file_that_is_as_good(name: str, half: Path, trust: tuple[str, str], tiny: str, cli: Cli):
    result = cli("export", half, "--format", name, "--threads", 1, "--images", 64, *trust, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    exporter = exporters.create(name)
    assert Path(found["path"]) == half / f"compact{exporter.suffix}"
    written = json.loads((half / "result.json").read_text())["compressed"]
    assert found["accuracy"] == pytest.approx(written["accuracy"], abs=0 if exporter.exact else 3)
    assert found["test_images"] == written["images"]
    assert found["real_images"]
    assert found["latency_ms"] > 0
    assert found["pytorch"]["latency_ms"] > 0
    assert found["difference"] < (1e-5 if exporter.exact else 0.5)
    assert ("pytorch_accuracy" in found) != exporter.exact
    if not exporter.exact:
        assert found["pytorch_accuracy"] == written["accuracy"]
        assert found["facts"]["calibration_images"] == 64

    spec = models.resolve(tiny)
    pixels, _ = data.load("digits").test.load([0, 1, 2])
    network = FromFile(exporter.open(Path(found["path"])))
    assert network(data.normalize(pixels, spec.mean, spec.std)).shape == (3, 10)

    message = cli.fails("export", half, "--format", name, *trust)
    assert "exists; choose another name with --out" in message


def test_the_table_says_what_came_of_it(half: Path, trust: tuple[str, str], cli: Cli):
    result = cli("export", half / "compact", "--data", "digits", "--set", "size=true", *trust, "--out", "net.onnx")

    assert result.exit_code == 0, result.output
    for row in ("size", "latency, 1 image", "as fast", "largest difference, batches 1, 2, 7", "top-1 accuracy"):
        assert row in result.stdout
    assert "Written to net.onnx (opset 18, input images, open dimensions 0" in result.stdout


def test_weights_without_data_are_checked_on_noise(trained: Path, tiny: str, cli: Cli):
    weights = shutil.copy(trained / "model.safetensors", "net.safetensors")
    result = cli("export", weights, "--model", tiny, "--format", "pt2")

    assert result.exit_code == 0, result.output
    assert "noise is taken" in result.stderr
    assert "accuracy" not in result.stdout
    assert Path("net.pt2").is_file()
    message = cli.fails("export", weights, "--model", tiny, "--format", "int8")
    assert "give --calibration DIR" in message
    assert not Path("net.int8.onnx").exists()


def test_a_run_whose_data_are_elsewhere_is_exported_without(half: Path, trust: tuple[str, str], cli: Cli):
    shutil.copytree(half, "moved")
    config = Path("moved/config.yaml")
    config.write_text(config.read_text().replace("data: digits", "data: folder:/no/such/folder"))
    result = cli("export", "moved", "--format", "torch", *trust, "--out", "again.py")

    assert result.exit_code == 0, result.output
    assert "The run's data cannot be opened: data folder '/no/such/folder' does not exist." in result.stderr
    assert "does not exist" in cli.fails("export", "moved", "--format", "pt2", *trust, "--data", "folder:/none")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "tflite"], "format must be one of onnx, pt2, torch, int8"),
        (["--opset", 7], "opset must be a whole number from 18"),
        (["--format", "pt2", "--opset", 20], "opset=20 is no setting of Pt2"),
        (["--set", "colour=red"], "colour='red' is no setting of Onnx; it has opset, size"),
        (["--out", "taken.onnx"], "taken.onnx' exists"),
        ([], "--trust"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    options: list[object], says: str, half: Path, trust: tuple[str, str], cli: Cli
):
    Path("taken.onnx").write_text("mine")
    before = sorted(half.iterdir())
    assert says in cli.fails("export", half, *options, *(trust if options else ()))
    assert sorted(half.iterdir()) == before


def test_files_have_the_modes_that_the_user_wants(tiny: str, cli: Cli):
    before = os.umask(0o027)
    try:
        options = ("--data-free", "--keep-macs", 0.8, "--out", "run")
        assert cli("compress", "--model", tiny, *options).exit_code == 0
        exported = cli("export", "run", "--model", tiny, "--format", "torch", "--out", "files/net.py")
        assert exported.exit_code == 0, exported.output
    finally:
        os.umask(before)
    made = [*Path("run").rglob("*"), *Path("files").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o640}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o750}
    assert torch.load("files/net.pt", weights_only=True)
