"""Fine-tuning in five ways, two of them by learnable memory (arXiv 2203.15243), of a vision transformer or a Vim.

Without the mask a model remembers: each block has a few tokens that all others read. With it the base stays what it
is, to the last bit, and any number of tasks, each with memory, a class token and a head, answer in the same pass.
"""

from collections.abc import Iterator
from typing import Any, get_args

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import VimBlock
from longvision.layers.attention import TransformerBlock
from longvision.layers.memory import check_read_out, new_memory, read_out, remember
from longvision.models.backbone import create_backbone
from longvision.models.memory_base import blocks, embedded, finished, first_difference, normed, placed_class_token
from longvision.models.sequence import SequenceBackbone
from longvision.types import Finetune

FINETUNE: tuple[Finetune, ...] = get_args(Finetune)
CELLS = 5  # memory tokens a block, as published
CLASS_TOKENS = "cls_token", "cls_token_head", "cls_token_tail", "dist_token"  # ours and timm's


def add_memory(model: Any, num_classes: int, memory: int = CELLS, mask: bool = False) -> Any:
    """A model for another task, of which memory, class token and a new head are trained, and nothing else.

    Without `mask` it is the model itself: each block gets `memory`, which all its tokens see, and its head is replaced.
    With it, a `MemoryTasks` around the model, whose own output does not change; to such a one a task is added.

    Args:
        model: any VisionTransformer of timm, a transformer or a Vim of ours, or a MemoryTasks.
        num_classes: of the new task.
        memory: memory tokens a block.
        mask: whether the base's tokens are to see nothing of the task.

    Raises:
        UserError: less than one token or class, a model that is none of these, or, with `mask`, one that has no class
            token or other blocks than those that can be read.
    """
    for name, value in (("memory", memory), ("num_classes", num_classes)):
        if type(value) is not int or value < 1:
            raise UserError(f"{name} {value!r}: expected a whole number, at least 1")
    if isinstance(model, MemoryTasks):
        model.add(num_classes, memory)
        return model
    ours = isinstance(model, SequenceBackbone)
    if not isinstance(model, VisionTransformer) and not (
        ours and all(isinstance(block, TransformerBlock | VimBlock) for block in blocks(model))
    ):
        raise UserError(
            f"{type(model).__name__} cannot have memory: expected a vision transformer, of timm or longvision, or a Vim"
        )
    if any(hasattr(block, "memory") for block in blocks(model)):
        raise UserError(f"{type(model).__name__} has memory already: take a model without, or mask=True for more tasks")
    if mask:
        tasks = MemoryTasks(model)
        tasks.add(num_classes, memory)
        return tasks
    _start_head(model, num_classes)
    _freeze_but(model, [*_class_tokens(model), *_head_parameters(model)])
    for block in blocks(model):
        remember(block, memory)
    model.takes_packed = False
    return model


def fine_tune(model: Any, num_classes: int, way: Finetune, memory: int = CELLS) -> Any:
    """A model of which a way of fine-tuning trains its share: `requires_grad` tells which.

    "full": all of it. "head": a new head alone. "class_token": that and the class token. "memory" and "memory_mask":
    `add_memory`. What is frozen is put into evaluation mode, where it drops nothing. A new head begins in each with
    weights from N(0, 0.02) and no bias.

    Raises:
        UserError: as `add_memory`; an unknown way; "class_token" of a model that has none.
    """
    if way not in FINETUNE:
        raise UserError(f"finetune={way!r} is unknown: choose one of {', '.join(FINETUNE)}")
    if way in ("memory", "memory_mask"):
        return add_memory(model, num_classes, memory, mask=way == "memory_mask")
    if way != "full" or model.num_classes != num_classes:
        _start_head(model, num_classes)
    if way == "full":
        return model
    tokens = _class_tokens(model)
    if way == "class_token" and not tokens:
        raise UserError(f"{type(model).__name__} has no class token to train: take head, or full")
    _freeze_but(model, [*(tokens if way == "class_token" else []), *_head_parameters(model)])
    return model


