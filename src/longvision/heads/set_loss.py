"""DETR's loss (arXiv 2005.12872): the cheapest one-to-one pairs of queries and objects, and what each pair costs."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

# Section A.4 of the paper; each weighs in the matching what it weighs in the loss.
CLASS, BOX, GIOU = 1.0, 5.0, 2.0
NO_OBJECT = 0.1  # weight in the cross-entropy of the queries that found nothing: there are many


def set_losses(logits_LBQK: Tensor, boxes_LBQ4: Tensor, labels: list[Tensor], boxes: list[Tensor]) -> dict[str, Tensor]:
    """Weighted losses of each decoder layer between what its queries found and the objects matched to them.

    Where training is distributed, all are divided by what there is on all ranks: the gradient, averaged over them, is
    that of one process with all their images.

    Args:
        logits_LBQK: of the classes, the last for none.
        boxes_LBQ4: cxcywh as fractions of the image, as are `boxes`.
        labels: (N,) of each image.
        boxes: (N, 4) of each image.
    """
    layers, batch, queries, none = *logits_LBQK.shape[:3], logits_LBQK.shape[3] - 1
    matches = match_queries(logits_LBQK, boxes_LBQ4, labels, boxes)
    matched = sum(min(len(labels_N), queries) for labels_N in labels)
    objects, weight = _share(sum(map(len, labels)), matched + NO_OBJECT * (batch * queries - matched), logits_LBQK)
    weight_K = logits_LBQK.new_ones(none + 1)
    weight_K[none] = NO_OBJECT

    losses = {}
    for n in range(layers):
        image, query, number = matches[n]
        suffix = "" if n == layers - 1 else f"_{n}"
        wanted_BQ = torch.full((batch, queries), none, device=logits_LBQK.device)
        wanted_BQ[image, query] = torch.cat(labels)[number]
        entropy = F.cross_entropy(logits_LBQK[n].flatten(0, 1), wanted_BQ.flatten(), weight_K, reduction="sum")
        found_M4, wanted_M4 = boxes_LBQ4[n, image, query], torch.cat(boxes)[number]
        giou = generalized_box_iou_loss(_corners(found_M4), _corners(wanted_M4), reduction="sum")
        losses[f"loss_class{suffix}"] = CLASS * entropy / weight
        losses[f"loss_box{suffix}"] = BOX * F.l1_loss(found_M4, wanted_M4, reduction="sum") / objects
        losses[f"loss_giou{suffix}"] = GIOU * giou / objects
    return losses


def _share(objects: float, weight: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """A rank's mean share of two counts; at least one object."""
    counts = like.new_tensor([objects, weight])
    # Only where gradients are: evaluation may end earlier on one rank than on another.
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
        counts /= dist.get_world_size()
    return counts[0].clamp(min=1), counts[1]


@torch.no_grad()
def match_queries(
    logits_LBQK: Tensor, boxes_LBQ4: Tensor, labels: list[Tensor], boxes: list[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each layer the cheapest pairs of queries and objects, one to one: image, query and object, each (M,).

    Objects are counted through all images of the batch. Arguments as for `set_losses`.
    """
    from scipy.optimize import linear_sum_assignment

    costs = [_costs(logits_LBQK[:, b], boxes_LBQ4[:, b], labels[b], boxes[b]) for b in range(len(labels))]
    costs = torch.cat(costs, -1).cpu().split([len(labels_N) for labels_N in labels], -1)  # one wait for the device
    matches = []
    for n in range(len(logits_LBQK)):
        triples: list[tuple[int, int, int]] = []
        first = 0
        for b, cost_LQN in enumerate(costs):
            pairs = zip(*linear_sum_assignment(cost_LQN[n].numpy()), strict=True)
            triples += [(b, query, first + number) for query, number in pairs]
            first += cost_LQN.shape[2]
        image, query, number = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).to(logits_LBQK.device).unbind(1)
        matches.append((image, query, number))
    return matches


def _costs(logits_LQK: Tensor, boxes_LQ4: Tensor, labels_N: Tensor, boxes_N4: Tensor) -> Tensor:
    """(L, Q, N): what it costs that a query stands for an object."""
    chance_LQN = logits_LQK.softmax(-1)[:, :, labels_N]
    distance_LQN = (boxes_LQ4[:, :, None] - boxes_N4).abs().sum(-1)
    giou_LQN = generalized_box_iou(_corners(boxes_LQ4.flatten(0, 1)), _corners(boxes_N4)).view_as(distance_LQN)
    costs_LQN = BOX * distance_LQN - CLASS * chance_LQN - GIOU * giou_LQN
    # A model that has diverged shall show in its loss, not in an error of the matching.
    return costs_LQN.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)


def _corners(boxes_N4: Tensor) -> Tensor:
    return box_convert(boxes_N4, "cxcywh", "xyxy")
