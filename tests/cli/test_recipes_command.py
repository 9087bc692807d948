"""`longvision recipes`: the list, and a recipe's file to copy."""

from pathlib import Path

import pytest

import longvision as package

FOLDER = Path(package.__file__).parent / "recipes"


def test_every_recipe_is_listed_with_its_first_lines(longvision):
    lines = longvision("recipes").out.splitlines()
    names = [line for line in lines if not line.startswith(" ")]
    assert names == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert "digits" in names
    for name in names:
        first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        assert lines[lines.index(name) + 1] == f"    {first}"


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_a_recipe_is_printed_as_it_is(longvision, name):
    answer = longvision("recipes", name)
    assert (answer.code, answer.out) == (0, (FOLDER / f"{name}.yaml").read_text())
    Path("copy.yaml").write_text(answer.out)
    assert longvision("recipes", "copy.yaml").out == answer.out
