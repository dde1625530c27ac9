"""Sums up what Nsight Compute has seen of the kernels of cuda_bench.

usage: ncu --csv --page raw --metrics ... cuda_bench --rounds 1 LENGTH | python3 profile.py
One line of JSON per kernel and launch shape, the longest in total first: medians over its launches.
"""

import collections
import csv
import json
import re
import statistics
import sys

# What scripts/gpu-suite.sh asks for, and what it is called here.
METRICS = {
    "gpu__time_duration.sum": "microseconds",
    "launch__registers_per_thread": "registers",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue",
    "sm__inst_executed_pipe_tensor.sum": "products",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio": "noInstruction",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "waitsForMemory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "waitsForBarrier",
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio": "waitsForFence",
}
MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def rows_of(lines):
    """The table among what the program itself prints; its second line holds the units."""
    table = csv.DictReader(line for line in lines if line.startswith('"'))
    units = next(table, None)
    return units, list(table)


def number(text):
    return float(text.replace(",", "")) if text else float("nan")


def main(lines):
    units, rows = rows_of(lines)
    if not rows:
        sys.exit("no kernel was seen")
    kernels = collections.defaultdict(list)
    for row in rows:
        name = re.sub(r"^void |cluster_attention::cuda::|\(cluster_attention.*$", "", row["Kernel Name"])
        kernels[name, row["Grid Size"], row["Block Size"]].append(row)
    seen = []
    for (name, grid, block), launches in kernels.items():
        line = {"profile": name, "grid": grid, "block": block, "launches": len(launches)}
        for metric, key in METRICS.items():
            if metric not in launches[0]:
                continue
            factor = MICROSECONDS.get(units[metric], 1.0) if key == "microseconds" else 1.0
            median = statistics.median(number(one[metric]) for one in launches)
            line[key] = round(median * factor, 2)
        seen.append(line)
    seen.sort(key=lambda line: -line["microseconds"] * line["launches"])
    for line in seen:
        print(json.dumps(line))


if __name__ == "__main__":
    if sys.argv[1:] == ["--metrics"]:
        print(",".join(METRICS))
    else:
        main(sys.stdin)
