"""The command line."""

from clusterprune.cli.app import app, main

__all__ = ["app", "main"]
