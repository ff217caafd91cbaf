"""Run a Python program, named with its arguments on the command line, in which the second device is known."""

import runpy
import sys
from pathlib import Path

import second_device

second_device.register()
arguments = sys.argv[1:]
if arguments[0] == "-m":
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")
