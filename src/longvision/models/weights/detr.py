"""Weights of whole DETRs as others name them, the authors' and transformers', under the names that ours has."""

import re

from torch import Tensor, nn

from longvision.errors import UserError
from longvision.models.weights.files import load_fitted
from longvision.models.weights.fit import Weights

# What stands in the file -> what is in ours, one after the other.
AUTHORS = [
    (r"^backbone\.0\.body\.", "model.backbone.model."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.", "model."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"(encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
    (r"_attn\.out_proj\.", "_attn.o_proj."),
]
TRANSFORMERS = [
    (r"^model\.backbone\.conv_encoder\.", "model.backbone."),
    (r"(layers\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
    (r"_attn\.out_proj\.", "_attn.o_proj."),
]
RESNETS = {6: "resnet50", 23: "resnet101"}  # by the blocks of their third stage
HEAD = "class_labels_classifier"


def is_detr(weights: Weights) -> bool:
    """Whether they are a whole DETR's, its transformer included, and not a backbone's."""
    return any(name.removeprefix("detr.") in ("class_embed.weight", f"{HEAD}.weight") for name in weights)


def load_detr(model: nn.Module, weights: Weights, path: str) -> None:
    """Fill a DETR of ours, whose head starts anew where the file has another number of classes.

    Raises UserError for one with other sizes: the tensors that differ.
    """
    load_fitted(model, renamed(weights), path, f"model.{HEAD}", more=1)


def sizes_of(weights: Weights, path: str) -> tuple[str, int, dict[str, int]]:
    """Of a published DETR under our names: its backbone's name, its number of classes, and the head's options.

    Raises UserError for a backbone that is none of the published ones.
    """
    stage = {name.split("layer3.")[1].split(".")[0] for name in weights if ".layer3." in name}
    if len(stage) not in RESNETS:
        raise UserError(f"{path} is a DETR on a backbone that is neither of {', '.join(RESNETS.values())}")
    layers = {name.split(".")[4] for name in weights if name.startswith("model.model.decoder.layers.")}
    queries, width = weights["model.model.query_position_embeddings.weight"].shape
    classes = len(weights[f"model.{HEAD}.bias"]) - 1
    return RESNETS[len(stage)], classes, {"queries": queries, "width": width, "layers": len(layers)}


def renamed(weights: Weights) -> Weights:
    """With our names, without the counts of batches that a frozen norm does not have."""
    weights = {name.removeprefix("detr."): weight for name, weight in weights.items()}  # of one that segments too
    rules = AUTHORS if "class_embed.weight" in weights else TRANSFORMERS
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        if ".in_proj_" in name:  # queries, keys and values in one
            stem, _, kind = name.partition(".in_proj_")
            found |= {f"{stem}.{letter}_proj.{kind}": one for letter, one in zip("qkv", weight.chunk(3), strict=True)}
        elif not name.endswith("num_batches_tracked"):
            found[name] = weight
    return {f"model.{name}": weight for name, weight in found.items()}
