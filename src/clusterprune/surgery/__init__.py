"""Applying a plan to a model, checking that it still computes the same, and compact models on disk."""

from clusterprune.surgery.apply import apply
from clusterprune.surgery.compact import load, save

__all__ = ["apply", "load", "save"]
