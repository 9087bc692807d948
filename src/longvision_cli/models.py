"""`longvision models`: what there is, and what each costs at a size."""

import fnmatch

from longvision.errors import UserError
from longvision.names import did_you_mean
from longvision_cli.arguments import ArgumentParser, parse_size
from longvision_cli.model_names import model_names

ALL = "`longvision models '*'` lists those there are"


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision models",
        description="Lists models with parameters, multiply-adds (GMACs) of one image at a size, the accuracy on "
        "ImageNet-1k that their authors state of their weights (percent), and the licence of those.",
    )
    parser.add_argument(
        "pattern", nargs="?", help='a name with * and ?, among all of timm\'s, such as "deit_*"; default: ours'
    )
    parser.add_argument("--size", metavar="PIXELS", help="of the image: 512, or 480x640; default: each model's own")
    options = parser.parse_args(arguments)
    size = parse_size(options.size)
    if options.pattern:
        _check_fits(options.pattern, [known for name in model_names() for known in (name, f"{name}_pyramid")])

    import timm

    from longvision.models import NAMES
    from longvision.models.cost import measure_cost
    from longvision.models.published import licence, published_top_1

    names = timm.list_models(options.pattern) if options.pattern else NAMES
    if options.pattern:
        _check_fits(options.pattern, names)  # a pyramid that nobody registered
    width = max(len(name) for name in names)
    print(f"{'model':<{width}}  {'parameters':>12}  {'size':>9}  {'GMACs':>9}  scan's share  top-1  licence")
    for name in names:
        pretrained_cfg = timm.get_pretrained_cfg(name)
        assert pretrained_cfg is not None, name
        height_width = size or pretrained_cfg.input_size[1:]
        shown = "x".join(map(str, height_width))
        try:
            cost = measure_cost(name, *height_width)
        except Exception as error:  # among a thousand models of others some refuse a size: that is a row
            print(f"{name:<{width}}  {'-':>12}  {shown:>9}  {_reason(error)}")
            continue
        share = f"{100 * cost.scan_macs / cost.macs:.1f} %" if cost.scan_macs else "-"
        row = f"{name:<{width}}  {cost.parameters:>12,}  {shown:>9}  {cost.macs / 1e9:>9.3f}  {share:>12}"
        print(f"{row}  {published_top_1(pretrained_cfg) or '-':>5}  {licence(pretrained_cfg)}")
    return 0


def _check_fits(pattern: str, names: list[str]) -> None:
    if not fnmatch.filter(names, pattern):
        wider, stem = f"*{pattern.strip('*')}*", pattern.strip("*")
        near = f"try {wider!r}" if fnmatch.filter(names, wider) else did_you_mean(stem, names, otherwise=ALL)
        raise UserError(f"no model's name fits {pattern!r}: {near}")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:99] + "…"
