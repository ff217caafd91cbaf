import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune import models, train
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.merge.divergence import distillation
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.rebuild import graph_module
from clusterprune.tasks import Classification
from clusterprune.train.guidance import attention
from clusterprune.train.stages import calls_of, find_stages, reader

Fit = Callable[..., train.TrainResult]
LABELS = torch.tensor([0, 1])
IMAGES = torch.zeros(2, 1, 2, 2)
TASK = Classification((IMAGES.byte(), LABELS), mean=[0.5], std=[0.25])


def guided(teacher: nn.Module, **settings: Any) -> train.Guidance:
    return train.Guidance(teacher, TASK, **settings)


class Fixed(nn.Module):
    """Returns maps from a stage, and logits, that a test chose."""

    def __init__(self, maps: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.stage = Parameter(maps)
        self.head = Parameter(logits)
        self.calls = 0

    def forward(self, _: Tensor) -> Tensor:
        self.calls += 1
        self.stage()
        return self.head()


class Parameter(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self) -> Tensor:
        return self.value * 1


class Uncut(nn.Module):
    """Two stages, the second with a shortcut whose width is written into its code: a cut of it may need a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layer = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, padding=1), "bn": nn.BatchNorm2d(4)})
        self.act = nn.ReLU()
        self.wide = Block()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.act(self.layer["bn"](self.layer["conv"](x)))
        return self.linear(self.wide(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


def pair() -> tuple[Fixed, Fixed]:
    """Return a student of one channel and a teacher of two; stage maps of two pixels, two classes."""
    student = Fixed(torch.tensor([[[[3.0, 0.0]]], [[[1.0, 1.0]]]]), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]))
    teacher = Fixed(
        torch.tensor([[[[1.0, 1.0]], [[1.0, 1.0]]], [[[2.0, 2.0]], [[0.0, 0.0]]]]),
        torch.tensor([[0.0, 0.0], [0.0, 2 * math.log(3)]]),
    )
    return student, teacher


def small_of(model: nn.Module, group: str, kept: list[int], shape: tuple[int, ...]) -> nn.Module:
    graph = cp.trace(model.eval(), torch.zeros(shape))
    return cp.apply(model, Plan.of(graph, (Merge(group, np.array(kept)),)), graph=graph)


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [2.0, 1.0]]]])
    # Mean squares 5, 2, 2 and 1, of norm √34.
    expected = torch.tensor([[5.0, 2.0, 2.0, 1.0]]) / math.sqrt(34)
    torch.testing.assert_close(attention(maps), expected)
    assert attention(torch.zeros(1, 2, 3, 3)).tolist() == [[0.0] * 9]
    assert attention(maps.half()).dtype == torch.float32


def test_distillation_by_hand() -> None:
    student, teacher = pair()
    loss = distillation(student.head.value, teacher.head.value, 2.0)
    # At τ = 2 the student's softmax is (√3, 1) / (1 + √3) and (1, 1) / 2; the teacher's (1, 1) / 2 and (1, 3) / 4.
    root = math.sqrt(3)
    first = math.log(1 / 2) - 0.5 * (math.log(root / (1 + root)) + math.log(1 / (1 + root)))
    second = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert loss.item() == pytest.approx(4 * (first + second) / 2)
    assert distillation(teacher.head.value, teacher.head.value, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_the_three_terms_by_hand() -> None:
    student, teacher = pair()
    guidance = guided(teacher, temperature=2.0, alpha=0.3, beta=5.0, stages=["stage"])
    loss, logits = guidance(student, IMAGES, LABELS)
    entropy = (math.log(4 / 3) + math.log(2)) / 2
    distilled = distillation(student.head.value, teacher.head.value, 2.0).item()
    # Student (1, 0) and (1, 1) / √2, teacher (1, 1) / √2 twice: squared distances (1 − 1/√2)² and 1/2, over 4 pixels.
    transfer = ((1 - 1 / math.sqrt(2)) ** 2 + 0.5) / 4
    assert loss.item() == pytest.approx(0.3 * distilled + 0.7 * entropy + 5 * transfer)
    assert torch.equal(logits, student.head.value)


def test_only_the_student_gets_gradients() -> None:
    student, teacher = pair()
    student.stage.value.data = torch.tensor([[[[2.0, 1.0]]], [[[1.0, 1.0]]]])
    before = copy.deepcopy(teacher.state_dict())
    guidance = guided(teacher, alpha=0.5, stages=["stage"])
    loss, _ = guidance(student, IMAGES, LABELS)
    loss.backward()
    assert student.stage.value.grad is not None
    # The second image's maps are as the teacher's: nothing to learn there.
    assert student.stage.value.grad[0].abs().sum() > 0.1
    assert not student.stage.value.grad[1].any()
    assert student.head.value.grad is not None
    for model in (teacher, guidance._teacher.network):
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.training
    assert not guidance._teacher.network.training


@pytest.mark.parametrize(
    ("alpha", "beta", "calls"), [(0.0, 0.0, 0), (0.3, 0.0, 1), (0.0, 1.0, 1), (1.0, 0.0, 1), (0.3, 1.0, 1)]
)
def test_terms_can_be_switched_off(alpha: float, beta: float, calls: int) -> None:
    student, teacher = pair()
    guidance = guided(teacher, alpha=alpha, beta=beta, stages=["stage"])
    guidance(student, IMAGES, LABELS)  # finds the stages
    before = guidance._teacher.network.calls
    loss, _ = guidance(student, IMAGES, LABELS)
    assert guidance._teacher.network.calls - before == calls
    loss.backward()
    assert (student.stage.value.grad is not None) == (beta > 0)
    if alpha == beta == 0:
        assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    if alpha == 1:
        expected = distillation(student.head.value, teacher.head.value, 20.0)
        assert loss.item() == pytest.approx(expected.item())


def test_auxiliary_classifiers_count_in_the_cross_entropy() -> None:
    class Auxiliary(Fixed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), torch.zeros(2, 2)

    student, teacher = pair()
    both = Auxiliary(student.stage.value.detach(), student.head.value.detach())
    guidance = guided(teacher, alpha=0.25, beta=0)
    alone, _ = guidance(student, IMAGES, LABELS)
    loss, outputs = guidance(both, IMAGES, LABELS)
    assert loss.item() == pytest.approx(alone.item() + 0.75 * 0.3 * math.log(2))
    assert len(outputs) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16", ("features.12", "features.22", "features.32")),
        ("resnet20", ("layer1", "layer2", "layer3")),
        ("googlenet", ("inception_b3", "inception_e4", "inception_b5")),
    ],
)
def test_published_stages(name: str, expected: tuple[str, ...]) -> None:
    model = models.build(name, num_classes=10).eval()
    assert find_stages(model, model, []) == expected
    if name == "vgg16":
        calls = {call.name: tuple(call.shape) for call in calls_of(model, torch.zeros(1, 3, 32, 32))}
        assert [calls[stage] for stage in expected] == [(1, 128, 16, 16), (1, 256, 8, 8), (1, 512, 4, 4)]
        assert all(isinstance(model.get_submodule(stage), nn.ReLU) for stage in expected)


def test_any_other_network_is_compared_by_its_last_map_at_each_resolution(worker: ModuleType) -> None:
    network = worker.network()
    modes = [module.training for module in network.modules()]
    calls = calls_of(network, torch.zeros(2, 1, 8, 8))
    # 8 x 8 until the ReLU before the pool, then 4 x 4.
    assert find_stages(network, network, calls) == ("7", "8")
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert find_stages(Uncut(), Uncut(), calls_of(Uncut(), torch.zeros(1, 1, 8, 8))) == ("act", "wide")


@pytest.mark.parametrize("error", [True, False])
def test_hooks_are_always_removed(error: bool) -> None:
    class Fails(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            if error:
                raise RuntimeError("no")
            return super().forward(x)

    student, teacher = pair()
    failing = Fails(student.stage.value.detach(), student.head.value.detach())
    guidance = guided(teacher, stages=["stage"])
    if error:
        with pytest.raises(RuntimeError, match="no"):
            guidance(failing, IMAGES, LABELS)
    else:
        guidance(failing, IMAGES, LABELS)
    for model in (failing, guidance._teacher.network, teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_stages_of_a_rebuilt_student_are_the_values_of_its_graph() -> None:
    torch.manual_seed(0)
    teacher = Uncut().eval()
    images = torch.rand(3, 1, 8, 8)
    # A graph that computes what the teacher computes is at no distance from it.
    whole = as_graph(teacher)
    guidance = guided(teacher, alpha=1.0)
    loss, logits = guidance(whole, images, torch.zeros(3, dtype=torch.long))
    assert loss.item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(logits, teacher(images))


def as_graph(model: nn.Module) -> fx.GraphModule:
    """Rebuild a model as surgery does when its own code does not fit."""
    rebuilt = graph_module(copy.deepcopy(model), cp.trace(model, torch.zeros(2, 1, 8, 8)), {})
    assert "act" not in {node.target for node in rebuilt.graph.nodes}
    return rebuilt


@pytest.mark.parametrize(
    "name", ["resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "googlenet"))]
)
def test_the_published_stages_are_found_in_a_rebuilt_network(name: str) -> None:
    torch.manual_seed(0)
    teacher, images = models.build(name, num_classes=10).eval(), torch.rand(2, 3, 32, 32)
    rebuilt = graph_module(copy.deepcopy(teacher), cp.trace(teacher, images), {})
    calls = calls_of(teacher, images)
    stages = find_stages(teacher, rebuilt, calls)
    with torch.no_grad():
        _, own = reader(rebuilt, stages, calls, images)(rebuilt, images)
        _, guides = reader(teacher, stages, calls, images)(teacher, images)
    assert len(own) == 3
    assert all(torch.equal(a, b) for a, b in zip(own, guides, strict=True))


def test_a_rebuilt_student_learns_from_its_stages() -> None:
    torch.manual_seed(0)
    teacher = Uncut()
    student = as_graph(teacher.eval()).train()
    with torch.no_grad():
        student.get_parameter("wide.conv1.weight").mul_(torch.rand(8, 1, 1, 1))
    guidance = guided(teacher, alpha=1.0, beta=100.0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    images = torch.rand(8, 1, 8, 8)
    loss, _ = guidance(student, images, torch.zeros(8, dtype=torch.long))
    without, _ = guided(teacher, alpha=1.0, beta=0.0)(student, images, torch.zeros(8, dtype=torch.long))
    assert loss.item() > without.item()
    loss.backward()
    assert student.get_parameter("wide.conv1.weight").grad is not None
    # Two training passes and none more have touched the statistics.
    assert student.get_buffer("wide.bn1.num_batches_tracked") == before["wide.bn1.num_batches_tracked"] + 2


def test_under_autocast_every_weight_still_gets_its_gradient() -> None:
    # Autocast remembers the weights it has cast; those of the look for stages have no gradient.
    torch.manual_seed(0)
    teacher = Uncut().eval()
    for student in (as_graph(teacher).train(), Uncut()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = guided(teacher)(student, torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_cut_network_is_trained_under_guidance(tmp_path: Path, fit: Fit, worker: ModuleType) -> None:
    teacher = worker.network()
    fit(teacher, epochs=2)
    small = small_of(teacher, "0", [0, 2, 5], (1, 1, 8, 8))
    guidance = guided(teacher)
    before = copy.deepcopy(teacher.state_dict())
    result = fit(small, epochs=2, loss=guidance, out=tmp_path)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    again = small_of(teacher, "0", [0, 2, 5], (1, 1, 8, 8))
    assert fit(again, epochs=2, loss=guided(teacher), out=tmp_path, resume=True) == result


def test_stages_of_a_compiled_model_are_refused(fit: Fit, worker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(ArgumentError, match=r"pass compile=False, or beta=0 to Guidance"):
        fit(compile=True, epochs=2, loss=guided(worker.network()))
    assert fit(compile=True, epochs=2, loss=guided(worker.network(), beta=0)).epochs == 2


def test_a_teacher_is_known_by_its_weights(worker: ModuleType) -> None:
    teacher = worker.network()
    name = repr(guided(teacher))
    assert name == repr(guided(copy.deepcopy(teacher)))
    guidance = guided(teacher)
    with torch.no_grad():
        teacher[0].weight[0] += 1
    assert repr(guidance) == name
    assert repr(guided(teacher)) != name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "above 0, but got temperature=0"),
        ({"alpha": 1.5}, "between 0 and 1, but got alpha=1.5"),
        ({"beta": -1}, "0 or more, but got beta=-1"),
        ({"beta": math.nan}, "but got beta=nan"),
        ({"stages": "layer1"}, "list of module names, but got stages='layer1'"),
        ({"stages": []}, r"but got stages=\[\]"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        guided(nn.Identity(), **settings)


def test_stages_that_do_not_fit_are_named(worker: ModuleType) -> None:
    teacher, images, labels = worker.network(), torch.zeros(2, 1, 8, 8), LABELS
    with pytest.raises(ArgumentError, match=r"'layer9', which is not called as a module in the teacher; .*such as"):
        guided(teacher, stages=["layer9"])(teacher, images, labels)
    with pytest.raises(ArgumentError, match=r"'10', which returns \(2, 5\) in the teacher"):
        guided(teacher, stages=["10"])(teacher, images, labels)
    with pytest.raises(ModelError, match="no module '7' as the teacher"):
        guided(teacher, stages=["7"])(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), images, labels)
    other = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(18, 5))
    with pytest.raises(ModelError, match=r"\(8, 8\) pixels in the teacher and \(3, 3\) in the model"):
        guided(teacher, stages=["0"])(other, images, labels)
    with pytest.raises(ModelError, match=r"shape \(2, 5\), the model \(2, 6\)"):
        guided(teacher, beta=0)(worker.network(classes=6), images, labels)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ModelError, match=r"share no module .*pass beta=0"):
        guided(flat)(flat, images, labels)
