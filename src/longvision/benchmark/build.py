"""A model in one of its forms, and the call that is measured."""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision import models  # noqa: F401 registers them
from longvision.benchmark.case import Case
from longvision.layers.mixer import VimMixer
from longvision.ops.backends import choose_backend


def create(name: str, size: int) -> nn.Module:
    """Random weights, for square images."""
    try:
        return timm.create_model(name, img_size=(size, size))
    except TypeError:  # convolutional models take no img_size
        return timm.create_model(name)


def materialise_attention(model: nn.Module) -> None:
    """Softmax of a whole attention matrix, as models were written before scaled_dot_product_attention."""
    switches = _attention_modules(model)
    if not switches:
        raise ValueError("none of its modules has a fused attention that could be switched off")
    for module in switches:
        module.fused_attn = False  # type: ignore[assignment]


def checkpoint(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of keeping its activations."""
    model.set_grad_checkpointing(True)  # type: ignore[operator]


# A word behind a model's name and a "+".
VARIANTS: dict[str, Callable[[nn.Module], None]] = {"materialised": materialise_attention, "checkpoint": checkpoint}


def attention(model: nn.Module, case: Case) -> str:
    """How tokens meet: "sdpa", "materialised", "scan: BACKEND", or "" for a way that has no forms."""
    forms = {bool(module.fused_attn) for module in _attention_modules(model)}
    if forms:
        return "sdpa" if True in forms else "materialised"
    if not any(isinstance(module, VimMixer) for module in model.modules()):
        return ""
    # Asked for both dtypes of mixed precision: where kernels have to be compiled first, that is not the model's time.
    dtypes = dict.fromkeys([torch.float32, getattr(torch, case.dtype)])
    return "scan: " + [choose_backend(None, case.device, dtype) for dtype in dtypes][-1]


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "fused_attn")]


class Step:
    """One call of a case: a batch through the model, in training back again too. No optimiser."""

    def __init__(self, case: Case) -> None:
        self.case = case
        model = create(case.model, case.size)
        if case.variant:
            VARIANTS[case.variant](model)
        self.attention = attention(model, case)
        dtype = torch.float64 if case.dtype == "float64" else torch.float32  # bfloat16 is left to autocast
        self.model = model.to(case.device, dtype).train(case.mode == "train")
        channels = int(getattr(model, "in_chans", 3))
        self.images_BCHW = torch.randn(case.batch, channels, case.size, case.size, dtype=dtype, device=case.device)

    def __call__(self) -> None:
        if self.case.mode == "infer":
            with torch.inference_mode(), self._precision():
                self.model(self.images_BCHW)
            return
        self.clear()
        with self._precision():
            loss = _loss(self.model(self.images_BCHW))
        loss.backward()

    def clear(self) -> None:
        """Without gradients, so that a call that is measured has to make them."""
        self.model.zero_grad(set_to_none=True)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.dtype == "bfloat16")


def _loss(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Cross entropy with class 0; distilled models have two outputs."""
    outputs = output if isinstance(output, tuple) else (output,)
    total = torch.zeros((), device=outputs[0].device)
    for logits_BK in outputs:
        total = total + F.cross_entropy(logits_BK, logits_BK.new_zeros(len(logits_BK), dtype=torch.long))
    return total
