"""Recipes: the rows of the papers' tables, each as a file, and what runs them."""

from clusterprune.recipes.recipe import Figures, Published, Recipe, names, read
from clusterprune.recipes.reproduction import Reproduction, reproduce

__all__ = ["Figures", "Published", "Recipe", "Reproduction", "names", "read", "reproduce"]
