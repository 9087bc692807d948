"""The selective scan on a GPU, by Triton kernels (ops/kernels/triton/)."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.record import contiguous_channels
from longvision.ops.kernels.triton import layout
from longvision.ops.selective_scan.inputs import ScanInputs


def forward(inputs: ScanInputs, states_BKEN: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk, unless that is None."""
    from longvision.ops.kernels.triton import scan

    z_BME = None if inputs.z_BME is None else contiguous_channels(inputs.z_BME)
    return scan.forward(_scan(inputs), z_BME, states=states_BKEN)


def backward(grad_BME: Tensor, states_BKEN: Tensor, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias."""
    from longvision.ops.kernels.triton import gate, scan

    call, dz_BME = _scan(inputs), None
    grad_BME = grad_BME.contiguous()
    if inputs.z_BME is not None:
        dz_BME = torch.empty_like(inputs.z_BME, memory_format=torch.contiguous_format)
        # Computed again rather than saved; in float32, so that each gradient is rounded once.
        ungated_BME = scan.forward(call, out=torch.empty_like(grad_BME, dtype=torch.float32))
        grad_BME = gate.backward(grad_BME, ungated_BME, contiguous_channels(inputs.z_BME), dz_BME)
    grads = scan.backward(call, grad_BME, states_BKEN)
    # Copies: where there is one token and one state, `contiguous` would leave both in one piece of memory.
    dB_BMN, dC_BMN = (grad.clone(memory_format=torch.contiguous_format) for grad in grads.dBC_BMN2.unbind(-1))
    return grads.dx_BME, grads.dstep_BME, grads.dA_EN, dB_BMN, dC_BMN, grads.dD_E, dz_BME, grads.dbias_E


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, E, N)."""
    batch, tokens, width = inputs.x_BME.shape
    return layout.states_shape(batch, tokens, width, inputs.A_EN.shape[1])


def _scan(inputs: ScanInputs) -> Any:
    from longvision.ops.kernels.triton.scan import Scan

    return Scan(
        contiguous_channels(inputs.x_BME),
        contiguous_channels(inputs.delta_BME),
        torch.stack((inputs.B_BMN.float(), inputs.C_BMN.float()), dim=-1),
        inputs.A_EN.contiguous(),
        None if inputs.D_E is None else inputs.D_E.contiguous(),
        None if inputs.delta_bias_E is None else inputs.delta_bias_E.contiguous(),
        layout.sequence_numbers(inputs.cu_seqlens, inputs.x_BME),
        softplus="take" if inputs.delta_softplus else "none",
        log_decay=False,
        reverse=inputs.reverse,
    )
