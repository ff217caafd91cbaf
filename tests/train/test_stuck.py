import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clusterprune import tasks, train
from clusterprune.train.stuck import StuckTrainingWarning, warn_if_stuck

Fit = Callable[..., train.TrainResult]


class Deaf(nn.Module):
    """Answers every image alike, whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), -1)


def test_a_network_that_does_not_begin_to_learn_is_reported_once(fit: Fit) -> None:
    with pytest.warns(StuckTrainingWarning, match=r"after 3 of 25 epochs .*guessing.*warmup_epochs=0\)") as found:
        fit(Deaf(), epochs=25, warmup_epochs=0)
    assert len(found) == 1


def test_nothing_is_said_of_one_that_learns(fit: Fit) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(epochs=10)
    assert result.history[1]["train_accuracy"] > 30


def test_nor_of_a_training_too_short_to_tell(fit: Fit) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Deaf(), epochs=9, warmup_epochs=0)


@pytest.mark.parametrize(("right", "stuck"), [(90.0, True), (90.1, True), (91.0, False)])
def test_guessing_is_the_largest_class(right: float, stuck: bool) -> None:
    images = torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.tensor([0] * 9 + [1])
    guess = tasks.Classification(images, mean=[0.5], std=[0.25]).guess
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_stuck(train.TrainConfig(epochs=100), guess, 10, right)
    assert bool(found) == stuck
