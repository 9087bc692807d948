"""The selective scan in plain torch, a chunk of tokens at a time: runs on every device, trains at tolerable speed.

All that does not depend on the token before (decays, inputs, outputs) is computed for a whole chunk at once; what
remains per token is one multiply-add on the state. The forward saves the state with which each chunk begins; the
backward recomputes a chunk from it, so that no (B, M, N, E) tensor is ever held, only (rows, CHUNK, N, E). Channels
come last, so that every operator has long rows to run along, and sums over states or channels are products.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.selective_scan.inputs import ScanInputs
from longvision.ops.selective_scan.reference import biased, reset_positions, step_size

CHUNK = 16  # tokens; states saved for the backward then weigh as much as one (B, M, E) tensor at N = 16
CACHE = 2**20  # elements of a (rows, CHUNK, N, E) tensor: rows of the batch are taken so that it stays in the cache


# The three (rows, CHUNK, N, E) tensors that a pass works in, by name and shape, each with its views by token. Fresh
# ones for each chunk would cost page faults, and fresh views half as much as the multiply-adds on them.
Scratch = dict[tuple[str, torch.Size], tuple[Tensor, tuple[Tensor, ...]]]


def forward(inputs: ScanInputs, states_BKNE: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk, unless that is None."""
    y_BME = inputs.x_BME.new_empty(inputs.x_BME.shape)
    scratch: Scratch = {}
    with _in_full_precision(y_BME):
        for rows in _row_groups(inputs):
            _forward_rows(_Scan(inputs, rows, scratch), y_BME[rows], None if states_BKNE is None else states_BKNE[rows])
    return y_BME


def _forward_rows(scan: "_Scan", y_BME: Tensor, states_BKNE: Tensor | None) -> None:
    h_BNE = scan.A_NE.new_zeros(len(y_BME), *scan.A_NE.shape)
    for k, tokens in scan.chunks():
        if states_BKNE is not None:
            states_BKNE[:, k] = h_BNE
        chunk = scan.run(tokens, h_BNE)
        h_BNE.copy_(chunk.h_BLNE[:, scan.order(chunk.h_BLNE)[-1]])  # the next chunk reuses the memory
        y_BLE = scan.output(chunk)
        y_BME[:, tokens] = y_BLE if scan.inputs.z_BME is None else y_BLE.mul_(F.silu(scan.z(tokens)))


