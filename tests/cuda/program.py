"""Two ranks on one device from PyTorch: tensors, streams and torch.cuda.graph, through ctypes. Where PyTorch or a device is
missing it says so. tests/cuda/programs runs it."""

import ctypes
import signal
import sys
import threading

SKIPPED = 77
LAYERS, REPLAYS = 4, 64
# Under shapes.txt these reach push and pull in one and in two steps.
COUNTS = (5_000, 50_000, 200_000, 1_000_000)


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


try:
    import torch
except ImportError as error:
    skip(f"PyTorch is not here ({error})")
if not torch.cuda.is_available():
    skip(f"PyTorch {torch.__version__} sees no CUDA device")

import tutti

signal.alarm(100)
torch.cuda.init()
ranks = range(2)
groups = tutti.World.local(len(ranks), devices=[0] * len(ranks), timeout_ms=20_000)
streams = [torch.cuda.Stream() for _ in ranks]
# Everything is allocated before the first call: an allocation may wait for kernels that wait for a peer.
dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int32)
cases = [(dtype, count) for dtype in dtypes for count in COUNTS]
values = {
    (dtype, count): [torch.full((count,), rank + 1, dtype=dtype, device="cuda") for rank in ranks]
    for dtype, count in cases
}
parts = [torch.full((COUNTS[0],), float(rank), device="cuda") for rank in ranks]
gathered = [torch.empty(len(ranks) * COUNTS[0], device="cuda") for _ in ranks]
layers = [[torch.zeros(count, device="cuda") for count in COUNTS] for _ in ranks]
torch.cuda.synchronize()

for case in cases:
    for rank in ranks:
        groups[rank].all_reduce(values[case][rank], stream=streams[rank])
for rank in ranks:
    groups[rank].all_gather(parts[rank], gathered[rank], stream=streams[rank])
torch.cuda.synchronize()
for case in cases:
    assert all((value == 3).all().item() for value in values[case]), case
assert all(torch.equal(one, torch.cat(parts)) for one in gathered)
print("ok eager calls on tensors")

sessions = [tutti.Capture([group]) for group in groups]
# Before the first replay of any: an upload could wait for kernels that wait for a peer's. PyTorch has none of its own.
upload = ctypes.CDLL("libcuda.so.1").cuGraphUpload
upload.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
graphs = []
for rank in ranks:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=streams[rank], capture_error_mode="thread_local"):
        for _ in range(LAYERS):
            for layer in layers[rank]:
                layer.mul_(0.5)
                groups[rank].all_reduce(layer, stream=streams[rank])
    graphs.append(graph)
    if hasattr(graph, "raw_cuda_graph_exec"):
        assert upload(graph.raw_cuda_graph_exec(), streams[rank].cuda_stream) == 0
torch.cuda.synchronize()
commits = [threading.Thread(target=session.commit) for session in sessions]
for commit in commits:
    commit.start()
for commit in commits:
    commit.join()

for replay in range(REPLAYS):
    for rank in ranks:
        with torch.cuda.stream(streams[rank]):
            for layer in layers[rank]:
                layer.fill_(replay + 2 * rank)
    for rank in ranks:
        with torch.cuda.stream(streams[rank]):
            graphs[rank].replay()
    if replay % 7 == 0:  # between replays, on the same streams
        for rank in ranks:
            groups[rank].all_reduce(parts[rank], op=tutti.Op.MAX, stream=streams[rank])
    torch.cuda.synchronize()
    # Half of each in every layer: the mean, from the first on.
    assert all((layer == replay + 1).all().item() for mine in layers for layer in mine), replay
for group in groups:
    group.check()
print(f"ok replays of a torch.cuda.graph of {LAYERS} layers")
