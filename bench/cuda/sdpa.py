"""PyTorch's scaled_dot_product_attention beside cuda_bench: the same shapes, the same way of timing.

usage: python3 sdpa.py [length ...]      one line of JSON per back end, type and length
"""

import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, ROUNDS = 8, 30
DIMS = {64: 65536, 128: 16384}  # with their longest sequences
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def median_seconds(call, flush):
    """Of ROUNDS calls, each between two events and after the L2 cache was flushed."""
    seconds = []
    for round_ in range(-2, ROUNDS):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        if round_ >= 0:
            seconds.append(start.elapsed_time(stop) * 1e-3)
    return statistics.median(seconds)


def result(name, tensor, backward, call, flush):
    """One line: the time and rate of `call`, or why the back end does not do it."""
    length, dim = tensor.shape[2:]
    line = {"backend": name, "dtype": str(tensor.dtype)[6:], "length": length, "dim": dim}
    if backward:
        line["backward"] = True
    try:
        seconds = median_seconds(call(), flush)
    except RuntimeError as error:
        line["unavailable"] = str(error).splitlines()[0][:120]
    else:
        line["microseconds"] = round(seconds * 1e6, 1)
        operations = (10 if backward else 4) * HEADS * dim * length**2
        line["tflops"] = round(operations / seconds * 1e-12, 1)
    print(json.dumps(line), flush=True)


def compare(dtype, length, dim, flush):
    torch.manual_seed(1)
    shape = (1, HEADS, length, dim)
    tensors = [torch.randn(shape, device="cuda").to(dtype) for _ in range(4)]
    *inputs, gradient = tensors

    def forward():
        return lambda: scaled_dot_product_attention(*inputs)

    def backward():
        wanted = [one.detach().requires_grad_() for one in inputs]
        output = scaled_dot_product_attention(*wanted)
        return lambda: torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    for name, backend in BACKENDS.items():
        # The plain form stores the whole matrix of weights.
        if name == "math" and length > 16384:
            continue
        with sdpa_kernel(backend):
            result(name, gradient, False, forward, flush)
            if length <= 16384 and dim == 64:  # the slow ones take seconds
                result(name, gradient, True, backward, flush)


def main(lengths):
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for dtype in (torch.bfloat16, torch.float32):
        for dim, longest in DIMS.items():
            for length in lengths:
                if length <= longest:
                    compare(dtype, length, dim, flush)


if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]] or [1024, 4096, 16384, 65536])
