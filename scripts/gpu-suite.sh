#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with nvcc and CMake but perhaps without Node, in under
# nine minutes: builds the native programs, runs the tests, the tests again under compute-sanitizer
# and the package by JavaScript, side by side; then, alone, the benchmark and PyTorch's attention
# beside it where Python has torch. Ends in a short table; results.json in the folder given (default:
# build/gpu-suite) holds all of it.
#   scripts/gpu-suite.sh [folder]
# CA_GPU_BUILD   a folder with cuda_tests and cuda_bench from elsewhere: nothing is built
# CA_GPU_LIMIT   seconds for the sanitizers (default 170)
# CA_GPU_TOTAL   seconds for all of it (default 530): steps that a hung kernel has left no time for are
#                cut short, or not run
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/gpu-suite}
build=${CA_GPU_BUILD:-$root/build/gpu}
limit=${CA_GPU_LIMIT:-170}
total=${CA_GPU_TOTAL:-530}
bundle=$root/build/gpu-bundle/run.sh  # made by scripts/gpu-bundle.cjs
mkdir -p "$out"
rm -f "$out"/*.log "$out"/*.step

# step NAME SECONDS COMMAND...: runs it with a limit of time; its output goes to NAME.log, its line of
# the table to NAME.step.
step() {
  local name=$1 seconds=$2 begin=$SECONDS
  shift 2
  ((total - SECONDS < seconds)) && seconds=$((total - SECONDS))
  if ((seconds < 5)); then
    note "$name" 'failed (no time was left)'
    return 1
  fi
  timeout -k 5 "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$? verdict=ok
  [ $code = 0 ] || verdict="failed ($code)"
  printf '%-14s %-12s %4d s  %s\n' "$name" "$verdict" $((SECONDS - begin)) \
    "$(tail -n 1 "$out/$name.log" | cut -c 1-80)" >"$out/$name.step"
  return $code
}

note() { printf '%-14s %s\n' "$1" "$2" >"$out/$1.step"; }

if [ -z "${CA_GPU_BUILD:-}" ]; then
  generator=()
  command -v ninja >/dev/null && [ ! -e "$build/CMakeCache.txt" ] && generator=(-G Ninja)
  step configure 30 cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DCA_BUILD_ADDON=OFF -DCA_BUILD_CUDA=ON -DCA_BUILD_CUDA_TESTS=ON \
    -DCA_BUILD_CUDA_BENCHMARKS=ON -DCA_OUTPUT_DIRECTORY="$build/Release" &&
    step build 200 cmake --build "$build" --parallel "$(nproc)"
fi

# ---- side by side: what is right or wrong ------------------------------------------------------

# shares NAME COUNT COMMAND...: the tests in COUNT processes, each with its share.
shares() {
  local name=$1 count=$2 i
  shift 2
  for ((i = 0; i < count; ++i)); do step "$name-$i" 90 "$@" "--part=$i,$count" & done
}

# one_sanitized TOOL TEST: says "clean", "wrong" or "unfinished" of a test under a tool.
one_sanitized() {
  local log code=124
  log=$(mktemp)
  if [ "$(date +%s)" -lt "$CA_GPU_END" ]; then
    timeout -k 2 "$((CA_GPU_END + 1 - $(date +%s)))" compute-sanitizer --tool "$1" \
      --error-exitcode 9 --print-limit 20 "$CA_GPU_TESTS" "$2" >"$log" 2>&1
    code=$?
    # Some tests are of host code alone, which the tools do not count as a success.
    grep -q 'before first instrumented API call' "$log" && code=0
  fi
  case $code in
    0) echo "clean $2" ;;
    124 | 137) echo "unfinished $2" ;;
    *) echo "wrong ($code) $2" && cat "$log" ;;
  esac
  rm -f "$log"
}
export -f one_sanitized

# sanitize TOOL COUNT: each test in a process of its own, COUNT at once, in a new order every time;
# what does not end in time is counted.
sanitize() {
  local tool=$1 log=$out/$1.log begin=$SECONDS verdict=ok
  "$build/cuda_tests" --list | shuf |
    xargs -d '\n' -P "$2" -I{} bash -c 'one_sanitized "$0" "$1"' "$tool" {} >"$log" 2>&1
  grep -q '^wrong' "$log" && verdict='failed (9)'
  printf '%-14s %-12s %4d s  %d tests clean, %d wrong, %d not finished\n' "$tool" "$verdict" \
    $((SECONDS - begin)) "$(grep -c '^clean' "$log")" "$(grep -c '^wrong' "$log")" \
    "$(grep -c '^unfinished' "$log")" >"$out/$tool.step"
}

if [ -x "$build/cuda_tests" ]; then
  shares tests 8 "$build/cuda_tests"
  wait  # they take seconds: alone, so that the rest of the time is the sanitizers'
fi
# Alone, too: it asks for more memory than there is, and others would miss it.
if [ -e "$bundle" ]; then
  step javascript 90 sh "$bundle"
else
  note javascript 'not run: no bundle'
fi
if [ -x "$build/cuda_tests" ]; then
  if command -v compute-sanitizer >/dev/null; then
    # What is left is the measurements'.
    ((total - SECONDS - 200 < limit)) && limit=$((total - SECONDS - 200))
    export CA_GPU_TESTS=$build/cuda_tests CA_GPU_END=$(($(date +%s) + limit))
    sanitize memcheck 6 &
    sanitize racecheck 5 &
    sanitize synccheck 3 &
    sanitize initcheck 2 &
  else
    note sanitizers 'not run: no compute-sanitizer'
  fi
fi
wait

# ---- alone: how fast ---------------------------------------------------------------------------

# Nsight Compute's view of each kernel: where its time goes. It leaves clocks and caches alone, so
# that kernels find the L2 cache as the flush before each call has left it. What it has seen until its
# time is over counts.
profile() {
  local names=() name
  for name in attention attention_wide clustered improved centroid cast plus_plus \
    attention_gradient improved_gradient centroid_gradient; do
    names+=(--only "$name")
  done
  timeout -s INT 60 ncu --csv --page raw --clock-control none --cache-control none \
    --profile-from-start off --metrics "$(python3 "$root/bench/cuda/profile.py" --metrics)" \
    "$build/cuda_bench" --unchecked --rounds 1 "${names[@]}" 1024 16384 >"$out/ncu.csv" \
    2>"$out/ncu.log"
  python3 "$root/bench/cuda/profile.py" <"$out/ncu.csv"
}

if [ -x "$build/cuda_bench" ]; then
  step benchmark 120 "$build/cuda_bench"
  step warm 45 "$build/cuda_bench" --unchecked --warm 1024 16384
  if command -v ncu >/dev/null && command -v python3 >/dev/null; then
    export -f profile
    export root build out
    step profile 75 bash -c profile
  else
    note profile 'not run: no ncu, or no Python'
  fi
fi
if python3 -c 'import torch' 2>/dev/null; then
  step sdpa 75 python3 "$root/bench/cuda/sdpa.py"
else
  note sdpa 'not run: Python has no torch'
fi

{
  printf '{"date":"%s","gpu":"%s","steps":[' "$(date -u +%F)" \
    "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
  cat "$out"/*.step | tr -d '"\\' | tr '\t' ' ' | sed 's/.*/"&"/' | paste -sd,
  for part in benchmark warm profile; do
    printf '],"%s":[%s' "$part" "$(grep -h '^{' "$out/$part.log" 2>/dev/null | paste -sd,)"
  done
  printf '],"sdpa":[%s]}\n' "$(grep -h '^{' "$out/sdpa.log" 2>/dev/null | paste -sd,)"
} >"$out/results.json"

grep -h '^{"kernel"' "$out/benchmark.log" 2>/dev/null |
  sed -E 's/[{}"]//g; s/,/  /g; s/(kernel|length|storage|microseconds|tflops)://g'
cat "$out"/*.step
echo "results: $out/results.json"
! grep -q 'failed (' "$out"/*.step