def backward(grad_BME: Tensor, states_BKNE: Tensor, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias."""
    like_x, like_B = inputs.x_BME.shape, inputs.B_BMN.shape
    dx, ddelta, dB, dC = (states_BKNE.new_empty(shape) for shape in (like_x, like_x, like_B, like_B))
    dz = None if inputs.z_BME is None else states_BKNE.new_empty(like_x)
    dA_NE, dD_E = states_BKNE.new_zeros(inputs.A_EN.shape[::-1]), states_BKNE.new_zeros(like_x[2])
    dbias_E = None if inputs.delta_bias_E is None else torch.zeros_like(dD_E)
    scratch: Scratch = {}
    with _in_full_precision(grad_BME):
        for rows in _row_groups(inputs):
            dz_rows = None if dz is None else dz[rows]
            grads = _Gradients(dx[rows], ddelta[rows], dB[rows], dC[rows], dz_rows, dA_NE, dD_E, dbias_E)
            _backward_rows(_Scan(inputs, rows, scratch), grad_BME[rows], states_BKNE[rows], grads)
    return dx, ddelta, dA_NE.T, dB, dC, dD_E, dz, dbias_E


class _Gradients(NamedTuple):
    """Written in place: the first five per token, the last three summed over all tokens."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A_NE: Tensor
    D: Tensor
    bias: Tensor | None


def _backward_rows(scan: "_Scan", grad_BME: Tensor, states_BKNE: Tensor, grads: _Gradients) -> None:
    """With g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1} and a_t = exp(delta_t A), going against the scan's direction:

    dx = delta (g B), dB = g (delta x), dC = h dy, d(delta A) = g a h_{t-1}.
    """
    g_BNE = torch.zeros_like(states_BKNE[:, 0])  # a_{t+1} g_{t+1}, from the chunk done before
    for k, tokens in reversed(list(scan.chunks())):
        chunk = scan.run(tokens, states_BKNE[:, k])
        x, delta, decay_BLNE, h_BLNE = chunk.x, chunk.delta, chunk.decay_BLNE, chunk.h_BLNE

        dy_BLE = grad_BME[:, tokens].to(scan.dtype)
        if grads.z is not None:
            z = scan.z(tokens)
            grads.z[:, tokens] = torch.ops.aten.silu_backward(dy_BLE * scan.output(chunk), z)
            dy_BLE = dy_BLE * F.silu(z)
        grads.C[:, tokens] = _over_channels(dy_BLE, h_BLNE)

        g_BLNE, gradients = scan.times("gradient", dy_BLE.unsqueeze(2), chunk.C.unsqueeze(3))
        decays, against = chunk.decays, scan.order(g_BLNE)[::-1]
        gradients[against[0]].add_(g_BNE)
        for later, t in pairwise(against):
            gradients[t].addcmul_(decays[later], gradients[later])
        torch.mul(decays[against[-1]], gradients[against[-1]], out=g_BNE)

        dinput_BLE = _over_states(chunk.B, g_BLNE)  # gradient of delta x
        grads.B[:, tokens] = _over_channels(chunk.input, g_BLNE)
        dexponent_BLNE = scan.times_state_before(decay_BLNE.mul_(g_BLNE), h_BLNE, states_BKNE[:, k])
        # g is done with: its memory takes the product.
        product_BLNE, _ = scan.times("gradient", dexponent_BLNE, scan.A_NE)
        ddelta_BLE = product_BLNE.sum(2).addcmul_(dinput_BLE, x)
        grads.A_NE.add_(dexponent_BLNE.mul_(delta.unsqueeze(2)).sum((0, 1)))
        if scan.inputs.delta_softplus:
            ddelta_BLE.mul_(torch.sigmoid(scan.raw_delta(tokens)))
        grads.delta[:, tokens] = ddelta_BLE
        if grads.bias is not None:
            grads.bias.add_(ddelta_BLE.sum((0, 1)))
        dx_BLE = dinput_BLE.mul_(delta)
        if scan.D is not None:
            dx_BLE.addcmul_(dy_BLE, scan.D)
            grads.D.add_((dy_BLE * x).sum((0, 1)))
        grads.x[:, tokens] = dx_BLE


def _row_groups(inputs: ScanInputs) -> Iterator[slice]:
    batch, tokens, width = inputs.x_BME.shape
    rows = max(1, CACHE // (min(tokens, CHUNK) * width * inputs.A_EN.shape[1]))
    for start in range(0, batch, rows):
        yield slice(start, start + rows)


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, E)."""
    batch, tokens, _ = inputs.x_BME.shape
    return batch, -(-tokens // CHUNK), *inputs.A_EN.shape[::-1]


class _Chunk(NamedTuple):
    """What a chunk of tokens computes with, in the precision of the computation; `input` is delta x, `decays`
    are those of each token."""

    x: Tensor
    delta: Tensor
    input: Tensor
    B: Tensor
    C: Tensor
    decay_BLNE: Tensor
    decays: tuple[Tensor, ...]
    h_BLNE: Tensor


class _Scan:
    """The inputs in the precision of the computation, sliced by chunk, and the order of the tokens."""

    def __init__(self, inputs: ScanInputs, rows: slice, scratch: Scratch) -> None:
        self.scratch = scratch
        self.inputs = inputs.rows(rows)
        self.dtype = torch.promote_types(inputs.x_BME.dtype, torch.float32)
        self.A_NE = inputs.A_EN.to(self.dtype).T.contiguous()
        self.rate_NE = self.A_NE * math.log2(math.e)  # 2^x takes half the time of e^x
        self.D = None if inputs.D_E is None else inputs.D_E.to(self.dtype)
        self.resets = reset_positions(inputs.cu_seqlens, inputs.reverse)

    def times(self, name: str, left: Tensor, right: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """left * right, broadcast to (rows, L, N, E), in the scratch tensor of that name, and its views by token."""
        key = name, torch.broadcast_shapes(left.shape, right.shape)
        if key not in self.scratch:
            fresh = left.new_empty(key[1])
            self.scratch[key] = fresh, fresh.unbind(1)
        torch.mul(left, right, out=self.scratch[key][0])
        return self.scratch[key]

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """(index, tokens) of each chunk in the order of the scan."""
        tokens = self.inputs.x_BME.shape[1]
        starts = range(0, tokens, CHUNK)
        for start in reversed(starts) if self.inputs.reverse else starts:
            yield start // CHUNK, slice(start, min(start + CHUNK, tokens))

    def z(self, tokens: slice) -> Tensor:
        assert self.inputs.z_BME is not None
        return self.inputs.z_BME[:, tokens].to(self.dtype)

    def raw_delta(self, tokens: slice) -> Tensor:
        return biased(self.inputs.delta_BME[:, tokens], self.inputs.delta_bias_E, self.dtype)

    def order(self, chunk_BLNE: Tensor) -> range:
        """Positions in the chunk, in the order in which the state visits them."""
        length = chunk_BLNE.shape[1]
        return range(length)[::-1] if self.inputs.reverse else range(length)

    def run(self, tokens: slice, h_BNE: Tensor) -> _Chunk:
        """From the state before the chunk."""
        x, B, C = (t[:, tokens].to(self.dtype) for t in (self.inputs.x_BME, self.inputs.B_BMN, self.inputs.C_BMN))
        bias, softplus = self.inputs.delta_bias_E, self.inputs.delta_softplus
        delta = step_size(self.inputs.delta_BME[:, tokens], bias, softplus, self.dtype)
        decay_BLNE, decays = self.times("decay", delta.unsqueeze(2), self.rate_NE)
        decay_BLNE.exp2_()
        for t in self.resets:  # a packed sequence begins here: what came before decays to nothing
            if tokens.start <= t < tokens.stop:
                decay_BLNE[:, t - tokens.start] = 0
        input_BLE = delta * x
        h_BLNE, states = self.times("state", input_BLE.unsqueeze(2), B.unsqueeze(3))
        for t in self.order(h_BLNE):
            h_BNE = states[t].addcmul_(decays[t], h_BNE)
        return _Chunk(x, delta, input_BLE, B, C, decay_BLNE, decays, h_BLNE)

    def times_state_before(self, g_BLNE: Tensor, h_BLNE: Tensor, first_BNE: Tensor) -> Tensor:
        """In place: g times, for each token, the state that it found."""
        if self.inputs.reverse:
            g_BLNE[:, :-1].mul_(h_BLNE[:, 1:])
            g_BLNE[:, -1].mul_(first_BNE)
        else:
            g_BLNE[:, 1:].mul_(h_BLNE[:, :-1])
            g_BLNE[:, 0].mul_(first_BNE)
        return g_BLNE

    def output(self, chunk: _Chunk) -> Tensor:
        """h C + D x, (B, L, E)."""
        y_BLE = _over_states(chunk.C, chunk.h_BLNE)
        return y_BLE if self.D is None else y_BLE.addcmul_(chunk.x, self.D)


def _over_states(weight_BLN: Tensor, h_BLNE: Tensor) -> Tensor:
    """(B, L, E)."""
    if h_BLNE.device.type != "cpu":  # there a product may be rounded to TF32, where the user allows it for matrices
        return (weight_BLN.unsqueeze(3) * h_BLNE).sum(2)
    return (weight_BLN.unsqueeze(2) @ h_BLNE).squeeze(2)


def _over_channels(weight_BLE: Tensor, h_BLNE: Tensor) -> Tensor:
    """(B, L, N)."""
    return (weight_BLE.unsqueeze(2) @ h_BLNE.transpose(2, 3)).squeeze(2)


def _in_full_precision(tensor: Tensor) -> torch.autocast:
    """Out of autocast's reach: products inside it would round to bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)
