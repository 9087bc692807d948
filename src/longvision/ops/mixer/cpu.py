"""A Mamba mixer on the kernels in C++: little is saved for the backward pass, little is copied.

Forward: norm and input projection. Then in each direction: convolution and SiLU; the matmul with x_proj, which gives
the low-rank step, B and C; the scan, which makes the step from them and, in the last direction, adds what the other
gave and applies the gate. Then the output projection. Saved are x and z, the small projections and the states between
chunks of tokens; all else, the normalised input included, is computed again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import cpu as conv
from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import Library, kernels_for
from longvision.ops.kernels.cpp.matmul import matmul
from longvision.ops.kernels.cpp.record import contiguous, pack, rows
from longvision.ops.mixer import chunks
from longvision.ops.mixer.cpu_kernel import Part, normed, run, tokens_times
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection
from longvision.ops.rms_norm import cpu as norm
from longvision.ops.selective_scan.cpu import ScanGradients, num_chunks, scan_record
from longvision.ops.selective_scan.inputs import ScanInputs


class Saved(NamedTuple):
    """For the backward: x and z, and of each of W directions the projections and the states. Empty, or all there."""

    xz_BMF: Tensor
    projections_WBMP: Tensor
    states_WBKNE: Tensor


def saved_shapes(inputs: MixerInputs, save_for_backward: bool) -> tuple[tuple[int, ...], ...]:
    """Of each tensor of `Saved`."""
    if not save_for_backward:
        return (0,), (0,), (0,)
    (batch, tokens, _), directions = inputs.x_BMD.shape, inputs.directions
    width, states = directions[0].A_log_EN.shape
    return (
        (batch, tokens, 2 * width),
        (len(directions), batch, tokens, directions[0].x_proj_PE.shape[0]),
        (len(directions), batch, num_chunks(tokens, inputs.cu_seqlens), states, width),
    )


def forward(inputs: MixerInputs, save_for_backward: bool) -> tuple[Tensor, Saved]:
    """-> the output (B, M, D), and what the backward needs (empty unless `save_for_backward`)."""
    library = kernels_for(inputs.dtype)
    if chunks.pay(inputs, save_for_backward):
        return chunks.forward(inputs), _nothing_saved(library)
    in_proj_DF, out_proj_ED = inputs.in_proj_FD.to(inputs.dtype).t(), inputs.out_proj_DE.to(inputs.dtype).t()
    xz_BMF = tokens_times(normed(inputs.x_BMD, inputs)[0], in_proj_DF)
    _, projections, states = saved_shapes(inputs, True)
    projections_WBMP = cached_empty(*projections, dtype=library.dtype)
    states_WBKNE = cached_empty(*states, dtype=library.real) if save_for_backward else None
    gated_BME = _between(library, xz_BMF, inputs, projections_WBMP, states_WBKNE)
    saved = _nothing_saved(library) if states_WBKNE is None else Saved(xz_BMF, projections_WBMP, states_WBKNE)
    if not inputs.residual:
        return tokens_times(gated_BME, out_proj_ED), saved
    if inputs.dtype != inputs.x_BMD.dtype:
        return tokens_times(gated_BME, out_proj_ED) + inputs.x_BMD, saved
    return tokens_times(gated_BME, out_proj_ED, inputs.x_BMD), saved


def _nothing_saved(library: Library) -> Saved:
    empty = torch.empty(0, dtype=library.dtype)
    return Saved(empty, empty.clone(), torch.empty(0, dtype=library.real))


def _between(
    library: Library, xz_BMF: Tensor, inputs: MixerInputs, projections_WBMP: Tensor, states_WBKNE: Tensor | None
) -> Tensor:
    """Between the projections: (B, M, 2 E) -> gated (B, M, E)."""
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    parts, partial_BME = [], None
    for i, direction in enumerate(inputs.directions):
        u_BME = cached_empty(*x_BME.shape, dtype=library.dtype)
        last = i + 1 == len(inputs.directions)
        states_BKNE = None if states_WBKNE is None else states_WBKNE[i]
        if not last:  # over u, if it has the precision that is summed in
            same = library.dtype == library.real
            partial_BME = u_BME if same else cached_empty(*x_BME.shape, dtype=library.real)
        parts.append(Part(direction, u_BME, projections_WBMP[i], None if last else partial_BME, states_BKNE))
    tokens = x_BME.shape[1]
    boundaries, slots = boundaries_for_cpu(inputs.cu_seqlens, tokens), num_chunks(tokens, inputs.cu_seqlens)
    run(library, x_BME, z_BME, parts, partial_BME, 1 / len(parts), boundaries, boundaries, slots)
    return u_BME


def backward(grad_BMD: Tensor, saved: Saved, inputs: MixerInputs) -> list[Tensor]:
    """Gradients of `inputs.tensors()`, each in its tensor's dtype."""
    dtype, x_BMD, weight_D = inputs.dtype, inputs.x_BMD, inputs.norm_weight_D
    dout_BMD = grad_BMD.to(dtype).contiguous()
    dgated_BME = tokens_times(dout_BMD, inputs.out_proj_DE.to(dtype))
    dxz_BMF, of_directions, gated_BME = _directions_backward(dgated_BME, saved, inputs)
    normed_BMD, inverse_BM = normed(x_BMD, inputs)
    of_weights = [
        _weight_gradient(dxz_BMF, normed_BMD, inputs.in_proj_FD),
        _weight_gradient(dout_BMD, gated_BME, inputs.out_proj_DE),
    ]
    dx_BMD = tokens_times(dxz_BMF, inputs.in_proj_FD.to(dtype))
    if weight_D is not None:
        assert inverse_BM is not None
        dx_BMD, dweight_D = norm.backward(dx_BMD, inverse_BM, x_BMD, weight_D, inputs.eps, dtype)
        of_weights.append(dweight_D)
    dx_BMD = dx_BMD.to(x_BMD.dtype)
    return [dx_BMD.add_(grad_BMD) if inputs.residual else dx_BMD, *of_directions, *of_weights]


