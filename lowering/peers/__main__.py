"""The process of a worker: `python -m sepwise.lowering.peers CPU ...`."""

import sys

from sepwise.lowering.peers.worker import serve

if __name__ == "__main__":
    serve({int(cpu) for cpu in sys.argv[1:]})
