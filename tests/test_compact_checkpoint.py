import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import first
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import models
from clusterprune.errors import ModelError, OutputError, WeightsError
from clusterprune.methods.cp_layers import without_batch_norm
from clusterprune.surgery import history


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class HardCoded(nn.Module):
    """Its split has sizes written into the code, so a cut of it is a graph module."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.left, self.right = nn.Conv2d(5, 4, 1, bias=False), nn.Conv2d(7, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.norm(self.stem(x))).split([5, 7], 1)
        return self.head((self.left(left) + self.right(right)).mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.b.weight = self.a.weight
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(self.stem(x))))))


def bare() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.Flatten(2))


def cut(model: nn.Module, every: int = 2, *, offsets: bool = False) -> nn.Module:
    """Keep every other channel of every block."""
    graph = cp.trace(model.eval(), images(1))
    merges = []
    for group in graph.prunable:
        kept = np.sort(np.concatenate([np.flatnonzero(group.blocks == b)[::every] for b in range(group.n_blocks)]))
        offset = {use.path: torch.ones(group.width) for use in group.consumers} if offsets else {}
        merges.append(cp.Merge(group.name, kept, {}, offset))
    return cp.apply(model, cp.Plan.of(graph, tuple(merges)), graph=graph)


@pytest.fixture(scope="module")
def once_saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    small = cut(models.build("resnet20", seed=0))
    folder = tmp_path_factory.mktemp("saved") / "small"
    cp.save(small, folder)
    return small, folder


@pytest.fixture
def saved(once_saved: tuple[nn.Module, Path], tmp_path: Path) -> tuple[nn.Module, Path]:
    """Return a cut network and a folder of it that may be damaged."""
    small, folder = once_saved
    return copy.deepcopy(small), shutil.copytree(folder, tmp_path / "small")


def tamper(folder: Path, change) -> None:
    """Change a description as somebody who writes one of version 1, which has no digests."""
    path = folder / "structure.json"
    document = json.loads(path.read_text())
    document["version"] = 1
    del document["sha256"], document["tensors_sha256"]
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("factory", [lambda: models.build("resnet20"), HardCoded, Tied, bare])
def test_what_comes_back_is_equal(tmp_path: Path, factory):
    torch.manual_seed(0)
    small = cut(factory())
    assert history.stages(small)[0].rewired == (factory is HardCoded)
    cp.save(small, tmp_path / "small")
    loaded = cp.load(tmp_path / "small", factory)
    assert not loaded.training
    assert torch.equal(loaded(images()), small.eval()(images()))
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in small.state_dict().items()}
    assert history.describe(loaded) == history.describe(small)


@pytest.mark.parametrize("factory", first(2, [HardCoded, Tied, bare, lambda: models.build("resnet20")]))
def test_twice_cut_and_twice_saved(tmp_path: Path, factory):
    torch.manual_seed(0)
    small = cut(cut(factory()), every=3)
    cp.save(small, tmp_path / "a")
    loaded = cp.load(tmp_path / "a", factory)
    assert torch.equal(loaded(images()), small.eval()(images()))
    assert len(history.stages(loaded)) == 2
    cp.save(loaded, tmp_path / "b")
    again = cp.load(tmp_path / "b", factory)
    assert torch.equal(again(images()), small(images()))
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[path], second[path]) for path in first)


def test_a_model_that_was_never_cut(tmp_path: Path):
    model = models.build("resnet20", seed=1)
    cp.save(model, tmp_path / "whole")
    loaded = cp.load(tmp_path / "whole", lambda: models.build("resnet20", seed=2))
    assert torch.equal(loaded(images()), model(images()))
    assert history.stages(loaded) == ()


@pytest.mark.slow
def test_a_new_process_computes_the_same(tmp_path: Path):
    torch.manual_seed(0)
    pairs = {"module": cut(models.build("resnet20")), "rewired": cut(HardCoded())}
    for name, small in pairs.items():
        cp.save(small, tmp_path / name)
        torch.save(small.eval()(images()).detach(), tmp_path / f"{name}.pt")
    script = f"""
