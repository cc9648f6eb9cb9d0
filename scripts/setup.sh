#!/usr/bin/env bash
# Makes .venv with sepwise and everything it needs; returns at once when nothing changed.
#
#   SEPWISE_PYTHON=/path/to/python3   the Python to build .venv on (3.11 or newer)
#   SEPWISE_NO_APT=1                  install no Debian packages, only say which are missing
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 2; }

# The first word runs as root where this user may: root itself, or sudo that asks for no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1
    fi
}

# Installs Debian packages, or returns 1; says nothing of where they come from.
apt_install() {
    [ -z "${SEPWISE_NO_APT:-}" ] && command -v apt-get >/dev/null && as_root true || return 1
    say "installing the Debian packages: $*"
    local log=build/apt.log
    install_packages() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1; }
    : >"$log"
    install_packages "$@" || { as_root apt-get update >>"$log" 2>&1 && install_packages "$@"; }
}

# What Debian has and PyPI has not: command or file, package, what is left out without it.
present() { command -v "$1" >/dev/null || [ -f "$1" ]; }
debian_packages() {
    local missing=()
    while IFS='|' read -r command package purpose; do
        present "$command" || missing+=("$command|$package|$purpose")
    done <<'END'
qemu-aarch64|qemu-user|running whole networks on emulated targets such as cortex-a72
/usr/aarch64-linux-gnu/lib/libstdc++.so.6|libstdc++6-arm64-cross|testing an emulated board
END
    [ "${#missing[@]}" -gt 0 ] || return 0
    local packages=()
    for row in "${missing[@]}"; do IFS='|' read -r _ package _ <<<"$row"; packages+=("$package"); done
    apt_install "${packages[@]}" || true
    for row in "${missing[@]}"; do
        IFS='|' read -r command package purpose <<<"$row"
        present "$command" \
            || say "left out: $purpose. It needs $command; install it with: sudo apt-get install $package"
    done
}

find_python() {
    local candidate
    for candidate in ${SEPWISE_PYTHON:+"$SEPWISE_PYTHON"} python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# Runs pip quietly. A failure shows pip's last lines without the addresses of the package index.
pip_install() {
    local log=build/pip.log
    if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input -q "$@" >"$log" 2>&1; then
        tail -n 15 "$log" | sed -E 's#[a-z+]+://[^ ,)]*#<index>#g; s#host=[^ ,)]*#host=<index>#g' >&2
        fail "pip could not install: $*. Check the network and the disk, then run scripts/setup.sh again."
    fi
}

mkdir -p build
exec 9>build/setup.lock
if command -v flock >/dev/null; then flock 9; fi

debian_packages

stamp=$( (cat pyproject.toml setup.py scripts/setup.sh; pwd; echo "${SEPWISE_PYTHON:-}") | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/sepwise ] && [ "$(cat .venv/sepwise.stamp 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
rm -f .venv/sepwise.stamp

# A .venv is kept, with its downloads, if its Python still runs and stands in this folder.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! grep -qsF "$(pwd)/.venv" .venv/bin/activate; then
    python=$(find_python) || fail "no Python 3.11 or newer found. Install it with: sudo apt-get install python3 python3-venv"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
        apt_install "python$version-venv" || apt_install python3-venv || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null \
            || fail "$python has no venv module. Install it with: sudo apt-get install python$version-venv"
    fi
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
fi

# torch first and pinned, so that an index that has its CPU build under that version gives it; a venv that already has it is left alone.
torch=$(grep -oE 'torch==[0-9.]+' pyproject.toml | head -n 1)
say "installing $torch"
pip_install "$torch"
say "installing sepwise with the extras export and dev"
pip_install -e '.[export,dev]'
echo "$stamp" >.venv/sepwise.stamp
say "done"
