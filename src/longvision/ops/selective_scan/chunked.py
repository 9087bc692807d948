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

from longvision.ops.selective_scan.inputs import ScanInputs, by_columns, by_rows, gradient_of_groups
from longvision.ops.selective_scan.reference import biased, reset_positions, step_size

CHUNK = 16  # tokens; states saved for the backward then weigh as much as one (B, M, E) tensor at N = 16
CACHE = 2**20  # elements of a (rows, CHUNK, N, E) tensor: rows of the batch are taken so that it stays in the cache

# The three (rows, CHUNK, N, E) tensors that a pass works in, by name and shape, each with its views by token. Fresh
# ones for each chunk would cost page faults, and fresh views half as much as the multiply-adds on them.
Scratch = dict[tuple[str, torch.Size], tuple[Tensor, tuple[Tensor, ...]]]


def forward(inputs: ScanInputs, states_BKNE: Tensor | None, last_BEN: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk and the one behind the last token, unless those are None."""
    if inputs.grid is not None:
        return by_rows(forward(_permuted(inputs, inputs.grid), states_BKNE, last_BEN), inputs.grid)
    y_BME = inputs.x_BME.new_empty(inputs.x_BME.shape)
    scratch: Scratch = {}
    with _in_full_precision(y_BME):
        for channels, group in inputs.by_group():
            for rows in _row_groups(group):
                states = None if states_BKNE is None else states_BKNE[rows, ..., channels]
                last = None if last_BEN is None else last_BEN[rows, channels]
                _forward_rows(_Scan(group, rows, scratch), y_BME[rows, :, channels], states, last)
    return y_BME


def _permuted(inputs: ScanInputs, grid: tuple[int, int]) -> ScanInputs:
    """With tokens that lie in the order of the columns."""
    return inputs.with_tokens(lambda t: by_columns(t, grid))._replace(grid=None)


def _forward_rows(scan: "_Scan", y_BME: Tensor, states_BKNE: Tensor | None, last_BEN: Tensor | None) -> None:
    h_BNE = scan.state(scan.inputs.initial_state_BEN)
    for k, tokens in scan.chunks():
        if states_BKNE is not None:
            states_BKNE[:, k] = h_BNE
        chunk = scan.run(tokens, h_BNE)
        h_BNE.copy_(chunk.h_BLNE[:, scan.order(chunk.h_BLNE)[-1]])  # the next chunk reuses the memory
        y_BLE = scan.output(chunk)
        y_BME[:, tokens] = y_BLE if scan.inputs.z_BME is None else y_BLE.mul_(F.silu(scan.z(tokens)))
    if last_BEN is not None:
        last_BEN.copy_(h_BNE.transpose(1, 2))


def backward(
    grad_BME: Tensor, grad_last_BEN: Tensor | None, states_BKNE: Tensor, inputs: ScanInputs
) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias and the initial state."""
    if inputs.grid is not None:
        grads = backward(by_columns(grad_BME, inputs.grid), grad_last_BEN, states_BKNE, _permuted(inputs, inputs.grid))
        permuted = inputs.of_tokens()
        return tuple(
            by_rows(grad, inputs.grid) if name in permuted and grad is not None else grad
            for name, grad in zip(ScanInputs._fields, grads)
        )
    like_x = inputs.x_BME.shape
    dx, ddelta = (states_BKNE.new_empty(like_x) for _ in range(2))
    dB, dC = (_new_gradient(given, inputs.groups, states_BKNE) for given in (inputs.B_BMN, inputs.C_BMN))
    dz = None if inputs.z_BME is None else states_BKNE.new_empty(like_x)
    dA_NE, dD_E = states_BKNE.new_zeros(inputs.A_EN.shape[::-1]), states_BKNE.new_zeros(like_x[2])
    dbias_E = None if inputs.delta_bias_E is None else torch.zeros_like(dD_E)
    initial_BEN = states_BKNE.new_empty(like_x[0], *inputs.A_EN.shape)
    scratch: Scratch = {}
    with _in_full_precision(grad_BME):
        for i, (own, group) in enumerate(inputs.by_group()):
            for rows in _row_groups(group):
                dB_own, dC_own = (t[:, own] if t.ndim == 2 else t[i, rows] for t in (dB, dC))
                grads = _Gradients(
                    dx[rows, :, own],
                    ddelta[rows, :, own],
                    dB_own,
                    dC_own,
                    None if dz is None else dz[rows, :, own],
                    dA_NE[:, own],
                    dD_E[own],
                    None if dbias_E is None else dbias_E[own],
                    initial_BEN[rows, own],
                )
                last_BEN = None if grad_last_BEN is None else grad_last_BEN[rows, own]
                scan = _Scan(group, rows, scratch)
                _backward_rows(scan, grad_BME[rows, :, own], last_BEN, states_BKNE[rows, ..., own], grads)
    dB, dC = (
        grad.T if grad.ndim == 2 else gradient_of_groups(grad, given)
        for grad, given in ((dB, inputs.B_BMN), (dC, inputs.C_BMN))
    )
    return dx, ddelta, dA_NE.T, dB, dC, dD_E, dz, dbias_E, initial_BEN


def _new_gradient(B: Tensor, groups: int, like: Tensor) -> Tensor:
    """Of B or C: (G, B, M, N); or, constant, the sums (N, E)."""
    if B.ndim == 2:
        return like.new_zeros(B.shape[::-1])
    return like.new_empty(groups, *B.shape[:2], B.shape[-1])


class _Gradients(NamedTuple):
    """Written in place: the first five per token (B and C, where they are constant, summed), the next three summed over
    all tokens."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A_NE: Tensor
    D: Tensor
    bias: Tensor | None
    initial_BEN: Tensor


def _backward_rows(
    scan: "_Scan", grad_BME: Tensor, grad_last_BEN: Tensor | None, states_BKNE: Tensor, grads: _Gradients
) -> None:
    """With g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1} and a_t = exp(delta_t A), going against the scan's direction:

    dx = delta (g B), dB = g (delta x), dC = h dy, d(delta A) = g a h_{t-1}.
    """
    g_BNE = scan.state(grad_last_BEN)  # a_{t+1} g_{t+1}, from the chunk done before
    for k, tokens in reversed(list(scan.chunks())):
        chunk = scan.run(tokens, states_BKNE[:, k])
        x, delta, decay_BLNE, h_BLNE = chunk.x, chunk.delta, chunk.decay_BLNE, chunk.h_BLNE

        dy_BLE = grad_BME[:, tokens].to(scan.dtype)
        if grads.z is not None:
            z = scan.z(tokens)
            grads.z[:, tokens] = torch.ops.aten.silu_backward(dy_BLE * scan.output(chunk), z)
            dy_BLE = dy_BLE * F.silu(z)
        _put(grads.C, tokens, dy_BLE, h_BLNE)

        g_BLNE, gradients = scan.times("gradient", dy_BLE.unsqueeze(2), chunk.C)
        decays, against = chunk.decays, scan.order(g_BLNE)[::-1]
        gradients[against[0]].add_(g_BNE)
        for later, t in pairwise(against):
            gradients[t].addcmul_(decays[later], gradients[later])
        torch.mul(decays[against[-1]], gradients[against[-1]], out=g_BNE)

        dinput_BLE = _over_states(chunk.B, g_BLNE)  # gradient of delta x
        _put(grads.B, tokens, chunk.input, g_BLNE)
        dexponent_BLNE = scan.times_state_before(decay_BLNE.mul_(g_BLNE), h_BLNE, states_BKNE[:, k])
        # g is done with: its memory takes the product.
        product_BLNE, _ = scan.times("gradient", dexponent_BLNE, scan.A_NE)
        ddelta_BLE = product_BLNE.sum(2).addcmul_(dinput_BLE, x)
        grads.A_NE.add_(dexponent_BLNE.mul_(delta.unsqueeze(2)).sum((0, 1)))
        if scan.inputs.delta_softplus:
            ddelta_BLE.mul_(biased(scan.inputs.delta_BME[:, tokens], scan.inputs.delta_bias_E, scan.dtype).sigmoid())
        grads.delta[:, tokens] = ddelta_BLE
        if grads.bias is not None:
            grads.bias.add_(ddelta_BLE.sum((0, 1)))
        dx_BLE = dinput_BLE.mul_(delta)
        if scan.D is not None:
            dx_BLE.addcmul_(dy_BLE, scan.D)
            grads.D.add_((dy_BLE * x).sum((0, 1)))
        grads.x[:, tokens] = dx_BLE
    grads.initial_BEN.copy_(g_BNE.transpose(1, 2))


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
    are those of each token. B and C are (B, L, N, 1), or where they are constant (N, E)."""

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

    def state(self, given_BEN: Tensor | None) -> Tensor:
        """(B, N, E) of its own: what was given, or zero."""
        h_BNE = self.A_NE.new_zeros(len(self.inputs.x_BME), *self.A_NE.shape)
        return h_BNE if given_BEN is None else h_BNE.copy_(given_BEN.transpose(1, 2))

    def B_or_C(self, given: Tensor, tokens: slice) -> Tensor:
        """Of a chunk."""
        return given.to(self.dtype).T if given.ndim == 2 else given[:, tokens].to(self.dtype).unsqueeze(3)

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

    def order(self, chunk_BLNE: Tensor) -> range:
        """Positions in the chunk, in the order in which the state visits them."""
        length = chunk_BLNE.shape[1]
        return range(length)[::-1] if self.inputs.reverse else range(length)

    def run(self, tokens: slice, h_BNE: Tensor) -> _Chunk:
        """From the state before the chunk."""
        x = self.inputs.x_BME[:, tokens].to(self.dtype)
        B, C = (self.B_or_C(given, tokens) for given in (self.inputs.B_BMN, self.inputs.C_BMN))
        bias, softplus = self.inputs.delta_bias_E, self.inputs.delta_softplus
        delta = step_size(self.inputs.delta_BME[:, tokens], bias, softplus, self.dtype)
        decay_BLNE, decays = self.times("decay", delta.unsqueeze(2), self.rate_NE)
        decay_BLNE.exp2_()
        for t in self.resets:  # a packed sequence begins here: what came before decays to nothing
            if tokens.start <= t < tokens.stop:
                decay_BLNE[:, t - tokens.start] = 0
        input_BLE = delta * x
        h_BLNE, states = self.times("state", input_BLE.unsqueeze(2), B)
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


def _over_states(C: Tensor, h_BLNE: Tensor) -> Tensor:
    """(B, L, E), from C, or B, of a chunk."""
    # Not on a CPU a product may be rounded to TF32, where the user allows it for matrices.
    if C.ndim == 2 or h_BLNE.device.type != "cpu":
        return (C * h_BLNE).sum(2)
    return (C.transpose(2, 3) @ h_BLNE).squeeze(2)


def _put(grad: Tensor, tokens: slice, dy_BLE: Tensor, h_BLNE: Tensor) -> None:
    """Into the gradient of B or C: the sums over channels, (B, L, N); of a constant those over tokens, (N, E)."""
    if grad.ndim == 2:
        grad.add_((dy_BLE.unsqueeze(2) * h_BLNE).sum((0, 1)))
    else:
        grad[:, tokens] = (dy_BLE.unsqueeze(2) @ h_BLNE.transpose(2, 3)).squeeze(2)


def _in_full_precision(tensor: Tensor) -> torch.autocast:
    """Out of autocast's reach: products inside it would round to bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)
