"""What a model is worth and what it costs, measured on the model itself."""

from clusterprune.evaluate.accuracy import Accuracy, accuracy
from clusterprune.evaluate.cost import macs, params
from clusterprune.evaluate.latency import Latency, latency
from clusterprune.evaluate.metrics import Metrics, metrics

__all__ = ["Accuracy", "Latency", "Metrics", "accuracy", "latency", "macs", "metrics", "params"]
