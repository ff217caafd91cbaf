"""What every registered task fulfils; a new one gets an entry in `CASES`."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import squares
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import clusterprune as cp
from clusterprune import data, evaluate, train
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.merge.divergence import BY_KIND, ByKind
from clusterprune.tasks import TASKS, Task

STATISTICS: dict[str, Any] = {"mean": (0.3,), "std": (0.35,)}
CONFIG = train.TrainConfig(epochs=3, batch_size=32, lr=0.05, augment="crop", device="cpu", precision="float32")


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, classes)
    )


def digits() -> tuple[data.Split, data.Split]:
    return data.holdout(data.sample(data.load("digits", image_size=8).train, 320, 0), 0.2)


def _plain() -> Task:
    """A task on images without labels."""
    taken, held_out = (data.Split.from_tensors(split.images()) for split in digits())
    return TASKS["plain"](taken, held_out, reference=network(seed=1), **STATISTICS)


class Case(NamedTuple):
    """A task, a network for it, by number of outputs and seed, and the shapes of what a network returns of an image."""

    task: Callable[[], Task]
    network: Callable[..., nn.Module] = network
    outputs: tuple[tuple[int, ...], ...] = ((5,),)
    config: train.TrainConfig = CONFIG


CASES = {
    "classification": Case(lambda: TASKS["classification"](*digits(), **STATISTICS)),
    "plain": Case(_plain),
    "detection": Case(
        squares.task,
        lambda classes=2, seed=0: squares.Detector(classes + 1, seed),
        ((6, 4), (6, 3)),
        CONFIG.model_copy(update={"batch_size": 10, "lr": 0.02, "augment": "crop_flip"}),
    ),
}


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def task(case: Case) -> Task:
    return case.task()


def batch(task: Task, count: int = 64) -> tuple[Tensor, Any]:
    positions = torch.arange(count)
    return task.normalize(task.train.images(positions)), task.targets(task.train)(positions)


def outputs_of(case: Case, task: Task, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor, Any]:
    images, targets = batch(task)
    return case.network(seed=seed).to(dtype)(images.to(dtype)), images, targets


def test_training_lowers_the_loss_and_raises_the_metric_that_decides(case: Case, task: Task) -> None:
    model = case.network()
    result = train.fit(model, task, case.config)
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"]
    metric = task.metrics[0]
    assert last[f"validation_{metric}"] > first[f"validation_{metric}"]
    assert result.validation == last[f"validation_{metric}"]
    assert (last[f"train_{metric}"] is None) == (task.guess is None)


def test_training_is_guided_and_can_be_resumed(case: Case, task: Task, tmp_path: Any) -> None:
    def stop(event: train.Progress) -> None:
        if event.kind == "step" and (event.epoch, event.step) == (2, 3):
            raise KeyboardInterrupt

    teacher, whole, resumed = case.network(seed=3), case.network(), case.network()
    settings: dict[str, Any] = {"alpha": 0.5, "stages": ["0"]}
    train.fit(whole, task, case.config, loss=train.Guidance(teacher, task, **settings))
    often = case.config.model_copy(update={"checkpoint_minutes": 1e-9})
    for progress in (stop, None):
        guidance = train.Guidance(teacher, task, **settings)
        model, config = (case.network(), often) if progress else (resumed, case.config)
        try:
            train.fit(model, task, config, loss=guidance, out=tmp_path, resume=progress is None, progress=progress)
        except KeyboardInterrupt:
            assert progress is stop
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_outputs_are_no_way_from_themselves_and_some_way_from_others(case: Case, task: Task) -> None:
    images = batch(task)[0]
    one, other = case.network()(images), case.network(seed=5)(images)
    same, changed = pytree.tree_leaves(one), pytree.tree_leaves(other)
    assert task.divergence(same, same).tolist() == [0.0] * len(images)
    assert (task.divergence(same, changed) > 0).all()
    assert task.distillation(one, one, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert task.distillation(one, other, 4.0) > 0


def test_the_score_has_the_divergence_as_its_second_moment(case: Case, task: Task) -> None:
    torch.manual_seed(0)
    one = [torch.randn(1, *shape) for shape in case.outputs]
    outputs = [part.expand(4000, *part.shape[1:]).clone().requires_grad_(True) for part in one]
    gradients = torch.autograd.grad(task.score(outputs, 1.0, torch.Generator().manual_seed(0)), outputs)
    changes = [0.01 * torch.randn_like(part) for part in one]
    along = sum((found * change).flatten(1).sum(1) for found, change in zip(gradients, changes, strict=True))
    assert isinstance(along, Tensor)
    moved = [part + change for part, change in zip(one, changes, strict=True)]
    assert float(0.5 * along.square().mean()) == pytest.approx(float(task.divergence(one, moved)[0]), rel=0.15)


def test_metrics_are_those_that_are_announced_and_do_not_depend_on_the_batches(case: Case, task: Task) -> None:
    outputs, images, targets = outputs_of(case, task)
    rows = task.observe(outputs, images, targets)
    assert rows.dtype == torch.float32
    metrics = task.summarise(rows)
    assert tuple(metrics) == tuple(task.metrics) == tuple(task.summarise(rows[:0]))
    assert all(value is None for value in task.summarise(rows[:0]).values())
    parts, collate = [], task.targets(task.train)
    for positions in torch.arange(64).split(24):
        taken = task.normalize(task.train.images(positions))
        parts.append(task.observe(case.network()(taken), taken, collate(positions)))
    assert task.summarise(torch.cat(parts)) == pytest.approx(metrics)
    found = evaluate.metrics(case.network(), task, task.train.subset(torch.arange(64)), batch_size=24)
    assert found.values == pytest.approx(metrics)
    assert (found.deciding, found.images) == (found.values[task.metrics[0]], 64)
    double = evaluate.metrics(case.network().double(), task, task.train.subset(torch.arange(64)))
    assert double.values == pytest.approx(metrics, rel=1e-4)


def test_it_works_in_double_precision_and_in_halves(case: Case, task: Task) -> None:
    outputs, images, targets = outputs_of(case, task)
    double, _, _ = outputs_of(case, task, dtype=torch.float64)
    loss = task.loss(outputs, images, targets)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert task.loss(double, images, targets).item() == pytest.approx(loss.item(), rel=1e-5)
    halves = pytree.tree_map(Tensor.bfloat16, outputs)
    assert task.loss(halves, images, targets).dtype == torch.float32
    assert task.summarise(task.observe(double, images, targets)) == pytest.approx(
        task.summarise(task.observe(outputs, images, targets)), rel=1e-5
    )


def test_what_does_not_fit_is_refused_by_name(case: Case, task: Task) -> None:
    images, _ = batch(task, 1)
    task.check(case.network()(images), images)
    with pytest.raises((ArgumentError, ModelError), match=r"10|outputs|num_classes=3"):
        task.check(case.network(classes=3)(images), images)
    with pytest.raises((ArgumentError, ModelError)):
        train.fit(case.network(classes=3), task, CONFIG)
    with pytest.raises(ArgumentError, match="train holds no images"):
        task.on(task.train.subset([]))
    with pytest.raises(ArgumentError, match="train must be a Split"):
        task.on(torch.zeros(4))  # pyright: ignore[reportArgumentType]


def test_the_same_task_on_other_images(task: Task) -> None:
    few = task.train.subset(torch.arange(20))
    other = task.on(few)
    assert other.train is few
    assert other.validation is None
    assert task.validation is not None
    assert repr(copy.copy(other)) == repr(task)  # which says what is aimed at, not on which images


def test_augmentation_is_what_one_process_or_several_would_draw(task: Task) -> None:
    pixels, targets = task.train.images(torch.arange(9)), task.targets(task.train)(torch.arange(9))
    whole, _ = task.augment(pixels, targets, "crop", torch.Generator().manual_seed(3))
    assert whole.shape == pixels.shape
    assert not torch.equal(whole, pixels)
    for rank in range(2):
        mine = slice(rank, 9, 2)
        share = task.targets(task.train)(torch.arange(9)[mine])
        part, _ = task.augment(pixels[mine], share, "crop", torch.Generator().manual_seed(3), 9, mine)
        assert torch.equal(part, whole[mine])


def test_one_shot_and_distillation_go_by_the_divergence_of_the_task(
    case: Case, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step that asks how far outputs are apart asks the task."""
    model, images = case.network().eval(), batch(task)[0]
    graph, asked = cp.trace(model, images[:1]), []
    for name in ("score", "divergence"):
        whole = getattr(task, name)
        monkeypatch.setattr(
            task, name, lambda *given, name=name, whole=whole: asked.append(name) or whole(*given), raising=False
        )
    for name in ("score", "divergence"):  # the usual one is not asked behind its back
        monkeypatch.setattr(BY_KIND, name, None, raising=False)
    plan = cp.oneshot(graph, images, keep_macs=0.6, divergence=task)
    assert set(asked) == {"score", "divergence"}
    asked.clear()
    cp.distil(graph, plan, images, steps=2, divergence=task)
    assert set(asked) == {"divergence"}


def test_the_usual_divergence_is_by_kind_of_output() -> None:
    one, other = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(CASES["plain"].task().divergence([one], [other]), ByKind().divergence([one], [other]))


def test_a_sheet_is_a_picture_or_nothing(case: Case, task: Task) -> None:
    images = task.train.images(torch.arange(3))
    targets = task.targets(task.train)(torch.arange(3))
    sheet = task.sheet(images, targets, {"one": case.network()(task.normalize(images))})
    assert sheet is None or (sheet.dtype == torch.uint8 and sheet.ndim == 3 and sheet.shape[0] == 3)
