import pytest

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
