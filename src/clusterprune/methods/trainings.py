"""How long and how fast each method trains where nobody says otherwise: as published on CIFAR."""

from typing import Any

from clusterprune.errors import ArgumentError
from clusterprune.methods.icp import TRAINING as ICP_TRAINING
from clusterprune.methods.settings import METHODS
from clusterprune.train import TrainConfig

FINE_TUNING = TrainConfig(epochs=10, lr=0.01, schedule="cosine", weight_decay=5e-4, batch_size=128)
"""Of methods that cut once, and of every contender of a comparison."""
CP_TRAINING = TrainConfig(epochs=200, lr=0.1, schedule="step", milestones=(0.3, 0.6, 0.8), gamma=0.2)
"""Section 4.1 of the CP paper: Nesterov momentum 0.9, a fifth of the rate from epochs 60, 120 and 160 on."""
SFP_TRAINING = CP_TRAINING.model_copy(update={"lr": 0.01})
"""As CP's, both after Zagoruyko & Komodakis 2016; a trained network begins at a tenth of the rate (He et al. 2018)."""


def training_for(method: str, **changes: Any) -> TrainConfig | None:
    """Return the training that belongs to a method, for :func:`clusterprune.methods.pipeline.compress`.

    ICP, ACP, CP and SFP train as published on CIFAR: 200, 160, 200 and 200 epochs. Methods that cut once do not train
    unless `epochs` is given; then they fine-tune
    (:data:`FINE_TUNING`).

    Parameters
    ----------
    method
        One of :data:`clusterprune.methods.settings.METHODS`.
    **changes
        Fields of :class:`clusterprune.train.TrainConfig` to have otherwise. None leaves a field as it is.

    Raises
    ------
    ArgumentError
        If there is no such method or field, a field does not accept its value, or there is something to change about
        a training that does not take place.

    Examples
    --------
    >>> training_for("acp", lr=0.05).epochs
    160
    >>> training_for("oneshot") is None
    True
    """
    if method not in METHODS:
        raise ArgumentError(f"method={method!r} is not known; choose from {', '.join(METHODS)}")
    changes = {name: value for name, value in changes.items() if value is not None}
    base = _published(method)
    if base is None:
        if changes and "epochs" not in changes:
            name, value = next(iter(changes.items()))
            raise ArgumentError(
                f"{name}={value!r} is of a training, but method={method!r} does not train by itself; give epochs too"
            )
        if not changes:
            return None
        base = FINE_TUNING
    return TrainConfig(**{**base.model_dump(), **changes})


def _published(method: str) -> TrainConfig | None:
    if method == "acp":
        from clusterprune.methods.acp import RETRAINING  # Optuna takes a while to import

        return RETRAINING
    return {"icp": ICP_TRAINING, "cp": CP_TRAINING, "sfp": SFP_TRAINING}.get(method)
