"""What every exporter promises: a file that computes what PyTorch does, in any batch, or nothing at all."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import clusterprune as cp
from clusterprune import models
from clusterprune.errors import ArgumentError, ExportError, OutputError
from clusterprune.exporters import Int8, Onnx, create, export, names
from clusterprune.exporters.writing import compare

FORMATS = ("onnx", "pt2", "torch", "int8")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """A network whose own code does not fit once it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.first(x)).relu().view(-1, 12, 196).mean(2))


@pytest.fixture(scope="module", params=["of its own class", "rebuilt"])
def compact(request: pytest.FixtureRequest, images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = (models.ResNet(1) if request.param == "of its own class" else Fixed()).eval()
    graph = cp.trace(network, images[:1])
    small = cp.apply(network, cp.prune_by(graph, "l1", keep_macs=0.6), graph=graph)
    assert isinstance(small, fx.GraphModule) == (request.param == "rebuilt")
    return small


def path_of(folder: Path, name: str) -> Path:
    return folder / f"compact{create(name).suffix}"


def test_every_format_is_tested() -> None:
    pytest.importorskip("onnxruntime")
    assert set(names()) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_computes_what_pytorch_does_in_any_batch(
    name: str, compact: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    if name in ("onnx", "int8"):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    before = {path: tensor.clone() for path, tensor in compact.state_dict().items()}
    compact.train()

    made = export(compact, images, path_of(tmp_path, name), format=name, calibration=images)

    assert compact.training
    compact.eval()
    assert all(tensor.equal(before[path]) for path, tensor in compact.state_dict().items())
    assert made.batches == (1, 2, 7)
    assert made.difference < (0.5 if name == "int8" else 1e-5)
    files = sorted(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) == made.bytes
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in files)
    if name != "int8":
        other = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
        assert compare(other.eval(), create(name).open(made.path), images) > 0.1  # the comparison can fail


def test_a_file_of_plain_torch_runs_and_trains_without_this_package(
    compact: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    export(compact, images, tmp_path / "net.py", format="torch")
    with torch.no_grad():
        torch.save((images, compact.eval()(images)), tmp_path / "expected.pt")
    code = """
import sys, torch
sys.modules["clusterprune"] = None
import net
images, expected = torch.load("expected.pt")
model = net.load()
assert torch.allclose(model(images), expected, atol=1e-5)
model.train()
torch.nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
assert all(p.grad is not None for p in model.parameters())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clusterprune" not in (tmp_path / "net.py").read_text().split('"""')[2]


def test_int8_without_images_and_a_taken_name_are_refused(images: torch.Tensor, tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3)
    with pytest.raises(ArgumentError, match="calibration=None"):
        export(network, images, tmp_path / "a.onnx", format="int8")
    (tmp_path / "taken.pt2").write_text("mine")
    with pytest.raises(OutputError, match=r"taken\.pt2"):
        export(network, images, tmp_path / "taken.pt2", format="pt2")
    with pytest.raises(ArgumentError, match="format='tflite'"):
        export(network, images, tmp_path / "b", format="tflite")
    with pytest.raises(ArgumentError, match="opset=7"):
        create("onnx", opset=7)
    with pytest.raises(ArgumentError, match="images=None"):
        export(network, None, tmp_path / "c.pt2", format="pt2")  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["taken.pt2"]


class Counting(nn.Module):
    """Says how many images it was given, as a number in Python."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) * (2 if len(images) > 3 else 1)


def test_what_computes_something_else_is_thrown_away(images: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export(Counting(), images, tmp_path / "net.pt2", format="pt2")
    assert not [*tmp_path.iterdir()]


def test_exporters_with_options_and_a_free_size(images: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = export(network, images, tmp_path / "net.onnx", format=Onnx(opset=20, size=True))
    assert made.facts["opset"] == 20
    assert made.facts["open_dimensions"] == [0, 2, 3]
    larger = torch.randn(3, 3, 24, 20)
    (found,) = Onnx().open(made.path, threads=1)(larger)
    assert torch.allclose(found, network(larger), atol=1e-5)
    assert (
        export(network, images, tmp_path / "q", format=Int8(ranges="percentile"), calibration=images).difference < 0.5
    )
