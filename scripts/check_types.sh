#!/usr/bin/env bash
# Type-checks every package with mypy --strict.
#
# mypy cannot follow the editable install's import hook, so it is given the folder build/types in which
# links spell the same mapping as setup.py: sepwise, sepwise/models, sepwise/passes, sepwise/lowering.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
root=$(pwd)
rm -rf build/types
mkdir -p build/types/sepwise
for entry in scripts/sepwise/*; do ln -s "$root/$entry" "build/types/$(basename "$(dirname "$entry")")/"; done
for package in models passes lowering; do ln -s "$root/$package" build/types/sepwise/; done
exec "${PYTHON:-.venv/bin/python}" -m mypy "$@" build/types/sepwise scripts/demo.py scripts/benchmarks/*.py
