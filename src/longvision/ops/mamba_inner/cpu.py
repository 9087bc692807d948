"""What stands between the projections of a Mamba mixer, on the kernels in C++: little is kept, little is copied.

Forward, in each direction: convolution and SiLU; the product with x_proj, which gives the low-rank step, B and C; the
scan, which makes the step from them and, in the last direction, adds what the other gave and applies the gate. Kept for
the backward are these small products and the states between pieces of tokens; all else is computed again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import cpu as conv
from longvision.ops.mamba_inner.walk import Walk
from longvision.ops.native import Library, kernels, pack, rows
from longvision.ops.packing import sequence_borders
from longvision.ops.selective_scan.cpu import ScanGradients, new_states, scan_record


class Kept(NamedTuple):
    """For the backward: of each walk the products with x_proj, and the states."""

    projections_WBMP: Tensor
    states_WBKNE: Tensor


class Gradients(NamedTuple):
    """Of the input, of each walk's parameters in the order of `Walk`, and of the output projection."""

    xz_BMF: Tensor
    parameters: list[Tensor]
    out_proj_DE: Tensor | None


def forward(
    xz_BMF: Tensor, walks: Sequence[Walk], out_proj_DE: Tensor | None, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Tensor, Kept]:
    """-> (B, M, D), and what the backward needs (of the states nothing, unless `keep`)."""
    inner = _Inner(xz_BMF, walks, cu_seqlens)
    kept = new_kept(xz_BMF, walks, cu_seqlens, keep)
    partial_BME, gated_BME = None, xz_BMF
    for i, walk in enumerate(walks):
        u_BME = inner.convolved(walk)
        projection_BMP = kept.projections_WBMP[i]
        torch.mm(u_BME.flatten(0, 1), inner.stored(walk.x_proj_PE).t(), out=projection_BMP.flatten(0, 1))
        scan, _alive = inner.scan(walk, u_BME, projection_BMP, partial_BME)
        states = pack(kept.states_WBKNE[i].data_ptr(), kept.states_WBKNE.shape[2]) if keep else pack(0, 0)
        # The scan reads a piece of u before it writes the same piece of its output, so it writes over u.
        if i + 1 < len(walks):
            partial_BME = u_BME if u_BME.dtype == inner.library.real else u_BME.to(inner.library.real)
            inner.library.scan_forward(scan + pack(*rows(None), *rows(partial_BME)) + states)
        else:
            gated_BME = u_BME
            inner.library.scan_forward(scan + pack(*rows(gated_BME), *rows(None)) + states)
    return inner.project_out(gated_BME, out_proj_DE), kept


