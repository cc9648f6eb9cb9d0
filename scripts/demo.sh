#!/usr/bin/env bash
# Shows the whole way on real networks: a trained text-direction classifier and MobileNetV2, on this machine and
# on an emulated Cortex-A72. Ends with status 0 only if every answer and every check is right.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh
exec .venv/bin/python scripts/demo.py "$@"
