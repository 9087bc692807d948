"""The selective scan on a GPU, by Triton kernels (ops/kernels/triton/)."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.record import contiguous_channels
from longvision.ops.kernels.triton import layout
from longvision.ops.selective_scan.inputs import ScanInputs, gradient_of_groups


def forward(inputs: ScanInputs, states_BKEN: Tensor | None, last_BEN: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk and the one behind the last token, unless those are None."""
    from longvision.ops.kernels.triton import scan

    z_BME = None if inputs.z_BME is None else contiguous_channels(inputs.z_BME)
    initial_BEN = _float(inputs.initial_state_BEN)
    return scan.forward(_scan(inputs), z_BME, states=states_BKEN, initial_BEN=initial_BEN, last_BEN=last_BEN)


def backward(
    grad_BME: Tensor, grad_last_BEN: Tensor | None, states_BKEN: Tensor, inputs: ScanInputs
) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias and the initial state."""
    from longvision.ops.kernels.triton import gate, scan

    call, dz_BME = _scan(inputs), None
    grad_BME = grad_BME.contiguous()
    if inputs.z_BME is not None:
        dz_BME = torch.empty_like(inputs.z_BME, memory_format=torch.contiguous_format)
        # Computed again rather than saved; in float32, so that each gradient is rounded once.
        ungated_BME = torch.empty_like(grad_BME, dtype=torch.float32)
        scan.forward(call, out=ungated_BME, initial_BEN=_float(inputs.initial_state_BEN))
        grad_BME = gate.backward(grad_BME, ungated_BME, contiguous_channels(inputs.z_BME), dz_BME)
    of_initial = inputs.initial_state_BEN is not None
    grads = scan.backward(call, grad_BME, states_BKEN, _float(grad_last_BEN), of_initial)
    # Copies: where there is one token and one state, `contiguous` would leave both in one piece of memory.
    dB, dC = (
        _sum_groups(grad, given).clone(memory_format=torch.contiguous_format)
        for grad, given in zip(grads.dBC_BMN2.unbind(-1), (inputs.B_BMN, inputs.C_BMN))
    )
    return (
        *(grads.dx_BME, grads.dstep_BME, grads.dA_EN, dB, dC),
        *(grads.dD_E, dz_BME, grads.dbias_E, grads.dinitial_BEN),
    )


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, E, N)."""
    batch, tokens, width = inputs.x_BME.shape
    return layout.states_shape(batch, tokens, width, inputs.A_EN.shape[1])


def _scan(inputs: ScanInputs) -> Any:
    from longvision.ops.kernels.triton.scan import Scan

    return Scan(
        contiguous_channels(inputs.x_BME),
        contiguous_channels(inputs.delta_BME),
        torch.stack([_repeat_groups(t.float(), inputs.groups) for t in (inputs.B_BMN, inputs.C_BMN)], dim=-1),
        inputs.A_EN.contiguous(),
        None if inputs.D_E is None else inputs.D_E.contiguous(),
        None if inputs.delta_bias_E is None else inputs.delta_bias_E.contiguous(),
        layout.sequence_numbers(inputs.cu_seqlens, inputs.x_BME),
        softplus="take" if inputs.delta_softplus else "none",
        log_decay=False,
        reverse=inputs.reverse,
        grid=inputs.grid,
    )


def _repeat_groups(B: Tensor, groups: int) -> Tensor:
    """B or C for so many groups, (B, M, G, N): those that share one get a copy each, small beside x. One: as it is."""
    if B.ndim == 4:
        return B.repeat_interleave(groups // B.shape[2], dim=2)
    return B if groups == 1 else B.unsqueeze(2).expand(-1, -1, groups, -1)


def _sum_groups(grad: Tensor, B: Tensor) -> Tensor:
    """The gradient of B or C itself, from that of what `_repeat_groups` gave."""
    return grad if grad.ndim == 3 else gradient_of_groups(grad.permute(2, 0, 1, 3), B)


def _float(state_BEN: Tensor | None) -> Tensor | None:
    return None if state_BEN is None else state_BEN.float().contiguous()
