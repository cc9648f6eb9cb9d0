#!/usr/bin/env bash
# Counts what other runtimes execute on an emulated ARM core, beside sepwise, and writes docs/benchmarks/arm.json and .md.
#
#   scripts/benchmarks/arm.sh [options of arm.py]
#   scripts/benchmarks/arm.sh --published            estimates beside published times, for docs/benchmarks/estimate.md
#
# Needs qemu-user and apt-get (nothing is installed into the system). Everything is kept in build/arm: a sysroot of
# arm64 with Python and the runtimes' wheels, and an environment with their converters (3 GB, most of it TensorFlow).
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
folder=build/arm
python=.venv/bin/python
say() { echo "arm: $*" >&2; }

[ -x "$python" ] || { say "there is no .venv; run scripts/setup.sh first"; exit 2; }
command -v qemu-aarch64 >/dev/null || { say "qemu-aarch64 is missing; install it with: sudo apt-get install qemu-user"; exit 2; }
command -v apt-get >/dev/null || { say "apt-get is missing; the arm64 sysroot is made of Debian packages"; exit 2; }

# A sysroot of arm64: Debian's Python, whatever version this distribution has, and the C++ runtime.
make_sysroot() {
    local apt=$folder/apt sources=/etc/apt/sources.list.d/debian.sources
    [ -f "$sources" ] || sources=/etc/apt/sources.list
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/preferences.d} "$folder/sysroot"
    : >"$apt/status"
    local options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State=$PWD/$apt/state"
        -o "Dir::State::status=$PWD/$apt/status" -o "Dir::Cache=$PWD/$apt/cache" -o "Dir::Etc::sourcelist=$sources"
        -o Dir::Etc::sourceparts=- -o Debug::NoLocking=1)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" --download-only --yes --no-install-recommends install \
        python3-minimal libpython3-stdlib libstdc++6 libgomp1 libgcc-s1
    for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$folder/sysroot"; done
}

# The runtimes, as their projects build them for arm64 and the Python of the sysroot.
install_runtimes() {
    local version
    version=$(basename "$(readlink "$folder/sysroot/usr/bin/python3")")
    local platforms=()
    for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
    "$python" -m pip --quiet download --no-deps --only-binary=:all: --implementation cp --python-version "${version#python}" \
        "${platforms[@]}" --platform manylinux2014_aarch64 --dest "$folder/wheels" \
        numpy ncnn MNN ai-edge-litert onnxruntime flatbuffers packaging protobuf 2>"$folder/pip.log"
    for wheel in "$folder"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$folder/sysroot/usr/lib/python3/dist-packages"
    done
}

# What turns ONNX into each runtime's own format.
install_converters() {
    "$python" -m venv "$folder/converters"
    "$folder/converters/bin/pip" --quiet install torch==2.13.0 pnnx MNN onnx2tf tensorflow-cpu 2>"$folder/pip.log"
}

step() { # once each, all over again where it was interrupted
    [ -f "$folder/$1.done" ] || { say "$1"; "$1"; touch "$folder/$1.done"; }
}

mkdir -p "$folder"
step make_sysroot
step install_runtimes
step install_converters
exec "$python" scripts/benchmarks/arm.py --folder "$folder" "$@"
