"""The selective scan in plain torch, a chunk of tokens at a time: runs on every device, trains at tolerable speed.

All that does not depend on the token before (decays, inputs, outputs) is computed for a whole chunk at once; what
remains per token is one multiply-add on the state. The forward saves the state with which each chunk begins; the
backward recomputes a chunk from it, so that no (B, M, E, N) tensor is ever held, only (B, CHUNK, E, N).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.selective_scan.inputs import ScanInputs
from longvision.ops.selective_scan.reference import reset_positions, step_size

CHUNK = 16  # tokens; states saved for the backward then weigh as much as one (B, M, E) tensor at N = 16
CACHE = 2**20  # elements of a (rows, CHUNK, E, N) tensor: rows of the batch are taken so that it stays in the cache


# The four (rows, CHUNK, E, N) tensors that a pass works in, by name. Fresh ones for each chunk would cost more in
# page faults than the arithmetic in them.
Scratch = dict[str, Tensor]


def forward(inputs: ScanInputs, states_BKEN: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk, unless that is None."""
    y_BME = inputs.x_BME.new_empty(inputs.x_BME.shape)
    scratch: Scratch = {}
    for rows in _row_groups(inputs):
        _forward_rows(_Scan(inputs, rows, scratch), y_BME[rows], None if states_BKEN is None else states_BKEN[rows])
    return y_BME


def _forward_rows(scan: "_Scan", y_BME: Tensor, states_BKEN: Tensor | None) -> None:
    h_BEN = scan.A.new_zeros(len(y_BME), *scan.A.shape)
    for k, chunk in scan.chunks():
        if states_BKEN is not None:
            states_BKEN[:, k] = h_BEN
        h_BLEN, _ = scan.run(chunk, h_BEN)
        h_BEN = h_BLEN[:, scan.last(h_BLEN)].clone()  # the next chunk reuses the memory
        y_BLE = scan.output(h_BLEN, chunk)
        y_BME[:, chunk] = y_BLE if scan.inputs.z_BME is None else y_BLE * F.silu(scan.z(chunk))


