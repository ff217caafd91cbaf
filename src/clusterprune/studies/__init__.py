"""Comparisons of methods, and recipes: the rows of the papers' tables, each as a file, and what runs them."""

from clusterprune.studies.recipe import Figures, Published, Recipe, ablations, names, read
from clusterprune.studies.reproduction import Reproduction, reproduce

__all__ = ["Figures", "Published", "Recipe", "Reproduction", "ablations", "names", "read", "reproduce"]
