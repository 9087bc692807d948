"""`longvision convert`: a released pickle becomes safetensors, which anyone can load without running anything."""

from pathlib import Path
from typing import Any

from longvision.errors import ExistingFileError, MissingFileError, UserError, user_paths
from longvision.files import read_metadata
from longvision.text import command_line
from longvision_cli.arguments import ArgumentParser


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision convert",
        description="Reads a checkpoint of one of our models (the authors' pickle or safetensors) and writes "
        "safetensors; of a DETR's (the authors' or transformers') a file that `longvision predict` and `explain` take. "
        "A pickle that holds anything but tensors, numbers, strings, containers and a Namespace is refused.",
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint: .pth or .safetensors")
    parser.add_argument("target", metavar="OUT.safetensors", help="the file to write; must not exist")
    options = parser.parse_args(arguments)
    source, target = Path(options.source), Path(options.target)
    if target.suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors: that is what is written, name it so")
    if target.exists():
        raise ExistingFileError(f"{target} exists already and is not overwritten: give another name")
    if not target.absolute().parent.is_dir():
        raise MissingFileError(f"the folder of {target} does not exist: make it first")
    if not source.is_file():
        raise MissingFileError(f"{source} is not a file: expected a checkpoint (.safetensors, .pth)")
    if source.suffix == ".safetensors":
        read_metadata(source)  # says at once that it is damaged

    from longvision.models.weights.detr import is_detr
    from longvision.models.weights.files import read_weights, write_weights
    from longvision.models.weights.identify import identify

    with user_paths():
        weights, metadata = read_weights(source)
        if is_detr(weights):
            return _convert_detr(weights, source, target)
        found = identify(weights, options.source)
        write_weights(weights, target, {"architecture": found.name, **metadata})
    no_parameters = "running_mean", "running_var", "num_batches_tracked", "freqs_cos", "freqs_sin"
    count = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(no_parameters))
    print(f"{target}: {found.name}, {len(weights)} tensors, {count:,} parameters, {found.num_classes} classes")
    overlay = f'pretrained_cfg_overlay=dict(file="{target}")'
    print(f'timm.create_model("{found.name}", pretrained=True, {overlay}{found.arguments})')
    return 0


def _convert_detr(weights: dict[str, Any], source: Path, target: Path) -> int:
    """With what prediction needs to know. Images get a shorter side of 800 pixels, as published."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    from longvision.data.io.colours import spread_colours
    from longvision.models.weights.detr import renamed, sizes_of
    from longvision.models.weights.files import write_weights

    weights = renamed(weights)
    name, classes, head = sizes_of(weights, str(source))
    names = [str(number) for number in range(classes)]
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    about: dict[str, Any] = {"task": "detr", "architecture": name, "head": head, "palette": spread_colours(classes)}
    about["preprocess"] = {"size": [800, 800], "channels": 3, "resize": "short"}
    if classes == len(coco):  # by COCO's own numbers of its categories
        names, about["coco_ids"] = coco, {"categories": [*range(classes)]}
    write_weights(weights, target, {**about, "classes": names})
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"{target}: DETR on {name}, {len(weights)} tensors, {count:,} parameters and statistics, {classes} classes")
    print(command_line("predict", target, "IMAGES"))
    return 0
