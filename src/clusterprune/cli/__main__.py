"""Run the command line as ``python -m clusterprune.cli``."""

from clusterprune.cli.app import main

main()
