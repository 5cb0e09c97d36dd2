#!/usr/bin/env bash
# Proves the CUDA code on a machine with a GPU, in stages that each fit in ten minutes:
#
#   benchmarks/gpu.sh build      build the extension for the chip that is there
#   benchmarks/gpu.sh test       every op and sampler test with the cuda backend, selfcheck, generate
#   benchmarks/gpu.sh sanitize   compute-sanitizer on small shapes, after a planted bug that it must report
#   benchmarks/gpu.sh            all of them, most valuable first
#
# Needs Python with torch (CUDA), nvcc, cmake, ninja, and the packages of the test extra, and no network.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu}
mkdir -p "$out"

capability() { python3 -c "import torch; a, b = torch.cuda.get_device_capability(); print(f'{a}{b}')"; }

build() {
    local chip
    chip=$(capability)
    [ "$chip" = 90 ] && chip=90a
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    EDM_FAST_CUDA=ON EDM_FAST_WERROR=ON CUDAARCHS="$chip-real" python3 -m pip install -q --no-build-isolation --no-deps -e .
    python3 -m edm_fast info
}

run_tests() {
    python3 -m pytest tests/ops tests/samplers tests/networks tests/plan -p no:cacheprovider | tee "$out/tests.txt"
    # A run that skipped the GPU proves nothing.
    python3 - <<'PYTHON'
import torch
import edm_fast
assert torch.cuda.is_available() and edm_fast.ops.backends.extension().cuda.architectures
here = edm_fast.randn((3, 64, 64), range(64), 5, device="cuda").cpu()
assert torch.equal(here, edm_fast.randn((3, 64, 64), range(64), 5)), "noise differs between CPU and CUDA"
print("noise: equal bits on", torch.cuda.get_device_name())
PYTHON
    python3 -m edm_fast selfcheck | tee "$out/selfcheck.txt"
    python3 -m edm_fast generate --device cuda --outdir "$out/images" --grid
}

sanitize() {
    nvcc -arch=native -lineinfo -o "$out/planted" benchmarks/planted_bug.cu
    if compute-sanitizer --tool memcheck --error-exitcode 9 "$out/planted" > "$out/planted.txt" 2>&1; then
        echo "compute-sanitizer does not see a planted out-of-bounds write on this machine: nothing to learn from it"
        return 0
    fi
    grep -q "Invalid __global__ write" "$out/planted.txt" || {
        echo "compute-sanitizer failed on the planted bug without naming it:"
        tail -n 20 "$out/planted.txt"
        return 0
    }
    for tool in memcheck racecheck initcheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            python3 -m pytest tests/ops -k "cuda and (by_hand or layouts or empty or own_noise or guard)" -p no:cacheprovider \
            2>&1 | tee "$out/$tool.txt" | tail -n 5
    done
}

case "${1:-all}" in
    build) build ;;
    test) run_tests ;;
    sanitize) sanitize ;;
    all) # not joined by &&, which would let a failing command inside pass
        build
        run_tests
        sanitize
        ;;
    *)
        echo "usage: benchmarks/gpu.sh [build|test|sanitize]" >&2
        exit 2
        ;;
esac