def create_finetuned(
    name: str,
    classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    finetune: Finetune = "full",
    memory: int = CELLS,
) -> Any:
    """A classifier by name, as `create_backbone`, to be fine-tuned in one of the ways. A base under tasks gets no head
    of its own. Raises as `create_backbone` and `fine_tune`."""
    own = 0 if finetune == "memory_mask" else classes
    return fine_tune(create_backbone(name, own, channels, size, pretrained, args), classes, finetune, memory)


class TaskMemory(nn.Module):
    """What a task has of its own: a class token (1, 1, D), with the position that the base's has, memory (m, D) of each
    block, and a head."""

    def __init__(self, base: Any, num_classes: int, cells: int) -> None:
        super().__init__()
        token_11D = placed_class_token(base)
        self.cls_token = nn.Parameter(token_11D.detach().clone())
        self.memory = nn.ParameterList(new_memory(cells, token_11D) for _ in blocks(base))
        self.head = nn.Linear(token_11D.shape[-1], num_classes, device=token_11D.device, dtype=token_11D.dtype)
        _init_head(self.head)


class MemoryTasks(nn.Module):
    """A frozen base, and tasks beside it that read it: (B, C, H, W) -> (B, num_classes), or a list of them for several.

    Table 1 of arXiv 2203.15243, for concatenated models: a task's class token reads the base's tokens, itself and the
    task's memory; the base reads nothing of a task, nor does another task. In a Vim the class token is a branch of the
    scans: see `longvision.layers.memory`. The base stays in evaluation mode.

    `add_memory(model, num_classes, mask=True)` makes one, and `concatenate` one of two.

    Args:
        base: a model that `add_memory` takes; frozen.

    Raises:
        UserError: a base with no class token or with several, or with other blocks than those that can be read.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        kind = type(base).__name__
        if isinstance(base, VisionTransformer):
            tokens = int(base.has_class_token)
            if type(base).forward_features is not VisionTransformer.forward_features:
                raise UserError(f"{kind} has a way of its own through its blocks: take memory without the mask")
        else:
            tokens = base.tokens.count
        if tokens != 1:
            raise UserError(f"{kind} has {tokens} class tokens, and a task stands beside one: take memory without mask")
        for block in blocks(base):
            check_read_out(block)
        self.base = base.requires_grad_(False).eval()
        self.tasks = nn.ModuleList()
        self.pretrained_cfg = getattr(base, "pretrained_cfg", {})
        self.embed_dim = self.num_features = self.head_hidden_size = base.num_features
        self.in_chans = base.in_chans

    def add(self, num_classes: int, memory: int = CELLS) -> None:
        """One more task."""
        self.tasks.append(TaskMemory(self.base, num_classes, memory).train(self.training))

    def train(self, mode: bool = True) -> "MemoryTasks":
        """The tasks alone: a base that drops what it likes is none."""
        super().train(mode)
        self.base.eval()
        return self

    def outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) -> the base's output, bit for bit what it is without tasks, and each task's logits (B, K)."""
        x_BMD, layout, tokens = self._through_blocks(images)
        return finished(self.base, x_BMD, layout), self._classes(tokens)

    def forward(self, x: Tensor) -> Any:
        """(B, C, H, W) -> logits (B, K); of several tasks a list."""
        logits = self._classes(self._through_blocks(x)[2])
        return logits[0] if len(logits) == 1 else logits

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the tasks' class tokens (B, tasks, D), normalised."""
        return torch.cat([normed(self.base, token_B1D) for token_B1D in self._through_blocks(x)[2]], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """What `forward_features` returned -> as `forward`, or (B, D), of several tasks a list, with `pre_logits`."""
        tokens = x.unbind(1)
        found = [x_BD if pre_logits else task.head(x_BD) for x_BD, task in zip(tokens, self.tasks, strict=True)]  # type: ignore[operator]
        return found[0] if len(found) == 1 else found

    def _through_blocks(self, images: Tensor) -> tuple[Tensor, Any, list[Tensor]]:
        x_BMD, layout, place = embedded(self.base, images)
        tasks: list[Any] = list(self.tasks)
        tokens = [task.cls_token.to(x_BMD.dtype).expand(len(x_BMD), -1, -1) for task in tasks]
        for i, block in enumerate(blocks(self.base)):
            x_BMD, tokens = read_out(block, x_BMD, place, [(t, task.memory[i]) for t, task in zip(tokens, tasks)])
        return x_BMD, layout, tokens

    def _classes(self, tokens: list[Tensor]) -> list[Tensor]:
        return [
            task.head(normed(self.base, token_B1D)[:, 0])  # type: ignore[operator]
            for token_B1D, task in zip(tokens, self.tasks, strict=True)
        ]

    # timm's contract, as far as it has a meaning for several heads

    @property
    def patch_embed(self) -> Any:
        """The base's, which says what images are taken."""
        return self.base.patch_embed

    @property
    def num_classes(self) -> int:
        """Of all tasks."""
        return sum(task.head.out_features for task in self.tasks)  # type: ignore[union-attr, misc]

    def get_classifier(self) -> Any:
        """The task's head; of several a list."""
        heads = [task.head for task in self.tasks]
        return heads[0] if len(heads) == 1 else heads

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises UserError. Of the base the keys and values are saved for the backward pass, once for all tasks, and of
        a Vim nothing; the tasks' tokens, few, save the rest."""
        if enable:
            raise UserError(
                "MemoryTasks computes nothing again, as gradients go through the tasks' tokens alone: leave activation "
                "checkpointing out"
            )

    def no_weight_decay(self) -> set[str]:
        """The tasks' class tokens and memory; the base is not trained."""
        return {name for name, _ in self.named_parameters() if name.startswith("tasks.") and ".head." not in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The base below, the tasks above it."""
        return {"base": r"^base", "tasks": r"^tasks"}


def concatenate(one: MemoryTasks, other: MemoryTasks) -> MemoryTasks:
    """A model with the tasks of both, on the base of the first; each task's output is what it was. They share tensors.

    Raises:
        UserError: a model that has memory without the mask, or none; or two that do not have the same base.
    """
    for model in (one, other):
        if not isinstance(model, MemoryTasks):
            raise UserError(
                f"{type(model).__name__} cannot be concatenated: without the mask its base is not the other's; "
                "expected models that add_memory(…, mask=True) made"
            )
    if (different := first_difference(one.base, other.base)) is not None:
        raise UserError(
            f"the models have different bases, beginning with {different}: concatenate tasks that were trained on the "
            "same one"
        )
    both = MemoryTasks(one.base)
    both.tasks.extend([*one.tasks, *other.tasks])
    return both.train(one.training)


# What is trained


def _freeze_but(model: nn.Module, trained: list[nn.Parameter]) -> None:
    model.requires_grad_(False).eval()
    for parameter in trained:
        parameter.requires_grad_(True)


def _class_tokens(model: Any) -> list[nn.Parameter]:
    tokens = (getattr(model, name, None) for name in CLASS_TOKENS)
    return [token for token in tokens if isinstance(token, nn.Parameter)]


def _head_parameters(model: Any) -> Iterator[nn.Parameter]:
    for head in _heads(model):
        yield from head.parameters()


def _heads(model: Any) -> Any:
    """One, or several as of a distilled model."""
    found = model.get_classifier()
    return found if isinstance(found, tuple | list) else [found]


def _start_head(model: Any, num_classes: int) -> None:
    """A new one, which begins in the same way whatever else is trained."""
    model.reset_classifier(num_classes)
    for head in _heads(model):
        _init_head(head)


def _init_head(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
