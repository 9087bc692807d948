"""A Mamba mixer on the kernels in C++: little is kept for the backward pass, little is copied.

Forward: the input projection. Then in each direction: convolution and SiLU; the product with x_proj, which gives the
low-rank step, B and C; the scan, which makes the step from them and, in the last direction, adds what the other gave
and applies the gate. Then the output projection. Kept are x and z, the small products and the states between pieces of
tokens; all else is computed again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import cpu as conv
from longvision.ops.kernels.cpp import Library, address, dense, dense_rows, double, kernels, pack, product, room, rows
from longvision.ops.mamba_inner.walk import Inner, Walk
from longvision.ops.packing import sequence_borders
from longvision.ops.selective_scan.cpu import ScanGradients, num_pieces, scan_record


class Kept(NamedTuple):
    """For the backward: x and z (empty where they are the input), and of each walk the products with x_proj, and the
    states."""

    xz_BMF: Tensor
    projections_WBMP: Tensor
    states_WBKNE: Tensor


def kept_shapes(x_BMD: Tensor, inner: Inner, keep: bool) -> tuple[tuple[int, ...], ...]:
    """Of each tensor of `Kept`."""
    if not keep:
        return (0,), (0,), (0,)
    (batch, tokens, _), walks = x_BMD.shape, inner.walks
    width, states = walks[0].A_log_EN.shape
    return (
        (0,) if inner.in_proj_FD is None else (batch, tokens, 2 * width),
        (len(walks), batch, tokens, walks[0].x_proj_PE.shape[0]),
        (len(walks), batch, num_pieces(tokens, inner.cu_seqlens), states, width),
    )


def nothing_kept(dtype: torch.dtype) -> Kept:
    empty = torch.empty(0, dtype=dtype)
    return Kept(empty, empty.clone(), torch.empty(0, dtype=torch.promote_types(dtype, torch.float32)))


def forward(x_BMD: Tensor, inner: Inner, keep: bool) -> tuple[Tensor, Kept]:
    """-> (B, M, D), and what the backward needs (empty unless `keep`)."""
    gated_BME, kept = forward_between(project_in(x_BMD, inner), inner, keep)
    out_BMD = gated_BME if inner.out_proj_DE is None else tokens_times(gated_BME, inner.out_proj_DE.to(x_BMD.dtype).t())
    return out_BMD, kept


def project_in(x_BMD: Tensor, inner: Inner) -> Tensor:
    """(B, M, D) -> x and z, (B, M, 2 E)."""
    if inner.in_proj_FD is not None:
        return tokens_times(x_BMD, inner.in_proj_FD.to(x_BMD.dtype).t())
    return dense_rows(x_BMD)


def forward_between(xz_BMF: Tensor, inner: Inner, keep: bool) -> tuple[Tensor, Kept]:
    """Between the projections: (B, M, 2 E) -> gated (B, M, E), and what the backward needs."""
    library = kernels(xz_BMF.dtype)
    assert library is not None, "available() was not asked"
    _, projections, states = kept_shapes(xz_BMF, inner, True)
    projections_WBMP = room(*projections, dtype=library.dtype)
    states_WBKNE = room(*states, dtype=library.real) if keep else None
    gated_BME = _inner_forward(library, xz_BMF, inner, projections_WBMP, states_WBKNE)
    if states_WBKNE is None:
        return gated_BME, nothing_kept(library.dtype)
    return gated_BME, Kept(xz_BMF.new_empty(0) if inner.in_proj_FD is None else xz_BMF, projections_WBMP, states_WBKNE)


def _inner_forward(
    library: Library, xz_BMF: Tensor, inner: Inner, projections_WBMP: Tensor, states_WBKNE: Tensor | None
) -> Tensor:
    """-> (B, M, E), gated."""
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    parts, partial_BME = [], None
    for i, walk in enumerate(inner.walks):
        u_BME = room(*x_BME.shape, dtype=library.dtype)
        last = i + 1 == len(inner.walks)
        states_BKNE = None if states_WBKNE is None else states_WBKNE[i]
        if not last:  # over u, if it has the precision that is summed in
            partial_BME = u_BME if library.dtype == library.real else room(*x_BME.shape, dtype=library.real)
        parts.append(Part(walk, u_BME, projections_WBMP[i], None if last else partial_BME, states_BKNE))
    borders = sequence_borders(inner.cu_seqlens, x_BME.shape[1])
    slots = num_pieces(x_BME.shape[1], inner.cu_seqlens)
    run(library, x_BME, z_BME, parts, partial_BME, 1 / len(inner.walks), borders, borders, slots)
    return u_BME


class Part(NamedTuple):
    """A direction in `run`: `Walk` of native/inner.h, where each field is explained."""

    walk: Walk
    u_BME: Tensor
    projection_BMP: Tensor
    partial_BME: Tensor | None
    states_BKNE: Tensor | None = None
    carry_BNE: Tensor | None = None

    def record(self, parameters: Sequence[Tensor]) -> tuple[int, ...]:
        return (
            *(t.data_ptr() for t in parameters),
            *(self.walk.reverse, self.u_BME.data_ptr(), self.projection_BMP.data_ptr()),
            *rows(self.partial_BME),
            *(address(self.states_BKNE), address(self.carry_BNE)),
        )


def run(
    library: Library,
    x_BME: Tensor,
    z_BME: Tensor | None,
    parts: Sequence[Part],
    other_BME: Tensor | None,
    scale: float,
    borders: Tensor,
    visible: Tensor,
    slots: int = 0,
) -> None:
    """Convolution, SiLU, projections and scan of one direction or two: `Inner` of native/inner.h."""
    first = parts[0].walk
    alive = [[dense(t, library.real) for t in part.walk.tensors()] for part in parts]
    records = [part.record(parameters) for part, parameters in zip(parts, alive)]
    records += [(0,) * len(records[0])] * (2 - len(parts))
    library.inner_forward(
        pack(
            *(*x_BME.shape, first.A_log_EN.shape[1], first.dt_proj_ER.shape[1], first.filter_EK.shape[1]),
            *(torch.get_num_threads(), borders.data_ptr(), visible.data_ptr(), len(borders) - 1, slots, len(parts)),
            *rows(x_BME),
            *rows(z_BME),
            *rows(other_BME),
            double(scale),
            *records[0],
            *records[1],
        )
    )


def backward(grad_BMD: Tensor, kept: Kept, x_BMD: Tensor, inner: Inner) -> list[Tensor]:
    """Gradients of x, of each walk's parameters, and of the projections that there are, each in its tensor's dtype."""
    xz_BMF = project_in(x_BMD, inner) if inner.in_proj_FD is None else kept.xz_BMF
    grad_BMD = grad_BMD.to(xz_BMF.dtype).contiguous()
    grad_BME = grad_BMD if inner.out_proj_DE is None else tokens_times(grad_BMD, inner.out_proj_DE.to(xz_BMF.dtype))
    dxz_BMF, of_walks, gated_BME = _walks_backward(grad_BME, kept._replace(xz_BMF=xz_BMF), inner)

    dx_BMD, of_projections = dxz_BMF, []
    if inner.in_proj_FD is not None:
        of_projections.append(_weight_gradient(dxz_BMF, x_BMD, inner.in_proj_FD))
        dx_BMD = tokens_times(dxz_BMF, inner.in_proj_FD.to(dxz_BMF.dtype))
    if inner.out_proj_DE is not None:
        of_projections.append(_weight_gradient(grad_BMD, gated_BME, inner.out_proj_DE))
    return [dx_BMD, *of_walks, *of_projections]


def _walks_backward(grad_BME: Tensor, kept: Kept, inner: Inner) -> tuple[Tensor, list[Tensor], Tensor]:
    """-> gradients of xz and of the walks' parameters, and what the forward gave the output projection."""
    call = _Call(kept.xz_BMF, inner)
    dxz_BMF = room(*kept.xz_BMF.shape, dtype=kept.xz_BMF.dtype)
    dx_BME, dz_BME = dxz_BMF.chunk(2, dim=-1)
    shape = grad_BME.shape
    partial_BME = None if len(inner.walks) == 1 else room(*shape, dtype=call.library.real)
    if partial_BME is not None and partial_BME.dtype == grad_BME.dtype:
        gated_BME = partial_BME  # the scan reads a piece of the other direction's output before it writes over it
    else:
        gated_BME = room(*shape, dtype=grad_BME.dtype)

    parameters: list[Tensor] = []
    for i, walk in enumerate(inner.walks):
        last = i + 1 == len(inner.walks)
        written = (None, gated_BME, dz_BME) if last else (partial_BME, None, None)
        projection_BMP, states_BKNE = kept.projections_WBMP[i], kept.states_WBKNE[i]
        other_BME = partial_BME if last else None
        du_BME, of_walk = call.scan_backward(walk, grad_BME, projection_BMP, states_BKNE, other_BME, written)
        of_filter = conv.backward_into(
            *(dx_BME, du_BME, call.x, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, inner.cu_seqlens),
            add=i > 0,
        )
        parameters += [grad.to(t.dtype) for grad, t in zip((*of_filter, *of_walk), walk.tensors())]
    return dxz_BMF, parameters, gated_BME


