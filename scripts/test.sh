#!/usr/bin/env bash
# Runs the tests on all cores: CI's profile, or with --nightly all of them at full size. Other arguments go to pytest; -n 0 takes
# one process. A file's tests stay in one process, as they share what they build.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
