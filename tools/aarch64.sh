#!/usr/bin/env bash
# Linux on ARM, on another machine: compilers for it, and a Python of it that an emulator executes.
#
#   tools/aarch64.sh FOLDER compilers   FOLDER/bin/g++ and FOLDER/bin/clang++ compile for ARM
#   tools/aarch64.sh FOLDER python      FOLDER/bin/python is an ARM Python with torch 2.10, NumPy, SciPy and pytest
#
# For Debian and Ubuntu. Their packages are unpacked into FOLDER; nothing is installed and no rights are needed. torch
# 2.10 is the oldest whose stable ABI the kernels use, and the wheel of it that the package index has for ARM is a build
# for the CPU; later ones are for CUDA and do not import without its libraries.
set -euo pipefail
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
target=aarch64-linux-gnu
host="$folder/host" root="$folder/root" site="$folder/site" bin="$folder/bin"
libraries="$host/usr/lib/$(gcc -print-multiarch)"

# unpack INTO PACKAGE... [-- OPTION...]: packages and what they depend on, as far as apt does not take it for installed.
unpack() {
    local into="$1" cache="$1.apt" packages=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do packages+=("$1"); shift; done
    mkdir -p "$into" "$cache/archives/partial" "$cache/state/lists/partial"
    local options=(-qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::Cache="$cache" -o Dir::State="$cache/state"
        -o Dir::State::lists="$cache/state/lists" -o Dir::State::status=/var/lib/dpkg/status "${@:2}")
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install --yes --download-only --no-install-recommends "${packages[@]}" >&2
    for package in "$cache"/archives/*.deb; do dpkg -x "$package" "$into"; done
    rm -r "$cache"
}

# program NAME COMMAND...: an executable that runs COMMAND with the arguments that it gets.
program() {
    mkdir -p "$bin"
    printf '#!/bin/sh\nexec %s "$@"\n' "${*:2}" >"$bin/$1"
    chmod +x "$bin/$1"
}

tools() {
    [ -e "$host/.done" ] && return
    unpack "$host" g++-$target clang qemu-user-static
    # Linker scripts name their libraries by the places where the packages would have been installed.
    grep -lIs "GNU ld script" "$host/usr/$target/lib/"*.so | xargs sed -i "s#/usr/$target/lib/##g"
    touch "$host/.done"
}

compilers() {
    tools
    local run="env LD_LIBRARY_PATH=$libraries PATH=$host/usr/bin:\$PATH"
    program g++ "$run" "$host/usr/bin/$target-g++"
    program clang++ "$run" "$(readlink -f "$host"/usr/lib/llvm-*/bin/clang)" --driver-mode=g++ --target=$target \
        --gcc-toolchain="$host/usr"
}

python() {
    tools
    if [ ! -e "$root/.done" ]; then
        touch "$folder/nothing-installed"
        unpack "$root" python3 libstdc++6 libgomp1 -- -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
            -o Dir::State::status="$folder/nothing-installed"
        touch "$root/.done"
    fi
    local interpreter version
    interpreter="$(readlink -f "$root/usr/bin/python3")"
    version="${interpreter##*/python}"
    if [ ! -e "$site/.done" ]; then
        local pip=("${PIP_PYTHON:-python3}" -m pip --disable-pip-version-check install --quiet --no-deps --target "$site"
            --upgrade --only-binary ":all:" --python-version "$version" --platform manylinux_2_28_aarch64
            --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)
        "${pip[@]}" torch==2.10.0
        "${pip[@]}" -c requirements/constraints.txt numpy scipy filelock fsspec Jinja2 MarkupSafe mpmath networkx sympy \
            typing_extensions setuptools pytest iniconfig packaging pluggy Pygments hypothesis sortedcontainers
        touch "$site/.done"
    fi
    program python "$host/usr/bin/qemu-aarch64-static" -L "$root" -E "PYTHONPATH=\$PYTHONPATH:$site" "$interpreter"
}

"$2"
