"""`longvision convert`: a released pickle becomes safetensors, which anyone can load without running anything."""

from pathlib import Path

from longvision.errors import ExistingFileError, MissingFileError, UserError, user_paths
from longvision.files import read_metadata
from longvision_cli.arguments import ArgumentParser


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision convert",
        description="Reads a Vim checkpoint (the authors' pickle or safetensors) and writes safetensors. "
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

    from longvision.models.weights.files import read_weights, write_weights
    from longvision.models.weights.identify import identify

    with user_paths():
        weights, metadata = read_weights(source)
        found = identify(weights, options.source)
        write_weights(weights, target, {"architecture": found.name, **metadata})
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"{target}: {found.name}, {len(weights)} tensors, {count:,} parameters, {found.num_classes} classes")
    overlay = f'pretrained_cfg_overlay=dict(file="{target}")'
    print(f'timm.create_model("{found.name}", pretrained=True, {overlay}{found.arguments})')
    return 0