def backward(grad_BME: Tensor, states_BKEN: Tensor, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias."""
    dtype = states_BKEN.dtype
    like_x, like_B = inputs.x_BME.shape, inputs.B_BMN.shape
    dx, ddelta, dB, dC = (states_BKEN.new_empty(shape) for shape in (like_x, like_x, like_B, like_B))
    dz = None if inputs.z_BME is None else states_BKEN.new_empty(like_x)
    dA_EN, dD_E = states_BKEN.new_zeros(inputs.A_EN.shape), states_BKEN.new_zeros(like_x[2])
    scratch: Scratch = {}
    for rows in _row_groups(inputs):
        dz_rows = None if dz is None else dz[rows]
        grads = _Gradients(dx[rows], ddelta[rows], dB[rows], dC[rows], dz_rows, dA_EN, dD_E)
        _backward_rows(_Scan(inputs, rows, scratch), grad_BME[rows], states_BKEN[rows], grads)

    if inputs.delta_softplus:
        ddelta *= torch.sigmoid(step_size(inputs.delta_BME, inputs.delta_bias_E, False, dtype))
    dbias_E = None if inputs.delta_bias_E is None else ddelta.sum((0, 1))
    return dx, ddelta, dA_EN, dB, dC, dD_E, dz, dbias_E


class _Gradients(NamedTuple):
    """Written in place: the first five per token, the last two summed over all tokens."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    D: Tensor


def _backward_rows(scan: "_Scan", grad_BME: Tensor, states_BKEN: Tensor, grads: _Gradients) -> None:
    """With g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1} and a_t = exp(delta_t A), going against the scan's direction:

    dx = delta (g B), dB = g (delta x), dC = h dy, d(delta A) = g a h_{t-1}.
    """
    g_BEN = torch.zeros_like(states_BKEN[:, 0])  # a_{t+1} g_{t+1}, from the chunk done before
    for k, chunk in reversed(list(scan.chunks())):
        h_BLEN, decay_BLEN = scan.run(chunk, states_BKEN[:, k])
        x, delta, B, C = scan.x(chunk), scan.delta(chunk), scan.B(chunk), scan.C(chunk)

        dy_BLE = grad_BME[:, chunk].to(scan.dtype)
        if grads.z is not None:
            z = scan.z(chunk)
            grads.z[:, chunk] = dy_BLE * scan.output(h_BLEN, chunk) * _silu_slope(z)
            dy_BLE = dy_BLE * F.silu(z)
        grads.C[:, chunk] = _over_channels(dy_BLE, h_BLEN)

        g_BLEN = scan.times("gradient", dy_BLE.unsqueeze(-1), C.unsqueeze(2))
        for t in reversed(scan.order(g_BLEN)):
            torch.mul(decay_BLEN[:, t], g_BLEN[:, t].add_(g_BEN), out=g_BEN)

        dinput_BLE = scan.over_states(g_BLEN, B)  # gradient of delta x
        grads.B[:, chunk] = _over_channels(delta * x, g_BLEN)
        dexponent_BLEN = scan.times_state_before(g_BLEN.mul_(decay_BLEN), h_BLEN, states_BKEN[:, k])
        grads.delta[:, chunk] = scan.times("product", dexponent_BLEN, scan.A).sum(-1).addcmul_(dinput_BLE, x)
        grads.A.add_(dexponent_BLEN.mul_(delta.unsqueeze(-1)).sum((0, 1)))
        grads.x[:, chunk] = dinput_BLE * delta
        if scan.inputs.D_E is not None:
            grads.x[:, chunk] += dy_BLE * scan.inputs.D_E.to(scan.dtype)
            grads.D.add_((dy_BLE * x).sum((0, 1)))


def _row_groups(inputs: ScanInputs) -> Iterator[slice]:
    batch, tokens, width = inputs.x_BME.shape
    rows = max(1, CACHE // (min(tokens, CHUNK) * width * inputs.A_EN.shape[1]))
    for start in range(0, batch, rows):
        yield slice(start, start + rows)


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, E, N)."""
    batch, tokens, width = inputs.x_BME.shape
    return batch, -(-tokens // CHUNK), width, inputs.A_EN.shape[1]


class _Scan:
    """The inputs in the precision of the computation, sliced by chunk, and the order of the tokens."""

    def __init__(self, inputs: ScanInputs, rows: slice, scratch: Scratch) -> None:
        self.scratch = scratch
        self.inputs = inputs.rows(rows)
        self.dtype = torch.promote_types(inputs.x_BME.dtype, torch.float32)
        self.A = inputs.A_EN.to(self.dtype)
        self.resets = reset_positions(inputs.cu_seqlens, inputs.reverse)

    def times(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """left * right, broadcast to (rows, L, E, N), in the scratch tensor of that name."""
        shape = (*left.shape[:3], right.shape[-1])
        flat = self.scratch.get(name)
        if flat is None or flat.numel() < math.prod(shape):
            flat = self.scratch[name] = left.new_empty(math.prod(shape))
        return torch.mul(left, right, out=flat[: math.prod(shape)].view(shape))

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """(index, tokens) of each chunk in the order of the scan."""
        tokens = self.inputs.x_BME.shape[1]
        starts = range(0, tokens, CHUNK)
        for start in reversed(starts) if self.inputs.reverse else starts:
            yield start // CHUNK, slice(start, min(start + CHUNK, tokens))

    def x(self, chunk: slice) -> Tensor:
        return self.inputs.x_BME[:, chunk].to(self.dtype)

    def B(self, chunk: slice) -> Tensor:
        return self.inputs.B_BMN[:, chunk].to(self.dtype)

    def C(self, chunk: slice) -> Tensor:
        return self.inputs.C_BMN[:, chunk].to(self.dtype)

    def z(self, chunk: slice) -> Tensor:
        assert self.inputs.z_BME is not None
        return self.inputs.z_BME[:, chunk].to(self.dtype)

    def delta(self, chunk: slice) -> Tensor:
        bias, softplus = self.inputs.delta_bias_E, self.inputs.delta_softplus
        return step_size(self.inputs.delta_BME[:, chunk], bias, softplus, self.dtype)

    def order(self, chunk_BLEN: Tensor) -> range:
        """Positions in the chunk, in the order in which the state visits them."""
        length = chunk_BLEN.shape[1]
        return range(length)[::-1] if self.inputs.reverse else range(length)

    def last(self, chunk_BLEN: Tensor) -> int:
        return self.order(chunk_BLEN)[-1]

    def run(self, chunk: slice, h_BEN: Tensor) -> tuple[Tensor, Tensor]:
        """State before the chunk (B, E, N) -> states (B, L, E, N) and decays (B, L, E, N)."""
        delta_BLE = self.delta(chunk)
        decay_BLEN = self.times("decay", delta_BLE.unsqueeze(-1), self.A).exp_()
        for t in self.resets:  # a packed sequence begins here: what came before decays to nothing
            if chunk.start <= t < chunk.stop:
                decay_BLEN[:, t - chunk.start] = 0
        h_BLEN = self.times("state", (delta_BLE * self.x(chunk)).unsqueeze(-1), self.B(chunk).unsqueeze(2))
        for t in self.order(h_BLEN):
            h_BEN = h_BLEN[:, t].addcmul_(decay_BLEN[:, t], h_BEN)
        return h_BLEN, decay_BLEN

    def times_state_before(self, g_BLEN: Tensor, h_BLEN: Tensor, first_BEN: Tensor) -> Tensor:
        """In place: g times, for each token, the state that it found."""
        if self.inputs.reverse:
            g_BLEN[:, :-1].mul_(h_BLEN[:, 1:])
            g_BLEN[:, -1].mul_(first_BEN)
        else:
            g_BLEN[:, 1:].mul_(h_BLEN[:, :-1])
            g_BLEN[:, 0].mul_(first_BEN)
        return g_BLEN

    def over_states(self, h_BLEN: Tensor, weight_BLN: Tensor) -> Tensor:
        """Sum over the states, (B, L, E). Faster than a matrix-vector product for each of the B L small matrices."""
        return self.times("product", h_BLEN, weight_BLN.unsqueeze(2)).sum(-1)

    def output(self, h_BLEN: Tensor, chunk: slice) -> Tensor:
        """h C + D x, (B, L, E)."""
        y_BLE = self.over_states(h_BLEN, self.C(chunk))
        return y_BLE if self.inputs.D_E is None else y_BLE + self.inputs.D_E.to(self.dtype) * self.x(chunk)


def _over_channels(weight_BLE: Tensor, h_BLEN: Tensor) -> Tensor:
    """Sum over the channels, (B, L, N), out of autocast's reach: a backward inside it would round to bf16."""
    with torch.autocast(h_BLEN.device.type, enabled=False):
        return (weight_BLE.unsqueeze(2) @ h_BLEN).squeeze(2)


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))
