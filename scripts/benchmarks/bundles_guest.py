"""Loads a network in one runtime and times its first and later inferences, in a process of its own; see bundles.py.

    python bundles_guest.py RUNTIME MODEL INPUT.npy OUTPUT.npy RUNS

Prints one JSON object. What passes before the runtime is imported is the interpreter's own, numpy's and the input's.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import numpy as np
from arm_guest import RUNTIMES


def main() -> None:
    """Loads, runs, and prints the times in microseconds."""
    name, model, source, target, runs = sys.argv[1:]
    x = np.load(source)
    stamps_ns = [time.monotonic_ns()]
    run, output, version = RUNTIMES[name](model, x)
    stamps_ns.append(time.monotonic_ns())
    for _ in range(1 + int(runs)):
        run()
        stamps_ns.append(time.monotonic_ns())
    np.save(target, output())
    load_us, first_us, *warm_us = [(end - begin) / 1e3 for begin, end in pairwise(stamps_ns)]
    print(json.dumps({"version": version, "load_us": load_us, "first_us": first_us, "warm_us": warm_us}))


if __name__ == "__main__":
    main()
