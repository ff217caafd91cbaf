"""Network slimming (Liu et al. 2017, arXiv 1708.06519): push scales of batch norms to zero while training, then cut.

train with  loss + λ · Σ |γ|    over the batch norms of the channels that may be cut
drop the channels of least |γ|, over all layers together
train on without the penalty
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option
from clusterprune.methods._work import Network, Outcome, Work, score, trained_record
from clusterprune.methods.cuts import Keep, Layers, inner_layers
from clusterprune.methods.prune_by import prune_by
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig
from clusterprune.train.losses import Loss, TaskLoss, name_of

CUT_NAME = "plan_of_the_sparse"
SCORE_NAME = "score.json"


class SparseScales:
    """A loss with the absolute values of some parameters added.

    Parameters
    ----------
    loss
        What is minimised besides.
    names
        Of the parameters: the scales of batch norms.
    strength
        λ, what one of them costs.
    """

    reads_outputs_alone: ClassVar[bool] = True

    def __init__(self, loss: Loss, names: tuple[str, ...], strength: float) -> None:
        self.loss, self.names, self.strength = loss, names, strength

    def __call__(self, model: nn.Module, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Return the loss (scalar, float32) and the outputs."""
        loss, outputs = self.loss(model, images, targets)
        for name in self.names:
            loss = loss + self.strength * model.get_parameter(name).abs().sum()
        return loss, outputs

    def __repr__(self) -> str:
        """Name the parts."""
        return f"SparseScales({name_of(self.loss)}, {len(self.names)} norms, {self.strength})"


@dataclass(frozen=True)
class Slimming(Method):
    """Train with a penalty on the scales of batch norms, drop the channels of least scale, train on.

    Attributes
    ----------
    keep_macs
        Share of the multiply-adds to keep.
    keep_params
        Share of the parameters to keep.
    strength
        λ, what the absolute value of one scale adds to the loss. Published for CIFAR: 1e-4, of VGG, and 1e-5.
    sparse_epochs
        Epochs of the training with the penalty; None for as many as the training after the cut.
    layers
        "inner": the papers' choice (:func:`clusterprune.inner_groups`); "all" that may be cut have a batch norm of
        their own behind them in few networks.
    scratch
        Train from random weights, as published.
    """

    name: ClassVar[str] = "slimming"
    training: ClassVar[TrainConfig | None] = TrainConfig(
        epochs=160, lr=0.1, schedule="step", milestones=(0.5, 0.75), gamma=0.1, weight_decay=1e-4, batch_size=64
    )

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    keep_params: float | None = option(None, "SHARE", panel=BUDGET)
    strength: float = 1e-4
    sparse_epochs: int | None = None
    layers: Layers = "inner"
    scratch: bool = False

    def __post_init__(self) -> None:
        """Check the target and the numbers."""
        Keep(self.keep_macs, self.keep_params).check()
        if not 0 < self.strength < 1:
            raise ArgumentError(f"strength must be above 0 and below 1, but got strength={self.strength!r}")
        if self.sparse_epochs is not None and self.sparse_epochs < 1:
            raise ArgumentError(f"sparse_epochs must be at least 1, but got sparse_epochs={self.sparse_epochs!r}")

    @classmethod
    def within(cls, epochs: int) -> dict[str, Any]:
        """Return the settings of a comparison: half of the epochs before the cut."""
        return {"sparse_epochs": max(1, epochs // 2)}

    def last_epochs(self, epochs: int) -> int:
        """Return how many epochs are left after the cut."""
        last = epochs - (self.sparse_epochs or 0)
        if last < 1:
            raise ArgumentError(
                f"epochs={epochs} are too few for {self.name} with sparse_epochs={self.sparse_epochs}; give more"
            )
        return last

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Train sparsely, cut, train on."""
        model = network.copy(work.seed if self.scratch else None)
        training = work.needed()
        # The smoothing is the penalised loss's own.
        sparse = training.changed(epochs=self.sparse_epochs or training.epochs, label_smoothing=0.0)
        trained = replace(network, model=model)
        loss = SparseScales(TaskLoss(task, training.label_smoothing), self._scales(trained.graph()), self.strength)
        replace(work, training=sparse).fit(model, task, "train with a penalty on scales", folder="sparse", loss=loss)
        trained = replace(network, model=model.eval())
        graph = self._layers(trained.graph())
        keep = {"keep_macs": self.keep_macs} if self.keep_macs is not None else {"keep_params": self.keep_params}
        plan = work.plan(lambda: prune_by(graph, "bn_scale", scope="global", **keep), CUT_NAME)  # type: ignore[arg-type]
        small, cut = (apply(model, plan, graph=graph).eval() for _ in range(2))
        record = work.once(SCORE_NAME, lambda: {"accuracy_cut": score(task, cut)})
        result = work.fit(small, task, "training after the cut")
        # The plan is of the network after its training with the penalty, which nobody else has.
        return Outcome(small.eval(), cut, None, record | trained_record(result))

    def _layers(self, graph: ChannelGraph) -> ChannelGraph:
        return inner_layers(graph) if self.layers == "inner" else graph

    def _scales(self, graph: ChannelGraph) -> tuple[str, ...]:
        """Return the scales of the batch norms of all channels that may be cut."""
        scales = {norm.weight for norm in graph.batch_norms}
        found: list[str] = []
        for group in self._layers(graph).prunable:
            own = [use.path for use in group.carriers if use.path in scales]
            if not own:
                raise ArgumentError(
                    f"method='slimming' needs a batch norm behind every layer that is cut, but {group.name} has none; "
                    "take another method, or layers='inner'"
                )
            found += own
        return tuple(dict.fromkeys(found))
