"""mamba_ssm's Mamba module: its arguments, names of parameters and cache, on our ops."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.compat.convolution import causal_conv1d_update
from longvision.compat.scan import selective_state_update
from longvision.errors import UserError
from longvision.layers.plain import anybody_watches, is_filter, is_weight
from longvision.ops import ScanDirection, causal_conv1d, mixer, selective_scan
from longvision.ops.common import widened

States = tuple[Tensor, Tensor]  # the last inputs of the convolution (B, E, d_conv), and the scan's state (B, E, N)


class Mamba(nn.Module):
    """(B, L, D) -> (B, L, D). The block of arXiv 2312.00752 between norm and residual.

    Args:
        d_model: model width D.
        d_state: states a channel, N.
        d_conv: taps of the convolution.
        expand: the inner width E is so many times D.
        dt_rank: of the step's projection; "auto" for D / 16, rounded up.
        dt_min, dt_max, dt_init_floor: between which steps begin, and the least.
        dt_init, dt_scale: how the step's projection begins: "random" within, or "constant" at dt_scale / sqrt(dt_rank).
        conv_bias, bias: whether the convolution, and whether the projections have one.
        use_fast_path: run as one op where that can be; False calls one op after the other.
        layer_idx: its number in an inference cache.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise UserError(f"Mamba got dt_init={dt_init!r}, expected 'random' or 'constant'")
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        if not isinstance(rank, int) or rank < 1:
            raise UserError(f"Mamba got dt_rank={dt_rank!r}, expected a whole number above 0, or 'auto'")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.activation, self.act = "silu", nn.SiLU()
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **made)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **made
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **made)
        # In float32 whatever `dtype` is: they decide what is forgotten over a thousand tokens.
        rates = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(rates.log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, dtype=torch.float32, device=device))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)
        self._init_step(dt_init, dt_scale * self.dt_rank**-0.5, (dt_min, dt_max), dt_init_floor)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # read by optimisers of other code
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # and this by its initialisations

    @torch.no_grad()
    def _init_step(self, dt_init: str, bound: float, between: tuple[float, float], floor: float) -> None:
        """softplus(bias) is log-uniform between the two: x + log(1 - exp(-x)) is softplus's inverse."""
        low = bound if dt_init == "constant" else -bound
        self.dt_proj.weight.uniform_(low, bound)
        step = torch.empty_like(self.dt_proj.bias, dtype=torch.float32).uniform_(*map(math.log, between)).exp()
        step = step.clamp(min=floor)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(B, L, D) -> (B, L, D).

        `inference_params` has `seqlen_offset` and `key_value_memory_dict`, states by `layer_idx`: at offset 0 they are
        written, behind all tokens; later they are read, and written behind one more.

        Raises:
            UserError: the cache is of a batch of another size, or is empty where tokens came before, or more than one
                token comes after the first ones.
        """
        if inference_params is None:
            return self._fused(hidden_states) if self._can_fuse() else self._unfused(hidden_states, None)
        states = self._get_states_from_cache(inference_params, hidden_states.shape[0])
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, *states)[0]
        return self._unfused(hidden_states, states)

    def _can_fuse(self) -> bool:
        weights = is_weight(self.in_proj) and is_weight(self.x_proj) and is_weight(self.out_proj)
        read = weights and is_weight(self.dt_proj, bias=True) and is_filter(self.conv1d)
        return self.use_fast_path and read and not anybody_watches()

    def _fused(self, x_BMD: Tensor) -> Tensor:
        conv1d, step = self.conv1d, self.dt_proj
        own = conv1d.weight, conv1d.bias, self.x_proj.weight, step.weight, step.bias, self.A_log, self.D
        direction = ScanDirection(*own, reverse=False)  # type: ignore[arg-type]
        return mixer(x_BMD, [direction], self.in_proj.weight, self.out_proj.weight)

    def _unfused(self, x_BMD: Tensor, states: States | None) -> Tensor:
        """Op by op; writes the states, if there are any."""
        x_BME, z_BME = self.in_proj(x_BMD).chunk(2, -1)
        u_BME = causal_conv1d(x_BME, self.conv1d.weight.squeeze(1), self.conv1d.bias, silu=True)
        delta_BME, B_BMN, C_BMN = self._project(u_BME)
        inputs = u_BME, delta_BME, self._A(), B_BMN, C_BMN, self.D, z_BME, self.dt_proj.bias, True
        if states is None:
            return self.out_proj(selective_scan(*inputs))
        y_BME, last_BEN = selective_scan(*inputs, return_last_state=True)
        with torch.no_grad():
            # Padding may be negative: it crops.
            states[0].copy_(F.pad(x_BME.mT, (self.d_conv - x_BME.shape[1], 0)))
            states[1].copy_(last_BEN)
        return self.out_proj(y_BME)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, D) -> (B, 1, D), the next token, and the states, which are written in place.

        Raises:
            UserError: more than one token, or states of a batch of another size.
        """
        batch, tokens, _ = hidden_states.shape
        if tokens != 1:
            raise UserError(f"Mamba.step got {tokens} tokens, expected 1: call it for each in turn")
        self._check_states(batch, conv_state, ssm_state)
        x_BE, z_BE = self.in_proj(hidden_states[:, 0]).chunk(2, -1)
        taps = self.conv1d.weight.squeeze(1), self.conv1d.bias
        u_BE = causal_conv1d_update(x_BE, conv_state, *taps, self.activation)
        delta_BE, B_BN, C_BN = self._project(u_BE)
        y_BE = selective_state_update(
            ssm_state, u_BE, delta_BE, self._A(), B_BN, C_BN, self.D, z_BE, self.dt_proj.bias, True
        )
        return self.out_proj(y_BE)[:, None], conv_state, ssm_state

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., E) -> the step (..., E), whose bias the scan adds, and B and C (..., N)."""
        low, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        return F.linear(low, self.dt_proj.weight), B, C

    def _A(self) -> Tensor:
        return -torch.exp(widened(self.A_log))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> States:
        """States of zeros, in the parameters' dtype unless `dtype` says another; as large whatever the length."""
        conv, ssm = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype),
            ssm.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype),
        )

    def _get_states_from_cache(self, inference_params: Any, batch_size: int) -> States:
        if self.layer_idx is None:
            raise UserError(
                "Mamba was made without layer_idx, which tells the layers of an inference cache apart: pass it"
            )
        cache = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            if inference_params.seqlen_offset > 0:
                raise UserError(
                    f"the inference cache holds no states of layer {self.layer_idx} at "
                    f"seqlen_offset={inference_params.seqlen_offset}: hand in the first tokens at 0"
                )
            cache[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        states = cache[self.layer_idx]
        self._check_states(batch_size, *states)
        return states

    def _check_states(self, batch: int, conv_state: Tensor, ssm_state: Tensor) -> None:
        for state in (conv_state, ssm_state):
            if len(state) != batch:
                raise UserError(
                    f"the inference cache holds the states of {len(state)} sequences, and {batch} came: empty it, or "
                    f"make one by allocate_inference_cache({batch}, ...)"
                )
