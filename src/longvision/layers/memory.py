"""Learnable memory in a block (arXiv 2203.15243): tokens that the others read, and that do not leave the block.

In two ways. `remember` lets every token of a block see its memory. `read_out` leaves the block's tokens as they are and
lets one more token, a task's class token, read them and the memory of its task: table 1 of the paper for attention, and
for a scan a branch where the class token stands.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers.attention import PackedAttention, TransformerBlock
from longvision.layers.block import VimBlock
from longvision.layers.mixer import VimMixer
from longvision.layers.plain import TAPS, is_weight
from longvision.ops import ScanDirection, causal_conv1d, selective_scan
from longvision.ops.common import widened
from longvision.ops.mixer.reference import linear, without_overflow
from longvision.ops.selective_scan.reference import step_size

STD = 0.02  # of memory at its start

Task = tuple[Tensor, Tensor]  # a class token (B, 1, D), and the memory (m, D) of this block


def new_memory(cells: int, like: Tensor) -> nn.Parameter:
    """(m, D) from N(0, 0.02), where `like` (..., D) is."""
    memory_mD = torch.empty(cells, like.shape[-1], device=like.device, dtype=like.dtype)
    return nn.Parameter(nn.init.normal_(memory_mD, std=STD))


def remember(block: nn.Module, cells: int) -> None:
    """Give a block `memory` (m, D), a parameter: its tokens see it from now on, and it does not leave the block.

    A transformer reads it behind its tokens, where the order does not matter. A Vim reads it before the image: each of
    its directions before its first patch, in the same order, which is why it stands at both ends.
    """
    block.memory = new_memory(cells, next(block.parameters()))
    block.register_forward_pre_hook(_with_memory)
    block.register_forward_hook(_without_memory)


def _with_memory(block: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """(B, M, D) -> (B, M + m, D), or (B, m + M + m, D) for a scan."""
    x_BMD, *packing = arguments
    if any(argument is not None for argument in packing):
        raise UserError("a model with memory takes images of one size, (B, C, H, W), and no PackedImages")
    memory_BmD = block.memory.to(x_BMD.dtype).expand(len(x_BMD), -1, -1)
    if isinstance(block, VimBlock):
        return (torch.cat([memory_BmD, x_BMD, memory_BmD.flip(1)], dim=1),)
    return (torch.cat([x_BMD, memory_BmD], dim=1),)


def _without_memory(block: Any, arguments: tuple[Any, ...], x_BMD: Tensor) -> Tensor:
    cells = len(block.memory)
    return x_BMD[:, cells:-cells] if isinstance(block, VimBlock) else x_BMD[:, :-cells]


def own_tokens(model: nn.Module) -> dict[nn.Module, slice]:
    """Of each module inside a block with memory, where the block's own tokens stand among those it is given."""
    found: dict[nn.Module, slice] = {}
    for block in model.modules():
        if isinstance(memory_mD := getattr(block, "memory", None), nn.Parameter):
            cells = len(memory_mD)
            own = slice(cells, -cells) if isinstance(block, VimBlock) else slice(-cells)
            found |= dict.fromkeys(block.modules(), own)
    return found


def check_read_out(block: nn.Module) -> None:
    """Raises UserError, by name, for a block whose tokens `read_out` cannot read."""
    if isinstance(block, VimBlock):
        _plain_directions(block.mixer)
        return
    attention = getattr(block, "attn", block)
    known = Attention.forward, PackedAttention.forward
    if type(block).forward not in (Block.forward, TransformerBlock.forward) or type(attention).forward not in known:
        raise UserError(
            f"blocks of {type(block).__name__} with {type(attention).__name__} cannot be read by tasks beside the "
            "base, only timm's Block with its Attention, and Vim's: take memory without the mask"
        )


def read_out(block: Any, x_BMD: Tensor, place: int, tasks: Sequence[Task]) -> tuple[Tensor, list[Tensor]]:
    """One block: (B, M, D) -> (B, M, D), bit for bit what the block makes of it, and each task's class token.

    Args:
        block: one that `check_read_out` takes.
        x_BMD: the base's tokens.
        place: of them, the base's class token, from whose place a scan is read.
        tasks: each with its class token and its memory; none sees another's.
    """
    read = _read_scan if isinstance(block, VimBlock) else _read_attention
    return read(block, x_BMD, place, tasks)


