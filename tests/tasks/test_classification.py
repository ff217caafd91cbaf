import math
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from clusterprune.errors import ModelError
from clusterprune.tasks import Classification
from clusterprune.tasks.classification import logits_of
from clusterprune.train.losses import TaskLoss, name_of

# The form of torchvision's own.
Outputs = namedtuple("Outputs", ["logits", "second", "first"])
LABELS = torch.tensor([0, 1])
# Softmax (3/4, 1/4) and (1/2, 1/2).
LOGITS = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])


IMAGES = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
TASK = Classification((IMAGES, LABELS), mean=[0.5], std=[0.25])


class Returns(nn.Module):
    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Tensor) -> object:
        return self.outputs


def test_cross_entropy_by_hand() -> None:
    loss, logits = TaskLoss(TASK)(Returns(LOGITS), torch.zeros(2), LABELS)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert logits is LOGITS


def test_label_smoothing_by_hand() -> None:
    loss, _ = TaskLoss(TASK, 0.2)(Returns(LOGITS), torch.zeros(2), LABELS)
    # Targets (0.9, 0.1) and (0.1, 0.9).
    first = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert loss.item() == pytest.approx((first + math.log(2)) / 2)


def test_auxiliary_classifiers_count_three_tenths() -> None:
    flat = torch.zeros(2, 2)
    model = Returns(Outputs(LOGITS, flat, flat))
    loss, outputs = TaskLoss(TASK)(model, torch.zeros(2), LABELS)
    assert outputs is model.outputs
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + 0.6 * math.log(2))
    assert len(logits_of(Outputs(LOGITS, None, None))) == 1


def test_a_loss_has_a_name_that_outlives_the_process() -> None:
    assert name_of(TaskLoss(TASK, 0.1)) == "TaskLoss(task=Classification(2 classes), smoothing=0.1)"

    class Mine:
        def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return TaskLoss(TASK)(model, images, labels)

    assert name_of(Mine()) == name_of(Mine())
    assert "Mine object" in name_of(Mine())


def test_bfloat16_logits_are_summed_in_float32() -> None:
    loss, _ = TaskLoss(TASK)(Returns(LOGITS.bfloat16()), torch.zeros(2), LABELS)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 64)), r"shape \(2, 3\), shape \(2, 64\)"),
        ({"out": torch.zeros(2, 3)}, "dict"),
        (None, "nothing"),
        ((), "nothing"),
    ],
)
def test_other_outputs_are_refused(outputs: object, told: str) -> None:
    with pytest.raises(ModelError, match=f"{told}; wrap it"):
        logits_of(outputs)
