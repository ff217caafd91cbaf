"""Methods ask a task, and know nothing of boxes: all kinds of them cut and train a detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from squares import SIZE, Normed, squares, task
from torch import Tensor

from clusterprune import evaluate
from clusterprune.methods import Network, Work, find
from clusterprune.studies.comparison import Contender, compare
from clusterprune.tasks import Detection
from clusterprune.train import TrainConfig

TRAINING = TrainConfig(epochs=1, batch_size=8, lr=0.01, augment="none", device="cpu", precision="float32")
EPOCHS = 3
SHORT: dict[str, dict[str, Any]] = {"icp": {"steps": 2}, "acp": {"particles": 2, "cycles": 1}}
asked: list[str] = []


class Asked(Detection):
    """Notes that it is asked how far two detectors are apart."""

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        asked.append("score")
        return super().score(outputs, temperature, generator)


def network() -> Network:
    torch.manual_seed(0)
    return Network(Normed().eval(), torch.zeros(1, 3, SIZE, SIZE), Normed)


def few() -> Detection:
    made = task(2).on(squares(20), squares(8, 1))
    made.__class__ = Asked
    return made


@pytest.mark.parametrize("name", ["oneshot", "icp", "acp", "cp", "sfp", "slimming", "taylor"])
def test_every_kind_of_method_makes_a_detector_smaller(name: str) -> None:
    """Those that are one-shot at heart go by what the task says of outputs."""
    asked.clear()
    kind = find(name)
    settings = {"keep_macs": 0.6, **kind.within(EPOCHS), **SHORT.get(name, {})}
    settings |= {"preset": "ours"} if "ours" in kind.presets else {}
    made, aim = network(), few()
    method = kind.read(settings).looking_at(len(aim.train))
    small = method.run(made, aim, Work(training=TRAINING.changed(epochs=method.last_epochs(EPOCHS)))).model
    assert evaluate.macs(small, made.example) < 0.65 * evaluate.macs(made.model, made.example)
    assert evaluate.metrics(small, aim, aim.train).values["map50"] is not None
    assert bool(asked) == (name in ("oneshot", "icp", "acp"))


def test_a_comparison_looks_at_no_more_images_than_there_are(tmp_path: Path) -> None:
    """ICP, as ours, wants 1,024 samples."""
    aim, contenders = few(), [Contender.read("icp:steps=1")]
    training = TRAINING.changed(epochs=1)
    (entry,) = compare(network(), aim, aim.train, contenders, keep_macs=0.6, training=training, out=tmp_path)
    assert 0 <= entry.accuracy <= 100