# Attention


def _read_attention(block: Any, x_BMD: Tensor, place: int, tasks: Sequence[Task]) -> tuple[Tensor, list[Tensor]]:
    """The base's tokens attend to one another; a class token to them, to itself and to its memory."""
    attention, own_BMD = block.attn, block.norm1(x_BMD)
    q_BHMd, k_BHMd, v_BHMd = _heads(attention, own_BMD)
    kept = k_BHMd.contiguous(), v_BHMd.contiguous()  # for the backward pass, once for all tasks
    read = []
    for token_B1D, memory_mD in tasks:
        memory_BmD = memory_mD.to(token_B1D.dtype).expand(len(token_B1D), -1, -1)
        normed_BnD = block.norm1(torch.cat([token_B1D, memory_BmD], dim=1))
        q_BHnd, *own = _heads(attention, normed_BnD)
        mixed_BH1d = _attended_in_parts(q_BHnd[:, :, :1] * attention.scale, kept, own)
        read.append(_behind(block, token_B1D, _projected(attention, normed_BnD[:, :1], mixed_BH1d)))
    return _behind(block, x_BMD, _projected(attention, own_BMD, _attended(attention, q_BHMd, k_BHMd, v_BHMd))), read


def _heads(attention: Any, x_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, M, D) -> queries, keys and values (B, H, M, d), as timm's attention makes them."""
    shape = *x_BMD.shape[:2], 3, attention.num_heads, attention.head_dim
    q_BHMd, k_BHMd, v_BHMd = attention.qkv(x_BMD).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    return attention.q_norm(q_BHMd), attention.k_norm(k_BHMd), v_BHMd


def _attended(attention: Any, q_BHMd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor) -> Tensor:
    """(B, H, M, d), as timm's attention in evaluation."""
    if attention.fused_attn:
        return F.scaled_dot_product_attention(q_BHMd, k_BHMd, v_BHMd)
    return ((q_BHMd * attention.scale) @ k_BHMd.transpose(-2, -1)).softmax(dim=-1) @ v_BHMd


def _attended_in_parts(q_BH1d: Tensor, *parts: Sequence[Tensor]) -> Tensor:
    """(B, H, 1, d), of a scaled query that reads the keys and values (B, H, K, d) of all parts. Joined, those would be
    copied, and each copy saved for the backward pass."""
    scores_BH1K = torch.cat([widened(q_BH1d @ k_BHKd.mT) for k_BHKd, _ in parts], dim=-1)
    weights_BH1K = scores_BH1K.softmax(dim=-1).to(q_BH1d.dtype)
    shares = weights_BH1K.split([k_BHKd.shape[2] for k_BHKd, _ in parts], dim=-1)
    return torch.stack([share @ v_BHKd for share, (_, v_BHKd) in zip(shares, parts)]).sum(0)


def _projected(attention: Any, x_BMD: Tensor, mixed_BHMd: Tensor) -> Tensor:
    """The rest of timm's attention: (B, M, D), of the queries of x."""
    mixed_BMD = attention.norm(mixed_BHMd.transpose(1, 2).flatten(2))
    if (gate := getattr(attention, "gate", None)) is not None:
        mixed_BMD = mixed_BMD * gate(x_BMD).sigmoid()
    return attention.proj_drop(attention.proj(mixed_BMD))


def _behind(block: Any, x_BMD: Tensor, mixed_BMD: Tensor) -> Tensor:
    """The rest of timm's block, behind its attention."""
    x_BMD = x_BMD + block.drop_path1(block.ls1(mixed_BMD))
    return x_BMD + block.drop_path2(block.ls2(block.mlp(block.norm2(x_BMD))))


# Scans


