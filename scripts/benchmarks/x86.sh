#!/usr/bin/env bash
# Measures sepwise on this x86 machine beside other runtimes, and writes docs/benchmarks/x86_CPU.json, and from it a page and a plot.
#
#   scripts/benchmarks/x86.sh [options of x86.py]
#
# Best on a machine that does nothing else. What it makes is kept in build/x86.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
python=.venv/bin/python
say() { echo "x86: $*" >&2; }

[ -x "$python" ] || { say "there is no .venv; run scripts/setup.sh first"; exit 2; }
[ "$(uname -m)" = x86_64 ] || { say "this machine is no x86"; exit 2; }

# The runtimes that it is measured against, and what draws the plot; once for every state of the list.
stamp=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat .venv/peers.stamp 2>/dev/null)" != "$stamp" ]; then
    say "installing the extras peers and dev"
    mkdir -p build
    "$python" -m pip install --disable-pip-version-check --no-input -q -e '.[peers,dev]' >build/pip.log 2>&1 \
        || { say "pip could not install them; see build/pip.log"; exit 2; }
    echo "$stamp" >.venv/peers.stamp
fi
exec "$python" scripts/benchmarks/x86.py "$@"
