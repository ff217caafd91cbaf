# pyright: reportUnusedImport=false
"""What operators do to channels: a file per family, and the registry in which every one is found."""

from clusterprune.graph.ops import (  # noqa: F401 (they enter their operators)
    attention,
    conv,
    creation,
    linear,
    norm,
    parts,
    pooling,
    reduce,
    shape,
)
from clusterprune.graph.ops._base import (
    CallEdit,
    CostReader,
    CutReader,
    Extent,
    LayerShapes,
    Op,
    Term,
    layer_shapes,
    named_arguments,
    op_of,
    op_of_target,
    register_op,
    registered,
    shape_of,
    source_of,
)
from clusterprune.graph.ops.pointwise import by_channel

__all__ = [
    "CallEdit",
    "CostReader",
    "CutReader",
    "Extent",
    "LayerShapes",
    "Op",
    "Term",
    "by_channel",
    "layer_shapes",
    "named_arguments",
    "op_of",
    "op_of_target",
    "register_op",
    "registered",
    "shape_of",
    "source_of",
]
