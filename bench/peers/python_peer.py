"""The process that measures PyTorch's attention and scikit-learn's K-means on the CPU.

It speaks the protocol of lib/bench/protocol.ts: one JSON object per line, a task first, then one
sample per request. Results are compared with double precision before anything is timed.
"""

import json
import os
import signal
import struct
import sys
import time

BOUND = 1e-4
SAMPLE = 10.0  # milliseconds


def read_tensors(path, names, numpy):
    """Tensors of a safetensors file as float32, shapes of rank 4."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        result = []
        for name in names:
            info = header[name]
            begin, end = info["data_offsets"]
            file.seek(8 + length + begin)
            raw = file.read(end - begin)
            if info["dtype"] == "BF16":
                wide = numpy.frombuffer(raw, dtype="<u2").astype("<u4") << 16
                values = wide.view("<f4")
            else:
                values = numpy.frombuffer(raw, dtype={"F32": "<f4", "F16": "<f2"}[info["dtype"]])
            shape = [1] * (4 - len(info["shape"])) + info["shape"]
            result.append(numpy.array(values, dtype=numpy.float32).reshape(shape))
        return result


def relative_l2(actual, expected, numpy):
    return float(numpy.linalg.norm(actual - expected) / numpy.linalg.norm(expected))


def prepare_attention(task, numpy):
    try:
        import torch
    except ImportError:
        return "missing", "pip install torch or apt-get install python3-torch installs it", None
    case = task["case"]
    torch.set_num_threads(case["threads"])
    fused = case["method"] == "scaled_dot_product_attention"
    if fused and not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        return "missing", f"PyTorch {torch.__version__} is older than 2.0, which brought it", None
    arrays = read_tensors(task["input"]["path"], task["input"]["names"], numpy)
    query, key, value = (torch.from_numpy(array) for array in arrays)
    scale = query.shape[-1] ** -0.5

    def forward():
        if fused:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return torch.softmax((query * scale) @ key.transpose(-1, -2), dim=-1) @ value

    def run():
        if not case["gradient"]:
            with torch.no_grad():
                return forward()
        for tensor in (query, key, value):
            tensor.requires_grad_(True)
            tensor.grad = None
        output = forward()
        output.backward(upstream)
        return output

    upstream = torch.randn(query.shape[:-1] + value.shape[-1:], generator=torch.manual_seed(0))
    output = run().detach().numpy()
    accuracy = check_attention(task, arrays, output, numpy)
    if case["gradient"]:
        # Attention is linear in its values: sum of upstream * output = sum of gradient * value.
        direct = float((upstream.double() * torch.from_numpy(output).double()).sum())
        through = float((value.grad.double() * value.detach().double()).sum())
        size = float(upstream.double().norm() * torch.from_numpy(output).double().norm())
        accuracy["rounding"] = max(accuracy["rounding"], abs(through - direct) / size)
    return "ready", accuracy, run


def check_attention(task, arrays, output, numpy):
    query, key, value = arrays
    batch, heads, length, dim = query.shape
    random = numpy.random.RandomState(task["seed"])
    actual, expected = [], []
    for _ in range(task["rows"]):
        b, h, l = random.randint(batch), random.randint(heads), random.randint(length)
        logits = key[b, h].astype(numpy.float64) @ query[b, h, l].astype(numpy.float64) * dim**-0.5
        weights = numpy.exp(logits - logits.max())
        expected.append((weights / weights.sum()) @ value[b, h].astype(numpy.float64))
        actual.append(output[b, h, l])
    error = relative_l2(numpy.array(actual), numpy.array(expected), numpy)
    return {"rows": task["rows"], "rounding": error, "error": error}


def prepare_k_means(task, numpy):
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        return "missing", "pip install scikit-learn or apt-get install python3-sklearn installs it", None
    case = task["case"]
    clusters, iterations = case["parameters"]["clusters"], case["parameters"]["iterations"]
    (query,) = read_tensors(task["input"]["path"], task["input"]["names"][:1], numpy)
    length, dim = query.shape[-2:]
    sequences = query.reshape(-1, length, dim)
    start = [j * length // clusters for j in range(clusters)]
    limit = threadpool_limits(case["threads"])

    def run():
        assert limit is not None  # it holds for as long as it lives
        return [
            KMeans(clusters, init=rows[start], n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(rows)
            for rows in sequences
        ]

    worst = 0.0
    for rows, model in zip(sequences, run()):
        nearest = model.cluster_centers_[model.labels_].astype(numpy.float64)
        inertia = ((rows.astype(numpy.float64) - nearest) ** 2).sum()
        worst = max(worst, abs(model.inertia_ / inertia - 1))
    return "ready", {"rows": length * len(sequences), "rounding": float(worst)}, run


def prepare(task):
    os.environ["OMP_NUM_THREADS"] = str(task["case"]["threads"])
    try:
        import numpy
    except ImportError:
        return {"status": "missing", "reason": "this Python has no numpy"}, None
    kind = prepare_k_means if task["case"]["method"] == "kmeans" else prepare_attention
    status, found, run = kind(task, numpy)
    if status != "ready":
        return {"status": status, "reason": found}, None
    if not found["rounding"] <= BOUND:
        reason = f"the result is off by {found['rounding']:.1e}"
        return {"status": "wrong", "reason": reason, "accuracy": found}, None
    began = time.perf_counter()
    run()
    milliseconds = (time.perf_counter() - began) * 1000
    repeats = max(1, min(1000, round(SAMPLE / max(milliseconds, 1e-3))))
    return {"status": "ready", "accuracy": found, "repeats": repeats}, run


def main():
    for of_the_terminal in ("SIGINT", "SIGHUP"):  # the coordinator decides
        if hasattr(signal, of_the_terminal):
            signal.signal(getattr(signal, of_the_terminal), signal.SIG_IGN)
    run = None
    repeats = 1
    for line in sys.stdin:
        try:
            if run is None:
                reply, run = prepare(json.loads(line))
                repeats = reply.get("repeats", 1)
            else:
                began = time.perf_counter()
                for _ in range(repeats):
                    run()
                reply = {"milliseconds": (time.perf_counter() - began) * 1000 / repeats}
        except Exception as error:  # becomes a line of the table
            reply = {"status": "failed", "reason": " ".join(str(error).split())}
        print(json.dumps(reply), flush=True)


main()
