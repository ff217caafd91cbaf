"""What a model is worth and what it costs, measured on the model itself."""

from clusterprune.evaluate.accuracy import Accuracy, accuracy
from clusterprune.evaluate.cost import macs, params
from clusterprune.evaluate.latency import Latency, latency

__all__ = ["Accuracy", "Latency", "accuracy", "latency", "macs", "params"]
