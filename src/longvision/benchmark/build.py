"""A model in one of its forms, and the call that is measured."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision import models  # noqa: F401 registers them
from longvision.benchmark.case import Case
from longvision.benchmark.plan import DETECTORS
from longvision.errors import UserError
from longvision.heads.detection import create_detector
from longvision.heads.detr import create_detr
from longvision.heads.segmentation import create_segmenter
from longvision.layers.mixer import VimMixer
from longvision.layers.ordered_mixer import OrderedMixer
from longvision.layers.ss2d import SS2D
from longvision.models.backbone import checkpoint_activations, create_sized
from longvision.ops.common import choose_backend
from longvision.types import Target

OBJECTS = 7  # in an image: as many as COCO's have on average


def create(name: str, size: int, head: str = "") -> nn.Module:
    """Random weights, for square images; with a head for as many classes as ADE20K or COCO has."""
    if head == "fpn":
        return create_segmenter(name, "fpn", 150, 3, (size, size), auxiliary=False)
    if head == "cascade":
        detector = create_detector(name, "cascade", classes=80, channels=3, size=(size, size), masks=True, width=256)
        # Random weights are sure of nothing: at the usual 0.05 there is no object, and the masks would cost nothing.
        detector.roi_heads.score_thresh = 0.0
        return detector
    if head == "detr":
        return create_detr(name, 80, 3, (size, size))
    return create_sized(name, (size, size))


def materialise_attention(model: nn.Module) -> None:
    """Softmax of a whole attention matrix, as models were written before scaled_dot_product_attention.

    Raises UserError for a model whose attention has no such form.
    """
    switches = _attention_modules(model)
    if not switches:
        raise UserError("none of its modules has a fused attention that could be switched off")
    for module in switches:
        module.fused_attn = False  # type: ignore[assignment]


def checkpoint_blocks(model: nn.Module) -> bool:
    """Recompute each block in the backward pass instead of saving its activations; -> whether the model can."""
    with contextlib.suppress(UserError):
        checkpoint_activations(model)
        return True
    return False


def describe_attention(model: nn.Module, case: Case) -> str:
    """How tokens meet: "sdpa", "materialised", "scan: BACKEND", or "" for a way that has no forms."""
    forms = {bool(module.fused_attn) for module in _attention_modules(model)}
    if forms:
        return "sdpa" if True in forms else "materialised"
    if not any(isinstance(module, VimMixer | OrderedMixer | SS2D) for module in model.modules()):
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
        model = create(case.model, case.size, case.head)
        if case.form:
            materialise_attention(model)
        if case.checkpoint:
            checkpoint_blocks(model)
        self.attention = describe_attention(model, case)
        dtype = torch.float64 if case.dtype == "float64" else torch.float32  # bfloat16 is left to autocast
        self.model = model.to(case.device, dtype).train(case.mode == "train")
        channels = int(getattr(model, "in_chans", 3))
        self.images_BCHW = torch.randn(case.batch, channels, case.size, case.size, dtype=dtype, device=case.device)
        self.inputs: tuple[Any, ...] = (self.images_BCHW,)
        if case.head in DETECTORS:
            self.inputs = (list(self.images_BCHW), [make_target(case.size, case.device)] * case.batch)

    def __call__(self) -> None:
        if self.case.mode == "infer":
            with torch.inference_mode(), self._precision():
                self.model(*self.inputs)
            return
        self.clear()
        with self._precision():
            loss = sum_losses(self.model(*self.inputs))
        loss.backward()

    def clear(self) -> None:
        """Without gradients, so that a call that is measured has to make them."""
        self.model.zero_grad(set_to_none=True)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.dtype == "bfloat16")


def make_target(size: int, device: str) -> Target:
    """What a detector learns from an image: boxes of an eighth to half a side, always the same, that masks fill."""
    chance = torch.Generator().manual_seed(0)
    sides_N2 = size * (1 / 8 + 3 / 8 * torch.rand(OBJECTS, 2, generator=chance))
    corners_N2 = (size - sides_N2) * torch.rand(OBJECTS, 2, generator=chance)
    boxes_N4 = torch.cat([corners_N2, corners_N2 + sides_N2], 1)
    x1, y1, x2, y2 = boxes_N4[:, :, None, None].unbind(1)
    at = torch.arange(size) + 0.5
    labels_N = torch.randint(80, (OBJECTS,), generator=chance)
    masks_NHW = (x1 < at) & (at < x2) & (y1 < at[:, None]) & (at[:, None] < y2)
    return Target(boxes_N4, labels_N, torch.zeros(OBJECTS, dtype=torch.bool), masks_NHW).to(device)


def sum_losses(output: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> Tensor:
    """A detector's losses, or cross entropy with class 0, of each pixel if need be; distilled models have two outputs.

    Logits are (B, K) or (B, K, H, W).
    """
    if isinstance(output, dict):
        return torch.stack(list(output.values())).sum()
    outputs = output if isinstance(output, tuple) else (output,)
    total = torch.zeros((), device=outputs[0].device)
    for logits in outputs:
        classes = logits.new_zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long)
        total = total + F.cross_entropy(logits, classes)
    return total
