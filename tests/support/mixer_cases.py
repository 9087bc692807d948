"""Inputs for the mixer, its gradients and its truth: shared by the tests of the mixer on every backend."""

from typing import NamedTuple

import torch

from longvision.ops import ScanDirection, mixer
from longvision.ops.mixer.inputs import MixerInputs
from longvision.ops.mixer.reference import mixer_reference

FIELDS = ScanDirection._fields[:-1]
CHANNELS = 5  # of the tokens: x and the output


def make_direction(width, states=4, rank=3, taps=4, reverse=False, dtype=torch.float64):
    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype)

    return ScanDirection(
        filter_EK=normal(width, taps),
        filter_bias_E=normal(width),
        x_proj_PE=normal(rank + 2 * states, width, scale=width**-0.5),
        dt_proj_ER=normal(width, rank),
        dt_bias_E=normal(width) - 1,
        A_log_EN=normal(width, states, scale=0.3),
        D_E=normal(width),
        reverse=reverse,
    )


class Case(NamedTuple):
    """The arguments of `mixer`."""

    x: torch.Tensor
    directions: list[ScanDirection]
    in_proj: torch.Tensor
    out_proj: torch.Tensor
    norm_weight: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    residual: bool = False
    eps: float = 1e-5

    def call(self):
        return mixer(*self[:6], residual=self.residual, eps=self.eps)

    def described(self):
        """As the backends are given it."""
        dtype = (self.x if self.norm_weight is None else self.norm_weight).dtype
        return MixerInputs(*self, dtype)

    def truth(self):
        """The reference, in the dtype of its tensors."""
        return mixer_reference(self.described())

    def of_the_op(self, save_for_backward=True, backend="cpu"):
        """As `torch.ops.longvision.mixer` takes it."""
        return *self.described().for_the_op(), backend, save_for_backward

    def named(self):
        """Each tensor by its name."""
        tensors = {name: getattr(self, name) for name in ("x", "in_proj", "out_proj", "norm_weight")}
        for i, direction in enumerate(self.directions):
            tensors |= {f"{name} of direction {i}": getattr(direction, name) for name in FIELDS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def changed(self, function):
        """`function` of each tensor but the boundaries."""
        directions = [ScanDirection(*map(function, own.tensors()), own.reverse) for own in self.directions]
        in_proj, out_proj = function(self.in_proj), function(self.out_proj)
        norm_weight = None if self.norm_weight is None else function(self.norm_weight)
        return Case(function(self.x), directions, in_proj, out_proj, norm_weight, *self[5:])

    def leaves(self):
        return self.changed(lambda tensor: tensor.detach().requires_grad_())

    def on(self, device):
        cu_seqlens = None if self.cu_seqlens is None else self.cu_seqlens.to(device)
        return self.changed(lambda tensor: tensor.to(device))._replace(cu_seqlens=cu_seqlens)


def make(batch, tokens, width=19, ways=(False, True), dtype=torch.float64, cu_seqlens=None, **options):
    """A mixer alone, without norm and residual."""
    in_proj, out_proj = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2 * width, CHANNELS), (CHANNELS, width))
    )
    return Case(
        torch.randn(batch, tokens, CHANNELS, dtype=torch.float64).to(dtype),
        [make_direction(width, reverse=way, dtype=dtype, **options) for way in ways],
        (in_proj / CHANNELS**0.5).to(dtype),
        (out_proj / width**0.5).to(dtype),
        cu_seqlens=None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32),
    )


def make_block(*shape, dtype=torch.float64, **options):
    """A mixer with norm and residual, which is float32 or better."""
    case = make(*shape, dtype=dtype, **options)
    weight = (torch.rand(CHANNELS, dtype=torch.float64) + 0.5).to(dtype)
    x = case.x.to(torch.promote_types(dtype, torch.float32))
    return case._replace(x=x, norm_weight=weight, residual=True)


MAKERS = (make, make_block)


def value_and_grads(case, function=Case.call, grad=None):
    case = case.leaves()
    y = function(case)
    if grad is None:
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)
    y.backward(grad.to(y.dtype))
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in case.named().items()}}


def truth_of(case, grad=None):
    """In float64: output and every gradient."""
    return value_and_grads(case.changed(torch.Tensor.double), Case.truth, grad)


def in_double(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_near(got, truth, tolerance):
    """|got - truth| / |truth| of each."""
    assert got.keys() == truth.keys()
    far = {}
    for name, expected in truth.items():
        assert got[name].shape == expected.shape and torch.isfinite(got[name]).all(), name
        error = ((got[name].double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        if not error <= tolerance:
            far[name] = f"{error:.1e}"
    assert not far, far


def operators(graph):
    """Our ops among a graph's nodes."""
    return [str(node.target) for node in graph.nodes if "longvision" in str(node.target)]