def _directions_backward(grad_BME: Tensor, saved: Saved, inputs: MixerInputs) -> tuple[Tensor, list[Tensor], Tensor]:
    """-> gradients of xz and of the directions' parameters, and what the forward gave the output projection."""
    call = _Call(saved.xz_BMF, inputs)
    dxz_BMF = cached_empty(*saved.xz_BMF.shape, dtype=inputs.dtype)
    dx_BME, dz_BME = dxz_BMF.chunk(2, dim=-1)
    shape, directions = grad_BME.shape, inputs.directions
    partial_BME = None if len(directions) == 1 else cached_empty(*shape, dtype=call.library.real)
    if partial_BME is not None and partial_BME.dtype == grad_BME.dtype:
        gated_BME = partial_BME  # the scan reads a chunk of the other direction's output before it writes over it
    else:
        gated_BME = cached_empty(*shape, dtype=grad_BME.dtype)

    parameters: list[Tensor] = []
    for i, direction in enumerate(directions):
        last = i + 1 == len(directions)
        written = (None, gated_BME, dz_BME) if last else (partial_BME, None, None)
        projection_BMP, states_BKNE = saved.projections_WBMP[i], saved.states_WBKNE[i]
        other_BME = partial_BME if last else None
        du_BME, of_scan = call.scan_backward(direction, grad_BME, projection_BMP, states_BKNE, other_BME, written)
        of_filter = conv.backward_into(dx_BME, du_BME, call.conv_inputs(direction), add=i > 0)
        parameters += [grad.to(t.dtype) for grad, t in zip((*of_filter, *of_scan), direction[:-1])]
    return dxz_BMF, parameters, gated_BME


