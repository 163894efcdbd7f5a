#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with cupy, torch, mpi4py and pytest and no network;
# it ends within 9 minutes, of which the last 160 s are the benchmarks', and prints a table last:
#   tests/gpu_check.sh [FOLDER [STEP...]]   logs, facts.json, gpu.json and summary.json go to FOLDER
#                                           (default: gpu_check_results); only the steps named
# Wheels of nvidia-cudnn-frontend and nccl4py are used where they are installed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-gpu_check_results}" && cd "${1:-gpu_check_results}" && pwd)
steps=" ${*:2} "
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi > "$out/nvidia-smi.txt" 2>&1

# Many small kernels are compiled: several processes share that where pytest-xdist is installed.
workers=()
if python3 -c 'import xdist' 2> /dev/null; then workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))"); fi
# Its figures mean nothing beside other processes, and its warning would be an error here.
python3 -c 'import pytest_benchmark' 2> /dev/null && workers+=(-p no:benchmark)
tests=(python3 -m pytest -m gpu --tb=short -rfEsP -o addopts="--strict-markers --import-mode=importlib")
# The engine's own tests: all but those that need several ranks, or the whole registry.
engine=()
for file in tests/gpu/test_*_on_gpu.py; do
    case $file in *_nccl_* | *_two_ranks_* | *_fsdp_* | *_parity_* | *_ops_* | *_tensors_*) ;; *) engine+=("$file") ;; esac
done

: > "$out/summary.tsv"
end=360  # the second at which the steps must be over
run() { # NAME SECONDS COMMAND...
    local name=$1 began=$SECONDS
    local limit=$(($2 < end - SECONDS ? $2 : end - SECONDS))
    shift 2
    if [[ $steps != "  " && $steps != *" $name "* ]]; then return; fi
    if ((limit < 1)); then
        echo "== $name"
        echo "no time left of the 9 minutes" > "$out/$name.log"
        printf '%s\t124\t0\n' "$name" >> "$out/summary.tsv"
        return
    fi
    echo "== $name"
    timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
    printf '%s\t%s\t%s\n' "$name" $? $((SECONDS - began)) >> "$out/summary.tsv"
}
run facts 60 python3 tests/gpu/facts.py "$out/facts.json"
run engine 120 "${tests[@]}" "${workers[@]}" "${engine[@]}"
run ops 100 "${tests[@]}" "${workers[@]}" tests/gpu/test_ops_on_gpu.py tests/gpu/test_tensors_on_gpu.py
run parity 80 "${tests[@]}" "${workers[@]}" tests/gpu/test_parity_on_gpu.py
run nccl 60 "${tests[@]}" tests/gpu/test_nccl_on_gpu.py
run two-ranks 40 "${tests[@]}" "${workers[@]}" tests/gpu/test_two_ranks_on_gpu.py
run fsdp 30 "${tests[@]}" tests/gpu/test_fsdp_on_gpu.py
run exact 30 python3 -m launcher -n 2 --oversubscribe tests/exact_on_gpu.py cuda
run example-one-rank 30 python3 -m launcher --nproc-per-node gpu examples/train_gpt.py \
    --device cuda --steps 200 --out "$out/run-1"
run example-two-ranks 30 python3 -m launcher --nproc-per-node 2 examples/train_gpt.py \
    --device cuda --steps 100 --out "$out/run-2"
if command -v compute-sanitizer > /dev/null; then
    run memcheck 40 compute-sanitizer --tool memcheck --error-exitcode 9 python3 tests/gpu/sanitized.py
    run racecheck 40 compute-sanitizer --tool racecheck --error-exitcode 9 python3 tests/gpu/sanitized.py
fi
end=520
run benchmarks 160 python3 benchmarks/gpu.py --limit 50 --out "$out"
# torch.compile takes about a minute to compile, so it comes last, in what is left of the time.
run compiled 150 python3 benchmarks/gpu.py gpt2 --compile --limit 140 --out "$out/compiled"
python3 tests/gpu/summary.py "$out"
