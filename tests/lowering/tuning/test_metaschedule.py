"""Lines that MetaSchedule reads: its own database loads them, and the trace replays to what was chosen."""

import json
from pathlib import Path

import pytest
import tvm
from tvm import s_tir
from tvm.s_tir.meta_schedule.database import JSONDatabase

from sepwise.lowering import device
from sepwise.lowering.selection import spell_cut, structure_key
from sepwise.lowering.tuning.database import RECORDS, Database, Evidence, find_conditions
from sepwise.lowering.tuning.intervals import Interval, Times
from sepwise.lowering.tuning.metaschedule import plain_function, spell_record
from sepwise.lowering.tuning.space import list_candidates
from sepwise.lowering.workload import ConvWorkload, LinearWorkload, Stage

A72 = device.get("cortex-a72")
TIMES = Times(3000.0, 2900.0, 3300.0, 3200.0, 8)
POINTWISE = Stage(8, 12, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))
DEPTHWISE = Stage(8, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
WORKLOADS = {
    "pointwise": ConvWorkload(1, (7, 7), (POINTWISE,), False, None, 4, 4),
    "chain": ConvWorkload(1, (7, 7), (DEPTHWISE, POINTWISE), False, None, 4, 4),
    "residual": ConvWorkload(1, (7, 7), (DEPTHWISE,), True, None, 4, 4),
    "plain": ConvWorkload(1, (9, 9), (DEPTHWISE,), False, None, 0, 0),
    "grouped": ConvWorkload(1, (7, 7), (Stage(8, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),), False, None, 4, 4),
    "linear": LinearWorkload(3, 16, 10),
}


@pytest.mark.parametrize(("method", "place"), [("measured", "native"), ("measured", "remote"), ("estimated", "emulated")])
def test_metaschedule_loads_the_database(tmp_path: Path, method: str, place: str) -> None:
    own = Database(tmp_path, A72)
    own.create()
    conditions = find_conditions(A72, 1, method)
    for workload in WORKLOADS.values():
        for candidate in list_candidates(workload, A72, 1)[:2]:
            evidence = Evidence(candidate.pick, -1, TIMES, Interval(0.9, 0.9, 0.9), 0.1, place, None)
            lines = spell_record(workload, candidate.pick, 3000.0, A72, method, place)
            own.add_record(conditions, workload.key, lines, evidence)
    loaded = JSONDatabase(work_dir=str(own.folder), allow_missing=False)
    assert len(loaded) == 2 * len(WORKLOADS)
    for workload in WORKLOADS.values():
        module = tvm.IRModule({"main": plain_function(workload)})
        assert loaded.has_workload(module)
        records = loaded.get_top_k(loaded.commit_workload(module), 5)
        assert len(records) == 2
        seconds = 3e-3 if method == "measured" else 3000 / A72.clock_hz
        assert float(records[0].run_secs[0]) == pytest.approx(seconds)
        schedule = s_tir.Schedule(module)
        records[0].trace.apply_to_schedule(schedule, remove_postproc=False)
        said = schedule.get(schedule.get_sblock("root")).annotations
        assert (str(said["sepwise.method"]), str(said["sepwise.runner"])) == (method, place)
        assert str(said["sepwise.strategy"]) in {each.strategy.name for each in list_candidates(workload, A72, 1)}


def test_the_trace_says_which_candidate(tmp_path: Path) -> None:
    own = Database(tmp_path, A72)
    own.create()
    conditions = find_conditions(A72, 1, "measured")
    workload = WORKLOADS["chain"]
    candidates = list_candidates(workload, A72, 1)[:3]
    for candidate in candidates:
        evidence = Evidence(candidate.pick, -1, TIMES, Interval(1.0, 1.0, 1.0), 0.1, "remote", None)
        lines = spell_record(workload, candidate.pick, 1.0, A72, "measured", "remote")
        own.add_record(conditions, workload.key, lines, evidence)
    assert len((own.folder / RECORDS).read_text().splitlines()) == 3
    found = own.read(conditions).records[workload.key]
    assert list(found) == [candidate.pick for candidate in candidates]
    for line in (own.folder / RECORDS).read_text().splitlines():
        assert json.loads(line)[0] == 0


def test_the_record_of_a_chain_says_its_structure(tmp_path: Path) -> None:
    own = Database(tmp_path, A72)
    own.create()
    conditions = find_conditions(A72, 1, "measured")
    expand = Stage(12, 8, 1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1))
    chains = [WORKLOADS["chain"], ConvWorkload(1, (7, 7), (expand, DEPTHWISE, POINTWISE), True, None, 4, 4)]
    for workload, cut in zip(chains, [(1, 1), (1, 2)], strict=True):
        pick = spell_cut(cut)
        evidence = Evidence(pick, -1, TIMES, Interval(0.9, 0.9, 0.9), 0.1, "native", None)
        own.add_record(conditions, structure_key(workload), spell_record(workload, pick, 3e3, A72, "measured", "native"), evidence)
    found = own.read(conditions).records
    assert [list(found[structure_key(workload)]) for workload in chains] == [[spell_cut((1, 1))], [spell_cut((1, 2))]]
    loaded = JSONDatabase(work_dir=str(own.folder), allow_missing=False)
    assert len(loaded) == 2
    module = tvm.IRModule({"main": plain_function(chains[1])})
    (record,) = loaded.get_top_k(loaded.commit_workload(module), 5)
    schedule = s_tir.Schedule(module)
    record.trace.apply_to_schedule(schedule, remove_postproc=False)
    said = schedule.get(schedule.get_sblock("root")).annotations
    assert str(said["sepwise.strategy"]) == "structure"
    assert (int(said["sepwise.tile.kernel0"]), int(said["sepwise.tile.kernel1"])) == (1, 2)
