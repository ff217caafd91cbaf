import pytest
import torch

from clusterprune import train
from clusterprune.train import schedules


@pytest.mark.parametrize(("where", "factor"), [(0, 1), (1 / 3, 0.75), (1 / 2, 0.5), (2 / 3, 0.25), (1, 0)])
def test_cosine(where: float, factor: float) -> None:
    assert schedules.cosine(where) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(
    ("where", "factor"),
    [(0, 1), (0.2999, 1), (0.3, 0.2), (0.5999, 0.2), (0.6, 0.04), (0.99, 0.008)],
)
def test_step_of_the_cp_paper(where: float, factor: float) -> None:
    # ÷5 at epochs 60, 120 and 160 of 200.
    assert schedules.step(where, (0.3, 0.6, 0.8), 0.2) == pytest.approx(factor)


@pytest.mark.parametrize(("where", "factor"), [(0, 0.1), (0.05, 0.55), (0.075, 0.775), (0.1, 1), (0.5, 1)])
def test_warmup(where: float, factor: float) -> None:
    assert schedules.warmup(where, 0.1) == pytest.approx(factor)


def test_warmup_of_length_zero_does_nothing() -> None:
    assert schedules.warmup(0.0, 0.0) == 1


def test_learning_rate_is_the_product() -> None:
    cosine = train.TrainConfig(lr=0.4, epochs=12, warmup_epochs=8)
    assert train.learning_rate(cosine, 0) == pytest.approx(0.04)
    # Half-way through the warm-up of 2/3: 0.4 · 0.75 · 0.55.
    assert train.learning_rate(cosine, 1 / 3) == pytest.approx(0.165)
    assert train.learning_rate(cosine, 2 / 3) == pytest.approx(0.1)
    step = train.TrainConfig(lr=0.4, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert train.learning_rate(step, 0.49) == pytest.approx(0.4)
    assert train.learning_rate(step, 0.5) == pytest.approx(0.04)
    assert train.learning_rate(step, 0.8) == pytest.approx(0.004)


def test_step_at_whole_epochs_is_exact() -> None:
    # Milestones in epochs are their share of the run: at the first step of epoch 60 of 200 the rate has changed.
    for epochs, at in ((200, (60, 120, 160)), (90, (30, 60)), (7, (3, 5))):
        config = train.TrainConfig(
            lr=1, epochs=epochs, schedule="step", milestones=tuple(epoch / epochs for epoch in at), gamma=0.2
        )
        for number, epoch in enumerate(at):
            assert train.learning_rate(config, (epoch - 1 + 390 / 391) / epochs) == pytest.approx(0.2**number)
            assert train.learning_rate(config, (epoch + 0 / 391) / epochs) == pytest.approx(0.2 ** (number + 1))


@pytest.mark.parametrize(("where", "factor"), [(0, 0.04), (0.15, 0.52), (0.3, 1), (0.65, 0.500002), (1, 4e-6)])
def test_one_cycle(where: float, factor: float) -> None:
    assert schedules.one_cycle(where) == pytest.approx(factor)


def test_one_cycle_is_that_of_pytorch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    steps = 101
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=steps, cycle_momentum=False)
    config = train.TrainConfig(lr=0.4, schedule="onecycle")
    for taken in range(steps):
        # PyTorch's peak lies at step 0.3 · total_steps − 1, ours at three tenths of the run.
        where = taken / (steps - 1)
        if taken > 0:
            optimizer.step()
            reference.step()
        assert train.learning_rate(config, where) == pytest.approx(reference.get_last_lr()[0], abs=0.4 * 0.06)


def test_constant() -> None:
    config = train.TrainConfig(lr=0.4, epochs=10, warmup_epochs=5, schedule="constant")
    assert [train.learning_rate(config, where) for where in (0, 0.5, 0.9)] == pytest.approx([0.04, 0.4, 0.4])
