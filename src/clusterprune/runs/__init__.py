"""Run folders: what was asked, what it took and what came of it."""

from clusterprune.runs.details import HitsByClass, details
from clusterprune.runs.environment import environment, pick_device
from clusterprune.runs.folder import (
    COMPACT_NAME,
    CONFIG_NAME,
    DETAILS_NAME,
    LOG_NAME,
    PLAN_NAME,
    RESULT_NAME,
    WEIGHTS_NAME,
    check_out,
    numbered,
    read_config,
    read_log,
    read_result,
    remove_folder,
    write_config,
    write_details,
    write_log,
    write_result,
    write_weights,
)
from clusterprune.runs.measurement import Measurement, measure, time_in_turns
from clusterprune.runs.sheet import SHEET_NAME, write_sheet
from clusterprune.runs.timeline import Progress, Timeline

__all__ = [
    "COMPACT_NAME",
    "CONFIG_NAME",
    "DETAILS_NAME",
    "LOG_NAME",
    "PLAN_NAME",
    "RESULT_NAME",
    "SHEET_NAME",
    "WEIGHTS_NAME",
    "HitsByClass",
    "Measurement",
    "Progress",
    "Timeline",
    "check_out",
    "details",
    "environment",
    "measure",
    "numbered",
    "pick_device",
    "read_config",
    "read_log",
    "read_result",
    "remove_folder",
    "time_in_turns",
    "write_config",
    "write_details",
    "write_log",
    "write_result",
    "write_sheet",
    "write_weights",
]
