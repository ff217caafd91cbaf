"""From a compact model to a file that something else runs, checked against PyTorch."""

from clusterprune.exporters._base import Exported, Exporter, FromFile, Source
from clusterprune.exporters._registry import create, find, names
from clusterprune.exporters.int8 import Int8
from clusterprune.exporters.onnx_file import Onnx
from clusterprune.exporters.plain_torch import PlainTorch
from clusterprune.exporters.pt2 import Pt2
from clusterprune.exporters.writing import export

__all__ = [
    "Exported",
    "Exporter",
    "FromFile",
    "Int8",
    "Onnx",
    "PlainTorch",
    "Pt2",
    "Source",
    "create",
    "export",
    "find",
    "names",
]
