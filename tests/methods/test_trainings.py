"""What each method trains like where nobody says otherwise."""

import pytest

from clusterprune.errors import ArgumentError
from clusterprune.methods import METHODS, find
from clusterprune.studies import comparison
from clusterprune.train.schedules import learning_rate


@pytest.mark.parametrize(
    ("method", "epochs", "lr", "nesterov", "weight_decay", "batch_size", "schedule"),
    [
        ("icp", 200, 0.1, False, 2e-4, 128, "cosine"),
        ("acp", 160, 0.1, False, 1e-4, 64, "step"),
        ("cp", 200, 0.1, True, 5e-4, 128, "step"),
        ("sfp", 200, 0.01, True, 5e-4, 128, "step"),
        ("slimming", 160, 0.1, True, 1e-4, 64, "step"),
    ],
)
def test_the_published_trainings(method, epochs, lr, nesterov, weight_decay, batch_size, schedule) -> None:
    found = find(method).training_with()
    assert found is not None
    assert (found.epochs, found.lr, found.momentum, found.nesterov) == (epochs, lr, 0.9, nesterov)
    assert (found.weight_decay, found.batch_size, found.schedule) == (weight_decay, batch_size, schedule)


def test_cp_lowers_its_rate_to_a_fifth_at_60_120_and_160_of_200() -> None:
    config = find("cp").training_with()
    assert config is not None
    rates = [learning_rate(config, (epoch + 0.5) / 200) for epoch in (59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


def test_methods_that_cut_once_train_only_when_asked_to() -> None:
    for method in [name for name in METHODS if find(name).training is None]:
        assert find(method).training_with() is None
        assert find(method).training_with(epochs=None, lr=None) is None
        assert find(method).training_with(epochs=3) == comparison.TRAINING.model_copy(update={"epochs": 3})


def test_changes_are_made_and_none_is_no_change() -> None:
    found = find("icp").training_with(epochs=5, lr=None, augment="none")
    assert found is not None
    assert (found.epochs, found.lr, found.augment, found.weight_decay) == (5, 0.1, "none", 2e-4)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("magic", {}, "method='magic' is not known; choose from oneshot, icp"),
        ("oneshot", {"lr": 0.1}, "lr=0.1 is of a training, but method='oneshot' does not train by itself"),
        ("cp", {"speed": 3}, "speed is not a training setting"),
        ("icp", {"epochs": 0}, "epochs: input should be greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_named(method, changes, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        find(method).training_with(**changes)