import sys, torch, clusterprune as cp
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from clusterprune import models
from test_compact_checkpoint import HardCoded, images
for name, factory in (("module", lambda: models.build("resnet20")), ("rewired", HardCoded)):
    loaded = cp.load({str(tmp_path)!r} + "/" + name, factory)
    assert torch.equal(loaded(images()), torch.load({str(tmp_path)!r} + "/" + name + ".pt", weights_only=True)), name
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("rewired", [False, True])
def test_new_biases(tmp_path: Path, rewired: bool):
    torch.manual_seed(0)
    factory = HardCoded if rewired else bare
    small = cut(factory(), offsets=True)
    path = "left.bias" if rewired else "2.bias"
    assert path in small.state_dict()
    cp.save(small, tmp_path / "small")
    loaded = cp.load(tmp_path / "small", factory)
    assert torch.equal(loaded.state_dict()[path], small.state_dict()[path])
    assert torch.equal(loaded(images()), small.eval()(images()))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path):
    small = cut(Tied())
    assert small.a.weight is small.b.weight
    cp.save(small, tmp_path / "small")
    assert "b.weight" not in load_file(tmp_path / "small" / "model.safetensors")
    loaded = cp.load(tmp_path / "small", Tied)
    assert loaded.a.weight is loaded.b.weight
    assert loaded.a.weight.shape == (4, 4, 1, 1)
    assert loaded.b.in_channels == small.b.in_channels == 4


def test_a_loaded_model_trains(saved):
    _, folder = saved
    loaded = cp.load(folder, lambda: models.build("resnet20")).train()
    loaded(images(4)).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in loaded.parameters())


def test_other_precisions(tmp_path: Path):
    small = cut(bare()).to(torch.bfloat16)
    cp.save(small, tmp_path / "small")
    loaded = cp.load(tmp_path / "small", lambda: bare().to(torch.bfloat16))
    assert torch.equal(loaded[0].weight, small[0].weight)


@pytest.mark.parametrize("other", ["resnet32", "vgg16"])
def test_a_factory_of_another_model(saved, other: str):
    _, folder = saved
    with pytest.raises(WeightsError, match=r"another model|the original") as caught:
        cp.load(folder, lambda: models.build(other))
    assert "layer" in str(caught.value) or "conv" in str(caught.value)


def test_a_factory_of_other_classes_names_the_tensor(saved):
    _, folder = saved
    with pytest.raises(WeightsError, match=r"linear"):
        cp.load(folder, lambda: models.build("resnet20", num_classes=7))


def test_another_rewired_model(tmp_path: Path):
    cp.save(cut(HardCoded()), tmp_path / "small")
    with pytest.raises(WeightsError, match="another model"):
        cp.load(tmp_path / "small", bare)
    with pytest.raises(WeightsError):
        cp.load(tmp_path / "small", lambda: models.build("resnet20"))


def test_a_factory_that_builds_no_module(saved):
    _, folder = saved
    with pytest.raises(ModelError, match="factory returned str, not a"):
        cp.load(folder, lambda: "resnet20")  # type: ignore[arg-type, return-value]


def test_an_existing_folder_is_left_alone(saved):
    small, folder = saved
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists and is not empty"):
        cp.save(small, folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["structure.json", "model.safetensors"])
@pytest.mark.parametrize("keep", [None, 0, 10, 0.5, 0.99])
def test_missing_and_truncated_files(saved, name: str, keep):
    _, folder = saved
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        cp.load(folder, lambda: models.build("resnet20"))


