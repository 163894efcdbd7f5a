#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with cupy, torch, mpi4py and pytest and no network:
#   tests/gpu_check.sh [FOLDER]        results go to FOLDER (default: gpu_check_results)
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-gpu_check_results}" && cd "${1:-gpu_check_results}" && pwd)
export PYTHONPATH=$PWD
nvidia-smi > "$out/device.txt" 2>&1
python3 -c 'import cupy; cupy.show_config()' > "$out/cupy.txt" 2>&1

status=0
run() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    local code=$?
    [ $code -eq 0 ] || status=1
    printf '%-24s %s  %s\n' "$name" "$([ $code -eq 0 ] && echo ok || echo "failed ($code)")" \
        "$(tail -n 1 "$out/$name.log")" | tee -a "$out/summary.txt"
}
: > "$out/summary.txt"
run gpu-tests 300 python3 -m pytest -q -m gpu tests/gpu
run example-one-rank 120 python3 examples/train_gpt.py --device cuda --steps 50 --out "$out/run-1"
run example-two-ranks 120 python3 -m launcher --nproc-per-node 2 examples/train_gpt.py \
    --device cuda --steps 50 --out "$out/run-2"
exit $status
