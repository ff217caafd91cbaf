"""Run the command line as ``python -m clusterprune``."""

from clusterprune.cli.app import main

main()