def _projection_gradients(
    grads: ScanGradients, direction: ScanDirection, u_BME: Tensor, projection_BMP: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """-> gradients of u, and of x_proj, dt_proj, dt_bias, A_log, D."""
    rank, real = direction.dt_proj_ER.shape[1], grads.dx.dtype
    ddelta_TE = grads.ddelta.flatten(0, 1)
    dprojection_BMP = grads.dx.new_empty(projection_BMP.shape)
    dprojection_TP = dprojection_BMP.flatten(0, 1)
    matmul(ddelta_TE, direction.dt_proj_ER.to(real), out=dprojection_TP[:, :rank])
    torch.sum(grads.dBC_parts, 0, out=dprojection_BMP[..., rank:])

    ddt_proj_ER = matmul(ddelta_TE.t(), projection_BMP[..., :rank].flatten(0, 1).to(real))
    dx_proj_PE = matmul(dprojection_TP.to(u_BME.dtype).t(), u_BME.flatten(0, 1))
    dx_TE = grads.dx.flatten(0, 1)
    matmul(dprojection_TP, direction.x_proj_PE.to(real), dx_TE, out=dx_TE)
    dA_log_EN, dD_E, dbias_E = grads.of_parameters()
    return grads.dx, (dx_proj_PE, ddt_proj_ER, dbias_E, dA_log_EN, dD_E)


def _weight_gradient(grad_BMO: Tensor, input_BMI: Tensor, weight_OI: Tensor) -> Tensor:
    return matmul(grad_BMO.flatten(0, 1).t(), input_BMI.flatten(0, 1)).to(weight_OI.dtype)


class _Call:
    """What the directions of a backward share: the two halves of xz, and how the kernels are called."""

    def __init__(self, xz_BMF: Tensor, inputs: MixerInputs) -> None:
        assert len(inputs.directions) in (1, 2), "the sum of the directions is made in the last one's scan"
        self.library = kernels_for(inputs.dtype)
        self.x, self.z = xz_BMF.chunk(2, dim=-1)
        self.scale = 1 / len(inputs.directions)
        self.cu_seqlens = inputs.cu_seqlens
        self.boundaries = boundaries_for_cpu(inputs.cu_seqlens, xz_BMF.shape[1])

    def conv_inputs(self, direction: ScanDirection) -> conv.ConvInputs:
        own = direction.filter_EK, direction.filter_bias_E
        return conv.ConvInputs(self.x, *own, self.cu_seqlens, silu=True, reverse=direction.reverse)

    def scan_backward(
        self,
        direction: ScanDirection,
        grad_BME: Tensor,
        projection_BMP: Tensor,
        states_BKNE: Tensor,
        other_BME: Tensor | None,
        written: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """-> gradients of u, and of x_proj, dt_proj, dt_bias, A_log, D; `written` as in scan.h."""
        u_BME = conv.forward(self.conv_inputs(direction))
        scan, A_log_EN = self._scan(direction, u_BME, projection_BMP, other_BME)
        grads = ScanGradients(self.library, u_BME.shape, A_log_EN)
        outputs = b"".join(pack(*rows(tensor)) for tensor in written)
        self.library.scan_backward(scan + grads.record(grad_BME, states_BKNE) + outputs)
        return _projection_gradients(grads, direction, u_BME, projection_BMP)

    def _scan(
        self, direction: ScanDirection, u_BME: Tensor, projection_BMP: Tensor, other_BME: Tensor | None
    ) -> tuple[bytes, Tensor]:
        """-> the scan's record, and A_log as it stands there."""
        rank, states = direction.dt_proj_ER.shape[1], direction.A_log_EN.shape[1]
        low, B, C = projection_BMP.split([rank, states, states], dim=-1)
        weight, bias, A_log, D = (contiguous(t, self.library.real) for t in direction[3:7])
        self._alive = weight, bias, A_log, D  # until the next record: this one holds no more than their addresses
        inputs = ScanInputs(u_BME, low, A_log, B, C, D, self.z, bias, None, True, direction.reverse)
        return scan_record(inputs, self.boundaries, weight, other_BME, self.scale, log_decay=True), A_log
