#!/usr/bin/env bash
# Proves and measures the CUDA code on a machine with a GPU, in stages that each fit in ten minutes:
#
#   benchmarks/gpu.sh build          build the extension for the chip that is there
#   benchmarks/gpu.sh ceilings       rates of a copy and of a matrix product
#   benchmarks/gpu.sh bits           noise equal to the CPU's; repeats and batch splits without a different bit
#   benchmarks/gpu.sh tests          every test that runs on CUDA, selfcheck, generate
#   benchmarks/gpu.sh images         sampling end to end against the reference sampler
#   benchmarks/gpu.sh sanitize       compute-sanitizer on small shapes and, memcheck, on a network at full size, after a
#                                    planted bug that it must report
#   benchmarks/gpu.sh ops            single ops against a copy of as many bytes
#   benchmarks/gpu.sh networks ddpmpp [ncsnpp, adm, adm:64]     a forward against eager PyTorch and torch.compile
#   benchmarks/gpu.sh split          few images: convolutions by split sums over cuDNN's, in networks and by themselves
#   benchmarks/gpu.sh diagnose ddpmpp:64       networks again, for a fault on the device: its core goes to build/gpu, where
#                                    cuda-gdb names the kernel and the exception; then, after a fault, the baseline in a
#                                    process where nothing of ours runs, and without cuDNN's attention. No figure is kept
#   benchmarks/gpu.sh sampling       the time from seeds to images
#   benchmarks/gpu.sh summary        the figures so far
#   benchmarks/gpu.sh [all]          all of them, most valuable first
#   benchmarks/gpu.sh --dry-run …    what they would do, without a GPU
#
# Figures go into $OUT/gpu.json if OUT is set, and begin with those of an earlier call on the same kind of machine; else
# into benchmarks/results/gpu.json. What follows the stage is passed on: see python benchmarks/gpu.py --help.
# Needs Python with torch (CUDA), nvcc, cmake, ninja, and the packages of the test extra, and no network.
set -euo pipefail
cd "$(dirname "$0")/.."
kept=benchmarks/results/gpu.json
earlier=build/gpu/gpu.json
mkdir -p build/gpu

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=--dry-run
    shift
fi
stage=${1:-all}
[ $# -eq 0 ] || shift

capability() { python3 -c "import torch; a, b = torch.cuda.get_device_capability(); print(f'{a}{b}')"; }

build() {
    if [ -n "$dry" ]; then
        echo "== build, which needs a GPU"
        echo "would: build the extension with nvcc for the GPU's capability, warnings being errors; edm_fast info"
        return
    fi
    local chip
    chip=$(capability)
    [ "$chip" = 90 ] && chip=90a
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    EDM_FAST_CUDA=ON EDM_FAST_WERROR=ON CUDAARCHS="$chip-real" python3 -m pip install -q --no-build-isolation --no-deps -e .
    python3 -m edm_fast info
}

measure() {
    if [ -n "$dry" ]; then
        python3 benchmarks/gpu.py "$@" --dry-run
    elif [ -n "${OUT:-}" ]; then
        [ -e "$earlier" ] || [ ! -e "$kept" ] || cp "$kept" "$earlier"
        local status=0
        python3 benchmarks/gpu.py "$@" --output "$OUT/gpu.json" --earlier "$earlier" --logs "$OUT" || status=$?
        [ ! -e "$OUT/gpu.json" ] || cp "$OUT/gpu.json" "$earlier"
        return "$status"
    else
        python3 benchmarks/gpu.py "$@" --output "$kept"
    fi
}

diagnose() {
    local folder=build/gpu/diagnosis
    rm -rf "$folder"
    mkdir -p "$folder"
    if [ -n "$dry" ]; then
        python3 benchmarks/gpu.py networks "$@" --dry-run
        python3 benchmarks/gpu.py baseline "$@" --dry-run
        python3 benchmarks/gpu.py baseline-flash "$@" --dry-run
        return
    fi
    export CUDA_ENABLE_COREDUMP_ON_EXCEPTION=1
    export CUDA_COREDUMP_GENERATION_FLAGS=skip_global_memory,skip_shared_memory,skip_local_memory,skip_constbank_memory
    export CUDA_COREDUMP_FILE="$PWD/$folder/networks.%p.core"
    local status=0
    python3 benchmarks/gpu.py networks "$@" --pairs 1 --output "$folder/gpu.json" || status=$?
    if [ "$status" -ne 0 ]; then
        local one
        for one in baseline baseline-flash; do
            if CUDA_COREDUMP_FILE="$PWD/$folder/$one.%p.core" python3 benchmarks/gpu.py $one "$@"; then
                echo "the $one alone: no fault"
            else
                echo "the $one alone: failed too"
            fi
        done
    fi
    ls -l "$folder"
    for core in "$folder"/*.core; do
        if [ -e "$core" ] && command -v cuda-gdb > /dev/null; then
            cuda-gdb -batch -ex "target cudacore $core" -ex "info cuda kernels" -ex "bt" | tee "$core.txt" || true
        fi
    done
    [ -z "${OUT:-}" ] || cp -r "$folder" "$OUT/"
    return "$status"
}

everything() {
    build
    if [ -n "$dry" ]; then
        measure all "$@"
        return
    fi
    # A stage that fails does not keep the others from running.
    local failed=
    for one in ceilings bits tests images sanitize ops "networks ddpmpp" split "networks ncsnpp" "networks adm" sampling; do
        # shellcheck disable=SC2086
        measure $one "$@" || failed="$failed, $one"
    done
    measure summary
    [ -z "$failed" ] || {
        echo "not all was well in: ${failed#, }"
        return 1
    }
}

case "$stage" in
    build) build ;;
    diagnose) diagnose "$@" ;;
    all) everything "$@" ;;
    *) measure "$stage" "$@" ;;
esac
