"""The runtimes that a benchmark compares: a file and a line in `table.py` each, each alone in a process of its own (`worker.py`).

All compute in float32 on the threads that they are given, in their best form: their own optimiser on, the faster of the
original and the simplified file where they take both, inputs in place before a run.
"""

from sepwise.lowering.peers.base import Job, Runtime
from sepwise.lowering.peers.table import OURS, PEERS, missing_packages, names
from sepwise.lowering.peers.worker import Worker
from sepwise.lowering.peers.yardsticks import YARDSTICKS

__all__ = ["OURS", "PEERS", "YARDSTICKS", "Job", "Runtime", "Worker", "missing_packages", "names"]