def backward(
    grad_BMD: Tensor,
    kept: Kept,
    xz_BMF: Tensor,
    walks: Sequence[Walk],
    out_proj_DE: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Gradients:
    """Every gradient, each in its tensor's dtype."""
    inner = _Inner(xz_BMF, walks, cu_seqlens)
    grad_BMD = grad_BMD.to(xz_BMF.dtype)
    grad_BME = (grad_BMD if out_proj_DE is None else grad_BMD @ inner.stored(out_proj_DE)).contiguous()
    dxz_BMF = xz_BMF.new_empty(xz_BMF.shape)
    dx_BME, dz_BME = dxz_BMF.chunk(2, dim=-1)
    gated_BME = None if out_proj_DE is None else torch.empty_like(grad_BME)
    partial_BME = None if len(walks) == 1 else inner.x.new_empty(inner.x.shape, dtype=inner.library.real)

    parameters: list[Tensor] = []
    for i, walk in enumerate(walks):
        u_BME = inner.convolved(walk)
        projection_BMP = kept.projections_WBMP[i]
        last = i + 1 == len(walks)
        scan, A_log_EN = inner.scan(walk, u_BME, projection_BMP, partial_BME if last else None)
        grads = ScanGradients(inner.library, u_BME.shape, A_log_EN)
        written = (None, gated_BME, dz_BME) if last else (partial_BME, None, None)
        outputs = b"".join(pack(*rows(tensor)) for tensor in written)
        inner.library.scan_backward(scan + grads.record(grad_BME, kept.states_WBKNE[i]) + outputs)
        du_BME, of_walk = _projection_gradients(grads, walk, u_BME, projection_BMP)
        of_filter = conv.backward_into(
            dx_BME, du_BME, inner.x, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, cu_seqlens, add=i > 0
        )
        of_walk = (*of_filter, *of_walk)
        parameters += [grad.to(tensor.dtype) for grad, tensor in zip(of_walk, walk.tensors())]
    return Gradients(dxz_BMF, parameters, _transposed_product(grad_BMD, gated_BME, out_proj_DE))


def new_kept(xz_BMF: Tensor, walks: Sequence[Walk], cu_seqlens: Tensor | None, keep: bool) -> Kept:
    x_BME = xz_BMF[..., : xz_BMF.shape[-1] // 2]
    projections = xz_BMF.new_empty(len(walks), *xz_BMF.shape[:2], walks[0].x_proj_PE.shape[0])
    shape = new_states(x_BME, walks[0].A_log_EN, cu_seqlens).shape
    real = torch.promote_types(xz_BMF.dtype, torch.float32)
    return Kept(projections, xz_BMF.new_empty((len(walks), *shape) if keep else (0,), dtype=real))


def _projection_gradients(
    grads: ScanGradients, walk: Walk, u_BME: Tensor, projection_BMP: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """-> gradients of u, and of x_proj, dt_proj, dt_bias, A_log, D."""
    rank = walk.dt_proj_ER.shape[1]
    real = grads.dx.dtype
    dprojection_BMP = grads.dx.new_empty(projection_BMP.shape)
    ddelta_TE = grads.ddelta.flatten(0, 1)
    torch.matmul(ddelta_TE, walk.dt_proj_ER.to(real), out=(dlow_TR := ddelta_TE.new_empty(len(ddelta_TE), rank)))
    dprojection_BMP[..., :rank] = dlow_TR.view_as(dprojection_BMP[..., :rank])
    torch.sum(grads.dBC_parts, 0, out=dprojection_BMP[..., rank:])
    dprojection_TP = dprojection_BMP.flatten(0, 1)

    ddt_proj_ER = ddelta_TE.t() @ projection_BMP[..., :rank].flatten(0, 1).to(real)
    dx_proj_PE = dprojection_TP.to(u_BME.dtype).t() @ u_BME.flatten(0, 1)
    grads.dx.flatten(0, 1).addmm_(dprojection_TP, walk.x_proj_PE.to(real))
    return grads.dx, (dx_proj_PE, ddt_proj_ER, grads.dbias(), grads.dA(), grads.dD())


def _transposed_product(grad_BMD: Tensor, input_BME: Tensor | None, weight_DE: Tensor | None) -> Tensor | None:
    if input_BME is None or weight_DE is None:
        return None
    return (grad_BMD.flatten(0, 1).t() @ input_BME.flatten(0, 1)).to(weight_DE.dtype)


class _Inner:
    """What both passes share: the two halves of the input, and calls of the kernels."""

    def __init__(self, xz_BMF: Tensor, walks: Sequence[Walk], cu_seqlens: Tensor | None) -> None:
        assert len(walks) in (1, 2), "the sum of the directions is made in the last one's scan"
        library = kernels(xz_BMF.dtype)
        assert library is not None, "available() was not asked"
        self.library: Library = library
        self.x, self.z = xz_BMF.chunk(2, dim=-1)
        self.scale = 1 / len(walks)
        self.cu_seqlens = cu_seqlens
        self.borders = sequence_borders(cu_seqlens, xz_BMF.shape[1])

    def stored(self, weight: Tensor) -> Tensor:
        """As the matrix products want it."""
        return weight.to(self.library.dtype)

    def convolved(self, walk: Walk) -> Tensor:
        return conv.forward(self.x, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, self.cu_seqlens)

    def scan(self, walk: Walk, u_BME: Tensor, projection_BMP: Tensor, other_BME: Tensor | None) -> tuple[bytes, Tensor]:
        """The scan's record, and A_log; the record's other tensors are the walk's own, and so alive."""
        rank, states = walk.dt_proj_ER.shape[1], walk.A_log_EN.shape[1]
        low, B, C = projection_BMP.split([rank, states, states], dim=-1)
        weight, bias, A_log, D = (
            t.to(self.library.real).contiguous() for t in (walk.dt_proj_ER, walk.dt_bias_E, walk.A_log_EN, walk.D_E)
        )
        record = scan_record(
            *(u_BME, low, A_log, B, C, D, self.z, bias, self.borders, True, walk.reverse),
            weight_ER=weight,
            other_BME=other_BME,
            scale=self.scale,
            log_decay=True,
        )
        self._alive = (weight, bias, A_log, D)
        return record, A_log

    def project_out(self, gated_BME: Tensor, out_proj_DE: Tensor | None) -> Tensor:
        return gated_BME if out_proj_DE is None else torch.matmul(gated_BME, self.stored(out_proj_DE).t())
