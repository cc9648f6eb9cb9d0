"""Lines of MetaSchedule's database: a workload as its plain PrimFunc, a record as the trace of what was chosen for it.

The PrimFunc is the compute without a tile: whole domain, one block of weights after the other. The trace annotates it with the
strategy, the sizes of its tile, how times came about and where. So it replays on the PrimFunc, and says all that `schedule`
needs.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import tvm
from tvm import s_tir
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from sepwise.lowering import compute
from sepwise.lowering.codegen import tvm_target
from sepwise.lowering.tuning.database import ANNOTATION
from sepwise.lowering.workload import ConvWorkload

if TYPE_CHECKING:
    from tvm import tirx

    from sepwise.lowering.device import Device
    from sepwise.lowering.selection import Pick
    from sepwise.lowering.tuning.timing import Method, Place
    from sepwise.lowering.workload import LinearWorkload

__all__ = ["plain_function", "spell_record"]

UNKNOWN_CLOCK_HZ = 1e9
"""By what estimated cycles become MetaSchedule's seconds where the clock is not known; the evidence has the cycles."""


def plain_function(workload: ConvWorkload | LinearWorkload) -> tirx.PrimFunc:
    """Builds the compute of a workload without a tile.

    Args:
        workload: What to compute.

    Returns:
        The PrimFunc: inputs, weight and bias of each stage, output.
    """
    if not isinstance(workload, ConvWorkload):
        return compute.linear(workload, workload.rows, workload.out_features).function
    if not workload.output_lanes:
        return compute.plain_depthwise(workload, workload.spatials[-1]).function
    blocks = math.ceil(workload.stages[-1].out_channels / workload.output_lanes)
    return compute.conv(workload, workload.spatials[-1], blocks, (1,) * len(workload.stages)).function


def spell_record(
    workload: ConvWorkload | LinearWorkload, pick: Pick, median: float, device: Device, method: Method, place: Place
) -> tuple[str, list[object]]:
    """Writes a record as MetaSchedule does.

    Args:
        workload: What was computed.
        pick: With what.
        median: Its time, in microseconds, or in cycles where it was estimated.
        device: Where.
        method: How the time came about.
        place: Where it ran.

    Returns:
        The line of the workload, and what is behind the workload's index in the line of the record.
    """
    function = plain_function(workload)
    schedule = s_tir.Schedule(function)
    root = schedule.get_sblock("root")
    said = (("strategy", pick.strategy), ("method", method), ("runner", place))
    for key, value in (*said, *((f"tile.{name}", size) for name, size in pick.sizes)):
        schedule.annotate(root, f"{ANNOTATION}{key}", value)
    seconds = median / 1e6 if method == "measured" else median / (device.clock_hz or UNKNOWN_CLOCK_HZ)
    found = Workload(tvm.IRModule({"main": function}))
    record = TuningRecord(schedule.trace, found, [seconds], tvm_target(device), ArgInfo.from_prim_func(function))
    return json.dumps(found.as_json(), separators=(",", ":")), record.as_json()
