"""Verifies many small networks on a target, in a process of its own: `verify_batches.py TARGET FOLDER`.

Networks are merged into batches, as disjoint parts of one model: one build, one link and one run of the emulator serve them
all. Every kernel is checked, and each part's outputs by themselves, as `verify_model` checks those of a whole model. Where a
batch cannot be built, its networks are verified one by one.

FOLDER holds `0.onnx`, `1.onnx` and so on, each graph named after the kind of inputs that it is fed. Writes `TARGET.json` there: by
number what is wrong with a network, and how many kernels were run.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded

import onnx
import onnx_ir as ir

from sepwise.lowering import device
from sepwise.lowering.build import build_program
from sepwise.lowering.runner import open_runner
from sepwise.lowering.strategies import transformed_nodes
from sepwise.lowering.verify import GROUPING, KernelChecker, transformed_values, verify_model
from sepwise.passes import canonicalize, fuse
from sepwise.passes.equivalence import Oracle, compare_execution, execution_sigma, sample_inputs

BATCH = 20
"""Networks in a Program: more make assigning layouts dearer, fewer the link and the start of the emulator."""

NAMED = ("input", "output", "initializer", "value_info")


def merge(parts: Mapping[int, onnx.ModelProto]) -> onnx.ModelProto:
    """Networks side by side, the names of each behind its number: `3/conv5`."""
    merged = onnx.ModelProto()
    merged.CopyFrom(next(iter(parts.values())))
    merged.graph.Clear()
    merged.graph.name = "batch"
    for number, part in parts.items():
        copy = onnx.GraphProto()
        copy.CopyFrom(part.graph)
        for node in copy.node:
            node.name = f"{number}/{node.name}"
            for names in (node.input, node.output):
                names[:] = [f"{number}/{name}" if name else "" for name in names]
        for field in NAMED:
            for value in getattr(copy, field):
                value.name = f"{number}/{value.name}"
            getattr(merged.graph, field).extend(getattr(copy, field))
        merged.graph.node.extend(copy.node)
    return merged


def own(found: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What belongs to one part, under its own names."""
    return {name.partition("/")[2]: each for name, each in found.items() if name.startswith(f"{number}/")}


def verify_batch(parts: Mapping[int, onnx.ModelProto], target: device.Device) -> tuple[dict[int, list[str]], int]:
    """What is wrong with each network, and the number of kernels."""
    models = {number: ir.from_proto(part) for number, part in parts.items()}
    feeds = {number: sample_inputs(model, 0, model.graph.name or "") for number, model in models.items()}
    feed = {f"{number}/{name}": array for number, arrays in feeds.items() for name, array in arrays.items()}
    merged = ir.from_proto(merge(parts))
    program, _ = build_program(merged, target)
    ungrouped = [stage for name, stage in fuse(merged, keep_stages=True).stages if name != GROUPING][-1]
    wrong: dict[int, list[str]] = {}
    with open_runner(program) as runner:
        checker = KernelChecker(program, runner, ungrouped, feed)
        for index, call in enumerate(program.calls):
            number = int(call.outputs[0].partition("/")[0])
            for check in checker.check(index):
                if not check.passed:
                    wrong.setdefault(number, []).append(f"kernel {check.name} ({check.strategy}): {check.reason}")
        outputs = runner.run(feed)
    winograd = transformed_values(transformed_nodes(program.calls), canonicalize(merged))
    for number, model in models.items():
        oracle = Oracle(model)
        sigma = execution_sigma(oracle, feeds[number], winograd=own(winograd, number))
        check = compare_execution(own(outputs, number), oracle.run(feeds[number]), sigma)
        if not check.passed:
            wrong.setdefault(number, []).append(f"model: {check.reason}")
    return wrong, len(program.calls)


def verify_alone(model: ir.Model, target: device.Device) -> list[str]:
    """What `verify_model` finds wrong with one network."""
    try:
        checks = verify_model(model, target, inputs=sample_inputs(model, 0, model.graph.name or "")).checks
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return [f"{check.scope} {check.name}: {check.reason}" for check in checks if not check.passed]


def verify_all(parts: Sequence[onnx.ModelProto], target: device.Device) -> tuple[dict[int, list[str]], int]:
    """Merges those of one operator set, a batch at a time."""
    wrong: dict[int, list[str]] = {}
    kernels = 0
    versions = {number: part.opset_import[0].version for number, part in enumerate(parts)}
    for _, same in itertools.groupby(sorted(versions, key=versions.__getitem__), versions.__getitem__):
        alike = list(same)
        for numbers in (alike[start : start + BATCH] for start in range(0, len(alike), BATCH)):
            batch = {number: parts[number] for number in numbers}
            try:
                found, count = verify_batch(batch, target)
            except Exception as error:  # whatever it is, the other batches are verified
                alone = {number: verify_alone(ir.from_proto(part), target) for number, part in batch.items()}
                found = {number: reasons for number, reasons in alone.items() if reasons}
                count = 0
                if not found:
                    found = {number: [f"only together with {numbers}: {type(error).__name__}: {error}"] for number in numbers}
            wrong |= found
            kernels += count
    return wrong, kernels


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    files = sorted(folder.glob("*.onnx"), key=lambda path: int(path.stem))
    found, kernels = verify_all([onnx.load(file) for file in files], device.get(name))
    (folder / f"{name}.json").write_text(json.dumps({"wrong": found, "kernels": kernels}))
