"""From a compact model to a file that something else runs, checked against PyTorch."""

from clusterprune.export._base import Exported, Exporter, Source
from clusterprune.export._registry import create, names
from clusterprune.export.int8 import Int8
from clusterprune.export.onnx_file import Onnx
from clusterprune.export.plain_torch import PlainTorch
from clusterprune.export.pt2 import Pt2
from clusterprune.export.writing import export

__all__ = ["Exported", "Exporter", "Int8", "Onnx", "PlainTorch", "Pt2", "Source", "create", "export", "names"]
