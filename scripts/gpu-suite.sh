#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with nvcc and CMake but perhaps without Node, in under
# nine minutes: builds the native programs, runs the tests, the tests again under compute-sanitizer,
# the benchmark, and PyTorch's attention beside it where Python has torch. Ends in a short table;
# results.json in the folder given (default: build/gpu-suite) holds all of it.
#   scripts/gpu-suite.sh [folder]
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/gpu-suite}
build=${CA_GPU_BUILD:-$root/build/gpu}
mkdir -p "$out"
failed=0
summary=()

# step NAME SECONDS COMMAND...: runs it with a limit of time, its output in NAME.log.
step() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  local verdict=ok
  [ $code = 0 ] || { verdict="failed ($code)"; failed=1; }
  summary+=("$(printf '%-14s %-12s %4d s  %s' "$name" "$verdict" $((SECONDS - begin)) \
    "$(tail -n 1 "$out/$name.log" | cut -c 1-80)")")
  return $code
}

# tests NAME SECONDS TOOL FILTER...: some of the tests under one tool of compute-sanitizer.
sanitize() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" compute-sanitizer --tool "$name" --error-exitcode 9 \
    --print-limit 20 "$build/cuda_tests" "$@"
}

generator=()
command -v ninja >/dev/null && [ ! -e "$build/CMakeCache.txt" ] && generator=(-G Ninja)
step configure 30 cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
  -DCA_BUILD_ADDON=OFF -DCA_BUILD_CUDA=ON -DCA_BUILD_CUDA_TESTS=ON \
  -DCA_BUILD_CUDA_BENCHMARKS=ON -DCA_OUTPUT_DIRECTORY="$build/Release" &&
  step build 200 cmake --build "$build" --parallel "$(nproc)"

if [ -x "$build/cuda_tests" ]; then
  step tests 60 "$build/cuda_tests"
  if command -v compute-sanitizer >/dev/null; then
    # The largest cases take minutes under these tools: the pieces, and what holds odd sizes.
    sanitize memcheck 50 "primitives" "NaN and Inf are noticed" "optional outputs"
    sanitize racecheck 30 "primitives" "optional outputs" "no log-sum-exp"
    sanitize synccheck 20 "primitives" "no log-sum-exp"
    sanitize initcheck 20 "primitives" "no log-sum-exp"
  else
    summary+=("compute-sanitizer: not found")
  fi
fi
if [ -x "$build/cuda_bench" ]; then
  step benchmark 60 "$build/cuda_bench"
fi
if [ -e "$root/build/gpu-bundle/run.sh" ]; then  # made by scripts/gpu-bundle.cjs
  step javascript 30 sh "$root/build/gpu-bundle/run.sh"
else
  summary+=("javascript: no bundle")
fi
if python3 -c 'import torch' 2>/dev/null; then
  step sdpa 45 python3 "$root/bench/cuda/sdpa.py"
else
  summary+=("sdpa: Python has no torch")
fi

{
  printf '{"date":"%s","gpu":"%s","steps":[' "$(date -u +%F)" \
    "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
  first=1
  for line in "${summary[@]}"; do
    [ $first = 1 ] || printf ','
    first=0
    printf '"%s"' "$(printf '%s' "$line" | tr -d '"\\' | tr '\t' ' ')"
  done
  printf '],"benchmark":[%s]' "$(grep -h '^{' "$out/benchmark.log" 2>/dev/null | paste -sd,)"
  printf ',"sdpa":[%s]}\n' "$(grep -h '^{' "$out/sdpa.log" 2>/dev/null | paste -sd,)"
} >"$out/results.json"

printf '%s\n' "${summary[@]}"
grep -h '^{"kernel"' "$out/benchmark.log" 2>/dev/null |
  sed -E 's/[{}"]//g; s/,/  /g; s/(kernel|length|storage|microseconds|tflops)://g'
echo "results: $out/results.json"
exit $failed
