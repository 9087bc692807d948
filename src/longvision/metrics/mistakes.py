"""Which images of a set a model is worst at."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class WorstMistakes(Metric):
    """The rows of at most `count` images with the highest losses, of those that are answered wrongly."""

    full_state_update = False
    loss: Tensor
    row: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.add_state("loss", torch.full((count,), -1.0), dist_reduce_fx="cat")
        self.add_state("row", torch.full((count,), -1), dist_reduce_fx="cat")

    def update(self, loss_B: Tensor, wrong_B: Tensor, row_B: Tensor) -> None:
        """Losses, which are above 0 where an answer is wrong (bool), and the images' places in their set."""
        loss = torch.cat([self.loss, loss_B.float().where(wrong_B, -1.0)])
        row = torch.cat([self.row, row_B.to(self.row)])
        self.loss, best = loss.topk(self.count)
        self.row = row[best]

    def compute(self) -> list[int]:
        """The worst first, each once."""
        loss, row = self.loss.flatten(), self.row.flatten()  # of all devices
        order = loss.argsort(descending=True, stable=True)
        rows = row[order][loss[order] >= 0].tolist()
        return list(dict.fromkeys(rows))[: self.count]


def batches_of(loader: Any) -> list[list[int]]:
    """The rows of each batch that a loader of an evaluation gives; none of a loader whose order is not known."""
    sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", [])
    batches = list(sampler) if hasattr(getattr(loader, "dataset", None), "unreadable_N") else []
    return batches if all(isinstance(batch, list) for batch in batches) else []
