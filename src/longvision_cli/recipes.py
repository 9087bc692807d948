"""`longvision recipes`: the YAML files that come with the package, and where a recipe's name leads."""

from pathlib import Path

from longvision.errors import MissingFileError, UserError, user_paths
from longvision.names import did_you_mean
from longvision_cli.arguments import ArgumentParser

FOLDER = Path(__file__).parent.parent / "longvision" / "recipes"


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision recipes",
        description="Lists the recipes: what each costs and reaches. Start one with `longvision train -c NAME`.",
    )
    parser.add_argument("name", nargs="?", help="print this recipe's file, to copy and change")
    name = parser.parse_args(arguments).name
    if name is not None:
        path = find_recipe(name)
        with user_paths():
            print(path.read_text(encoding="utf-8"), end="")
        return 0
    for path in recipe_paths():
        print(f"{path.stem}\n    " + "\n    ".join(headline(path)))
    return 0


def recipe_paths() -> list[Path]:
    """The YAML files that come with the package, by name."""
    return sorted(FOLDER.glob("*.yaml"))


def headline(path: Path) -> list[str]:
    """The comment lines at the top: what the recipe does, costs, reaches, and its command."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return lines


def find_recipe(name: str) -> Path:
    """A recipe's file by its name or path. Raises UserError with the nearest names."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix in (".yaml", ".yml"):
        raise MissingFileError(f"configuration {name} does not exist: expected a YAML file, or a recipe's name")
    known = {path.stem: path for path in recipe_paths()}
    if name not in known:
        raise UserError(f"unknown recipe {name!r}: {did_you_mean(name, known, cutoff=0.4)}")
    return known[name]