def _projection_gradients(
    grads: ScanGradients, walk: Walk, u_BME: Tensor, projection_BMP: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """-> gradients of u, and of x_proj, dt_proj, dt_bias, A_log, D."""
    rank, real = walk.dt_proj_ER.shape[1], grads.dx.dtype
    ddelta_TE = grads.ddelta.flatten(0, 1)
    dprojection_BMP = grads.dx.new_empty(projection_BMP.shape)
    dprojection_TP = dprojection_BMP.flatten(0, 1)
    product(ddelta_TE, walk.dt_proj_ER.to(real), out=dprojection_TP[:, :rank])
    torch.sum(grads.dBC_parts, 0, out=dprojection_BMP[..., rank:])

    ddt_proj_ER = product(ddelta_TE.t(), projection_BMP[..., :rank].flatten(0, 1).to(real))
    dx_proj_PE = product(dprojection_TP.to(u_BME.dtype).t(), u_BME.flatten(0, 1))
    dx_TE = grads.dx.flatten(0, 1)
    product(dprojection_TP, walk.x_proj_PE.to(real), dx_TE, out=dx_TE)
    return grads.dx, (dx_proj_PE, ddt_proj_ER, grads.dbias(), grads.dA(), grads.dD())


def _weight_gradient(grad_BMO: Tensor, input_BMI: Tensor, weight_OI: Tensor) -> Tensor:
    return product(grad_BMO.flatten(0, 1).t(), input_BMI.flatten(0, 1)).to(weight_OI.dtype)


def tokens_times(left_BMK: Tensor, right_KN: Tensor, add_BMN: Tensor | None = None) -> Tensor:
    """(B, M, K) times (K, N), plus (B, M, N)."""
    add_TN = None if add_BMN is None else add_BMN.flatten(0, 1)
    out_BMN = room(*left_BMK.shape[:2], right_KN.shape[1], dtype=left_BMK.dtype)
    product(left_BMK.flatten(0, 1), right_KN, add_TN, out=out_BMN.flatten(0, 1))
    return out_BMN


class _Call:
    """What both passes share: the two halves of xz, and how the kernels are called for a walk."""

    def __init__(self, xz_BMF: Tensor, inner: Inner) -> None:
        assert len(inner.walks) in (1, 2), "the sum of the directions is made in the last one's scan"
        library = kernels(xz_BMF.dtype)
        assert library is not None, "available() was not asked"
        self.library: Library = library
        self.x, self.z = xz_BMF.chunk(2, dim=-1)
        self.scale = 1 / len(inner.walks)
        self.cu_seqlens = inner.cu_seqlens
        self.borders = sequence_borders(inner.cu_seqlens, xz_BMF.shape[1])

    def convolved(self, walk: Walk) -> Tensor:
        return conv.forward(self.x, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, self.cu_seqlens)

    def scan_backward(
        self,
        walk: Walk,
        grad_BME: Tensor,
        projection_BMP: Tensor,
        states_BKNE: Tensor,
        other_BME: Tensor | None,
        written: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """-> gradients of u, and of x_proj, dt_proj, dt_bias, A_log, D; `written` as in native/scan.h."""
        u_BME = self.convolved(walk)
        scan, A_log_EN = self.scan(walk, u_BME, projection_BMP, other_BME)
        grads = ScanGradients(self.library, u_BME.shape, A_log_EN)
        outputs = b"".join(pack(*rows(tensor)) for tensor in written)
        self.library.scan_backward(scan + grads.record(grad_BME, states_BKNE) + outputs)
        return _projection_gradients(grads, walk, u_BME, projection_BMP)

    def scan(self, walk: Walk, u_BME: Tensor, projection_BMP: Tensor, other_BME: Tensor | None) -> tuple[bytes, Tensor]:
        """-> the scan's record, and A_log as it stands there."""
        rank, states = walk.dt_proj_ER.shape[1], walk.A_log_EN.shape[1]
        low, B, C = projection_BMP.split([rank, states, states], dim=-1)
        weight, bias, A_log, D = (
            dense(t, self.library.real) for t in (walk.dt_proj_ER, walk.dt_bias_E, walk.A_log_EN, walk.D_E)
        )
        self._alive = weight, bias, A_log, D  # until the next record: this one holds no more than their addresses
        record = scan_record(
            *(u_BME, low, A_log, B, C, D, self.z, bias, self.borders, True, walk.reverse),
            weight_ER=weight,
            other_BME=other_BME,
            scale=self.scale,
            log_decay=True,
        )
        return record, A_log