class Bomb:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("name", ["structure.json", "model.safetensors"])
def test_pickles_are_never_loaded(saved, name: str, capsys: pytest.CaptureFixture[str]):
    _, folder = saved
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError):
        cp.load(folder, lambda: models.build("resnet20"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=1),
        lambda d: d.update(version=99),
        lambda d: d.update(format="other"),
        lambda d: d.pop("stages"),
        lambda d: d["stages"][0].update(code="import os"),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"forward": "print('boo')"}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"out_channels": [[1]]}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"out_channels": {"a": 1}}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"out_channels": None}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"out_channels": 2.5}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"forward": 3}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"__class__": 3}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"weight": 3}}),
        lambda d: d["stages"][0]["attributes"].update({"conv1": {"training": 3}}),
        lambda d: d["stages"][0]["attributes"].update({"nowhere": {"out_channels": 3}}),
        lambda d: d["stages"][0].update(rewired="maybe"),
        lambda d: d["stages"][0].update(rewired=True, kept={"nowhere": [0]}),
        lambda d: d["stages"][0].update(rewired=True, kept={"conv1": [99]}),
        lambda d: d["stages"][0].update(rewired=True, example=[{"keyword": None, "shape": [1], "dtype": "save"}]),
        lambda d: d["stages"][0].update(rewired=True, example=[{"keyword": None, "shape": ["x"], "dtype": "float32"}]),
        lambda d: d["stages"][0].update(rewired=True, example=[{"keyword": None, "shape": [-1], "dtype": "float32"}]),
        lambda d: d["stages"][0].update(rewired=True, example=[]),
        lambda d: d["stages"][0].update(rewired=True, added=["nowhere.bias"]),
        lambda d: d["stages"][0].update(added=["nowhere.bias"]),
        lambda d: d["shared"].update({"conv1.weight": "linear.weight"}),
        lambda d: d["shared"].update({"extra.weight": "linear.weight"}),
    ],
    ids=range(26),
)
def test_altered_structures_are_refused(saved, change):
    _, folder = saved
    tamper(folder, change)
    with pytest.raises(WeightsError):
        cp.load(folder, lambda: models.build("resnet20"))


def test_attributes_that_do_not_fit_the_weights(saved):
    _, folder = saved
    tamper(folder, lambda d: d["stages"][0]["attributes"]["conv1"].update(out_channels=3))
    with pytest.raises(WeightsError, match="conv1"):
        cp.load(folder, lambda: models.build("resnet20"))


@pytest.mark.parametrize("kind", ["missing", "unexpected", "of another shape"])
def test_weights_that_do_not_fit_are_named(saved, kind: str):
    _, folder = saved
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tamper(folder, lambda d: None)
    if kind == "missing":
        del tensors["bn1.running_mean"]
    elif kind == "unexpected":
        tensors["surprise"] = torch.zeros(2)
    else:
        tensors["bn1.running_mean"] = torch.zeros(99)
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="surprise" if kind == "unexpected" else r"bn1\.running_mean"):
        cp.load(folder, lambda: models.build("resnet20"))


def normed() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(2))
    model[1].running_mean.add_(0.3)
    model[1].running_var.mul_(2)
    return model.eval()


@pytest.mark.parametrize(("factory", "layers"), [(normed, ("0", "3")), (HardCoded, ("stem",))])
def test_folded_batch_norms_stay_gone(factory, layers: tuple[str, ...], tmp_path: Path):
    model = factory().eval()
    smaller = without_batch_norm(model, cp.trace(model, images(1)), layers)
    torch.testing.assert_close(smaller(images()), model(images()))
    for name, saved in (("whole", smaller), ("cut", cut(smaller)), ("twice", cut(cut(smaller)))):
        cp.save(saved, tmp_path / name)
        loaded = cp.load(tmp_path / name, factory)
        assert torch.equal(loaded(images()), saved.eval()(images()))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())


def test_only_batch_norms_can_be_folded(tmp_path: Path):
    model = normed()
    cp.save(without_batch_norm(model, cp.trace(model, images(1)), ("0",)), tmp_path / "model")
    content = (tmp_path / "model" / "structure.json").read_text()
    for norm, message in (("0", "but it is a Conv2d"), ("9", "lacks a batch norm that was folded")):
        (tmp_path / "model" / "structure.json").write_text(content)
        tamper(tmp_path / "model", lambda d, norm=norm: d["stages"][0].update(folded=[norm]))
        with pytest.raises(WeightsError, match=message):
            cp.load(tmp_path / "model", normed)
