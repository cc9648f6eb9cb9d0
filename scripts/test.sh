#!/usr/bin/env bash
# Runs the tests: CI's profile, or with --nightly all of them at full size. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
