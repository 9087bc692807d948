"""`longvision explain`: what goes on inside a model, as drawings and numbers."""

import argparse
import os
from pathlib import Path
from typing import Any

from longvision.errors import UserError, user_paths
from longvision.explain.methods import METHODS, Method, find_method
from longvision.text import command_line, one_line
from longvision_cli.arguments import ArgumentParser, parse_size
from longvision_cli.folders import find_named_images, free_folder
from longvision_cli.labelled import labelled_batches
from longvision_cli.model_names import check_model, check_size
from longvision_cli.notes import tell
from longvision_cli.quiet import quiet


def run(arguments: list[str]) -> int:
    options = _parse(arguments)
    from longvision.inference.device import check_device
    from longvision.registry import load

    # All mistakes that can be told without torch are told before it is loaded.
    method = find_method(options.method)
    given = _own_options(method, options)
    if options.device is not None:
        check_device(options.device)
    size = parse_size(options.size)
    _check_subject(options, method, size)
    _check_needed(options.method, method, given)
    folder = free_folder(options.out, "explained-{}", "--out")
    quiet()
    images = find_named_images(options.images)
    _check_images(options, method, images)
    limit = options.limit or method.images

    from longvision.benchmark.memory import limit_memory
    from longvision.explain.subject import named_model
    from longvision.inference.predictor import Predictor

    if os.path.exists(options.what):
        predictor = Predictor(options.what, options.device)
    else:
        predictor = named_model(options.what, options.weights, size, options.device)
        if options.weights is None:
            tell([f"{options.what} is untrained: its weights are random; --weights FILE takes others"])
    limit_memory()  # else the system would end the command without a word
    used: Any = images[:limit]
    if method.labelled:
        used, notes = labelled_batches(options.what, images, predictor.description, limit)
        tell(notes)
    elif len(images) > limit:
        tell([f"the first {limit} of {len(images)} images are used: --limit takes another number"])
    for finding in load(method.run)(predictor, used, **given):
        with user_paths():
            folder.mkdir(parents=True, exist_ok=True)
            for name, write in finding.files.items():
                write(folder / name)
        print(one_line(finding.sentence), flush=True)
    print(folder)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="longvision explain",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Shows what goes on inside a model: fills a folder with drawings and their numbers, and prints a "
        "sentence a result.\n\nmethods:\n" + "\n".join(f"  {name:<12} {one.help}" for name, one in METHODS.items()),
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="a folder that `longvision train` made, or its model.safetensors, or a model's name in timm (untrained)",
    )
    parser.add_argument("images", metavar="FILE|FOLDER", nargs="*", help="images, or folders that are searched")
    parser.add_argument("--method", required=True, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--out", metavar="FOLDER", help="where the files go (default: a new folder explained-N here)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a CUDA GPU where there is one, else cpu)")
    parser.add_argument("--weights", metavar="FILE", help="of a model by name: its weights (.safetensors, .pth)")
    parser.add_argument("--size", metavar="PIXELS", help="of a model by name: its images, 512 or 480x640")
    parser.add_argument("--limit", metavar="N", type=int, help="use N images, the first, or with labels some of all")
    for name, (takers, option) in _options_of_methods().items():
        parser.add_argument(f"--{name}", type=option.type, help=f"of {', '.join(takers)}: {option.help}")
    known, unknown = parser.parse_known_intermixed_args(arguments)  # images may stand behind options
    parser.refuse(unknown)
    return known


def _options_of_methods() -> dict[str, tuple[list[str], Any]]:
    """Each option with the methods that take it."""
    found: dict[str, tuple[list[str], Any]] = {}
    for method, about in METHODS.items():
        for name, option in about.options.items():
            found.setdefault(name, ([], option))[0].append(method)
    return found


def _own_options(method: Method, options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given. Raises UserError for one of another method."""
    given = {name: getattr(options, name) for name in _options_of_methods() if getattr(options, name) is not None}
    for name in given:
        if name not in method.options:
            takers = " and ".join(_options_of_methods()[name][0])
            raise UserError(f"--{name} means nothing to --method {options.method}: it is an option of {takers}")
    return given


def _check_needed(name: str, method: Method, given: dict[str, Any]) -> None:
    for needed, option in method.options.items():
        if option.example and needed not in given:
            raise UserError(f"--method {name} needs --{needed} {option.example}: {option.help}")


def _check_subject(options: argparse.Namespace, method: Method, size: Any) -> None:
    """Raises UserError for what is neither a run nor a model, for a task that the method cannot explain, and for
    options that belong to a model's name."""
    from longvision.files import find_weights
    from longvision.inference.description import read_description

    what = options.what
    if os.path.isfile(what) and not what.endswith(".safetensors"):
        raise UserError(
            f"{what} does not say of which model it is: {command_line('explain', 'NAME', '--weights', what)} …"
        )
    if not os.path.exists(what) and not os.path.dirname(what):
        check_model(what)
        if options.weights is not None and not os.path.isfile(options.weights):
            raise UserError(f"--weights {options.weights} is not a file: expected weights (.safetensors, .pth)")
        if size is not None:
            check_size(what, {}, size, can_pad=False)
        task = "classification"
    else:
        for name in ("weights", "size"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} belongs to a model by name: {what} has its own")
        task = read_description(find_weights(what)).task
    if method.tasks is not None and task not in method.tasks:
        raise UserError(
            f"--method {options.method} explains models for {' and '.join(sorted(method.tasks))}: {what} is for {task}"
        )


def _check_images(options: argparse.Namespace, method: Method, images: list[Path]) -> None:
    if options.limit is not None and not method.images:
        raise UserError(f"--limit means nothing to --method {options.method}, which looks at no images: leave it out")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: expected at least 1 image")
    if method.labelled and not images and not os.path.isdir(options.what):
        raise UserError(
            f"--method {options.method} looks at images with labels: give a run's folder, whose training images these "
            "are, or images in folders that are named after the classes"
        )
    if method.images and not images and not method.labelled:
        raise UserError(f"--method {options.method} looks at images, and there are none: give files or folders of them")
    if images and not method.images:
        raise UserError(f"--method {options.method} looks at no images: leave {images[0]} out")