def _read_scan(block: VimBlock, x_BMD: Tensor, place: int, tasks: Sequence[Task]) -> tuple[Tensor, list[Tensor]]:
    """A class token stands where the base's does: each direction has read the same of the image when it comes there.

    The task's memory is read into a state of its own, from zero, which is added to the image's: the recurrence is
    linear. It is a branch: nothing of the image is read behind it.
    """
    mixer = block.mixer
    directions = _plain_directions(mixer)
    x_BME = linear(mixer.in_proj.weight[: mixer.inner], block.norm(x_BMD))
    parts = [x_BME[:, place + 1 :].flip(1) if own.reverse else x_BME[:, :place] for own in directions]
    before = [(part_BLE[:, 1 - TAPS :], _state(own, part_BLE)) for own, part_BLE in zip(directions, parts)]
    read = []
    for token_B1D, memory_mD in tasks:
        memory_1mD = memory_mD.to(token_B1D.dtype).unsqueeze(0)
        memory_1mE = linear(mixer.in_proj.weight[: mixer.inner], block.norm(memory_1mD))
        token_B1E, z_B1E = linear(mixer.in_proj.weight, block.norm(token_B1D)).chunk(2, dim=-1)
        lasts = [
            _next(own, tail_BKE, h_BEN + _state(own, memory_1mE), token_B1E)
            for own, (tail_BKE, h_BEN) in zip(directions, before)
        ]
        gated_B1E = torch.stack(lasts).mean(0).to(z_B1E.dtype) * F.silu(z_B1E)
        read.append(token_B1D + linear(mixer.out_proj.weight, gated_B1E).to(token_B1D.dtype))
    return block(x_BMD), read


def _plain_directions(mixer: VimMixer) -> list[ScanDirection]:
    """Raises UserError where a layer is more than its weights, which are what is read here."""
    for name, module in mixer.named_children():
        if isinstance(module, nn.Linear) and not is_weight(module, bias="dt_proj" in name):
            raise UserError(f"{name} of a block has an adapter or a hook: tasks beside the base read its weights alone")
    return [own.with_filter_EK() for own in mixer.scan_directions()]


def _steps(own: ScanDirection, u_BME: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, M, E) behind the convolution -> step sizes (B, M, E), decay rates (E, N), B and C (B, M, N), in float32 or
    better."""
    rank, states = own.dt_proj_ER.shape[1], own.A_log_EN.shape[1]
    low_BMR, B_BMN, C_BMN = without_overflow(own.x_proj_PE, u_BME).split([rank, states, states], dim=-1)
    low_BME = linear(own.dt_proj_ER, low_BMR.to(u_BME.dtype))
    delta_BME = step_size(low_BME, own.dt_bias_E, True, torch.promote_types(u_BME.dtype, torch.float32))
    return delta_BME, -torch.exp(widened(own.A_log_EN)), widened(B_BMN), widened(C_BMN)


def _state(own: ScanDirection, x_BLE: Tensor) -> Tensor:
    """The state (B, E, N) behind the tokens, in their order here."""
    if not x_BLE.shape[1]:
        return widened(x_BLE.new_zeros(len(x_BLE), *own.A_log_EN.shape))
    u_BLE = causal_conv1d(x_BLE, own.filter_EK, own.filter_bias_E, True)
    delta_BLE, A_EN, B_BLN, C_BLN = _steps(own, u_BLE)
    _, last_BEN = selective_scan(widened(u_BLE), delta_BLE, A_EN, B_BLN, C_BLN, return_last_state=True)
    return last_BEN


def _next(own: ScanDirection, tail_BKE: Tensor, h_BEN: Tensor, x_B1E: Tensor) -> Tensor:
    """One token more, from a state on: (B, 1, E) -> (B, 1, E). `tail_BKE` is what the filter still reaches."""
    joined = torch.cat([tail_BKE, x_B1E], dim=1)
    u_B1E = causal_conv1d(joined, own.filter_EK, own.filter_bias_E, True)[:, -1:]
    delta_B1E, A_EN, B_B1N, C_B1N = _steps(own, u_B1E)
    u_B1E = widened(u_B1E)
    h_BEN = torch.exp(delta_B1E.mT * A_EN) * h_BEN + (delta_B1E * u_B1E).mT * B_B1N
    return (h_BEN * C_B1N).sum(-1).unsqueeze(1) + widened(own.D_E) * u_B1E
