"""Images and labels: where they come from, and how they reach a model.

:func:`load` opens a data set by name, :func:`unlabelled` any folder of images. Pixels stay
``uint8`` until :func:`normalize` turns a batch into what a model reads.
"""

from clusterprune.data.boxes import AnnotationWarning, Boxes
from clusterprune.data.dataset import Dataset
from clusterprune.data.normalize import normalize
from clusterprune.data.registry import load, sources, unlabelled
from clusterprune.data.sampling import holdout, sample
from clusterprune.data.split import CorruptImageWarning, Split
from clusterprune.data.tree import EmptyClassWarning

__all__ = [
    "AnnotationWarning",
    "Boxes",
    "CorruptImageWarning",
    "Dataset",
    "EmptyClassWarning",
    "Split",
    "holdout",
    "load",
    "normalize",
    "sample",
    "sources",
    "unlabelled",
]
