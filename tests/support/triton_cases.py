"""What the tests of the kernels in Triton compare with what, and how near it has to come."""

from contextlib import contextmanager

import pytest
import torch

# |got - truth| / |truth|. float32: some tens of roundings of 6e-8. Half precision: what is stored is rounded once, by
# 2**-8 or 2**-11 of a value at most; to bfloat16 the interpreter cuts off instead.
INTERPRETED = not torch.cuda.is_available()
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-11}
SUMS = 4  # times as far: sums over all tokens, which cancel


def assert_norms(got, truth, tolerance, sums=()):
    """`tolerance` by dtype; those named in `sums` may be farther away, where they are float32."""
    assert got.keys() == truth.keys()
    far = {}
    for name, expected in truth.items():
        assert got[name].shape == expected.shape and torch.isfinite(got[name]).all(), name
        # 1e-30: what is so small that float32 has no digits left for it
        error = ((got[name].double() - expected).norm() / (expected.norm() + 1e-30)).item()
        factor = SUMS if name in sums and got[name].dtype == torch.float32 else 1
        if not error <= factor * tolerance[got[name].dtype]:
            far[name] = f"{error:.1e}"
    assert not far, far


@contextmanager
def launched(channels=32, programs=1, span=2):
    """The scan's kernels so, whatever the shape."""
    from longvision.ops.kernels.triton import scan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "forward_channels", lambda states: channels)
        patch.setattr(scan, "BACKWARD_CHANNELS", channels)
        patch.setattr(scan, "PROGRAMS", programs)
        patch.setattr(scan, "SPAN", span)
        yield


@contextmanager
def recorded():
    """Inside, kernels are not started; gets the name and the grid of each that would have been."""
    from longvision.ops.kernels.triton import launch

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", lambda kernel, grid, *_: found.append((kernel.__name__, grid)))
        yield found


def moved(tensors, device):
    return {name: None if t is None else t.to(device) for name, t in tensors.items()}


def assert_a_graph_repeats(step, x):
    """A CUDA graph of `step`, replayed with other numbers in x, gives what `step` then gives."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step()))
