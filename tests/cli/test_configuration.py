"""Keys and values of recipes, options, and the configurations of runs that earlier versions wrote."""

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

pytest.importorskip("jsonargparse")
from longvision.data.config import FolderData
from longvision.errors import UserError
from longvision.names import did_you_mean
from longvision_cli.arguments import ArgumentParser, take_apart
from longvision_cli.configuration import RENAMED, configure
from longvision_cli.values import Key, build, in_words, keys_of, plain

OLD = Path(__file__).parent / "old_runs"


@dataclass(frozen=True)
class Inner:
    """Args:
    flip: how often.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is inherited.

    Args:
        size: of a side,
            or of two.
    """

    size: int | tuple[int, int] = 8


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Nothing.

    Args:
        path: where.
    """

    path: str
    args: dict[str, Any] | None = None
    inner: Inner = field(default_factory=lambda: Inner(flip=0.0))


def test_keys_know_type_default_and_help():
    keys = {key.name: key for key in keys_of(Options, "data")}
    assert list(keys) == ["data.size", "data.path", "data.args", "data.inner.flip", "data.inner.scale"]
    assert keys["data.path"].default is MISSING
    assert (keys["data.inner.flip"].default, keys["data.inner.scale"].default) == (0.0, (0.5, 2.0))
    assert (keys["data.size"].help, keys["data.path"].help) == ("of a side, or of two.", "where.")
    assert [name for name, key in keys.items() if key.holds_names] == ["data.args"]


def test_what_is_not_given_keeps_its_default_inside_too():
    assert build(Options, "data", {"data.path": "x", "data.inner.scale": (1.0, 1.0)}) == Options(
        path="x", inner=Inner(flip=0.0, scale=(1.0, 1.0))
    )


def test_plain_is_what_yaml_holds():
    assert yaml.safe_load(yaml.safe_dump(plain(Options(path="x", size=(2, 3))))) == {
        "size": [2, 3], "path": "x", "args": None, "inner": {"flip": 0.0, "scale": [0.5, 2.0]}
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (float, "1e-3", 1e-3),
        (int | tuple[int, int], "[16, 32]", (16, 32)),
        (int | tuple[int, int], "16,32", (16, 32)),
        (int | tuple[int, int], "16", 16),
        (tuple[int, ...], "32", (32,)),
        (tuple[int, ...], "16,32", (16, 32)),
        (tuple[float, ...] | None, "0.5", (0.5,)),
        (tuple[float, float] | Literal["dtype"] | None, "dtype", "dtype"),
        (tuple[float, float] | Literal["dtype"] | None, "0,3", (0.0, 3.0)),
        (bool | str, "true", True),
        (bool | str, "a.pth", "a.pth"),
        (str, "123", "123"),
        (str | None, "null", None),
        (Literal[1, 3], "3", 3),
        (dict[str, Any] | None, '{"depth": 1}', {"depth": 1}),
    ],
)
def test_a_value_is_read_by_its_type(kind, text, value):
    read = Key("x", kind, None).read(text, is_text=True)
    assert (read, type(read)) == (value, type(value))


def test_a_number_of_a_file_is_a_list_of_one():
    assert Key("x", tuple[int, ...], None).read(32) == (32,)
    assert Key("x", int | tuple[int, int], None).read(32) == 32


@pytest.mark.parametrize(
    "kind, text", [(tuple[int, ...], "x"), (tuple[int, ...], ""), (tuple[float, float] | None, "3")], ids=str
)
def test_a_text_that_is_no_list(kind, text):
    with pytest.raises(UserError, match="a list in brackets"):
        Key("x", kind, None).read(text, is_text=True)


@pytest.mark.parametrize(
    "kind, value, words",
    [
        (int, "1e3", "a whole number"),
        (float | None, "x", "a number or null"),
        (bool, 1, "true or false"),
        (Literal["a", "b"] | None, "c", "one of a, b, null"),
        (int | tuple[int, int], [1, 2, 3], "a whole number or a list in brackets"),
    ],
)
def test_a_value_of_another_kind_names_key_value_and_kind(kind, value, words):
    assert in_words(kind) == words
    with pytest.raises(UserError) as told:
        Key("model.x", kind, None).read(value)
    for named in ("model.x", repr(value), words):
        assert named in str(told.value)


@pytest.mark.parametrize(
    "given, near",
    [
        ("--lr", "--model.lr"),
        ("--model.nmae", "--model.name"),
        ("vim_tinny", "vim_tiny_patch16_224"),
        ("--name", "--model.name"),
        ("--model.n", "--model.name"),
    ],
)
def test_the_nearest_names(given, near):
    assert near in did_you_mean(
        given, ["--model.lr", "--model.name", "--data.size", "gcvit_tiny", "vim_tiny_patch16_224"]
    )


def words_of(*words):
    return take_apart(ArgumentParser(prog="longvision validate"), words)


@pytest.mark.parametrize("path", sorted(OLD.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configuration_of_an_old_run_opens(path):
    got = configure([path], words_of("--data.workers", "1"), of_run=True)
    old = yaml.safe_load(path.read_text())
    assert (got.task, got.source, got.trainer.max_epochs) == (old["task"], old["source"], 1)
    assert (got.model.args, got.model.lr) == (old["model"]["args"], old["model"]["lr"])
    assert (got.data.augment.flip, got.data.workers) == (0.0, 1)


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_a_renamed_key_is_answered_with_the_new_one(old, new):
    path = OLD / "segmentation.yaml"
    assert f"  {old.split('.')[1]}:" in path.read_text()
    for words, of_run in [(words_of(), False), (words_of(f"--{old}.flip", "true"), True)]:
        with pytest.raises(UserError) as told:
            configure([path], words, of_run)
        assert f"{old}." in str(told.value) and f"{new}." in str(told.value)


@pytest.mark.parametrize("key", ["callbacks", "plugins"])
def test_a_key_that_is_no_more_is_refused_where_it_says_something(tmp_path, key):
    text = (OLD / "detr.yaml").read_text()
    assert configure([OLD / "detr.yaml"], words_of()).source == "scattered"
    (tmp_path / "own.yaml").write_text(text.replace(f"{key}: null", f"{key}: something"))
    with pytest.raises(UserError, match=f"own.yaml: trainer.{key} "):
        configure([tmp_path / "own.yaml"], words_of())


def test_an_old_run_s_inference_is_read_under_its_new_name(tmp_path):
    text = (OLD / "segmentation.yaml").read_text().replace("    window: null", "    window: 32")
    (tmp_path / "config.yaml").write_text(text)
    assert configure([tmp_path / "config.yaml"], words_of(), of_run=True).model.inference.window == 32


def test_a_table_left_empty_changes_nothing(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model:\n  inference:\ntask: segmentation\nsource: scattered\ntrainer:\n", encoding="utf-8")
    words = words_of("--data.workers", "1")
    got = configure([path], words)
    path.write_text("task: segmentation\nsource: scattered\n", encoding="utf-8")
    assert plain(got) == plain(configure([path], words))


@pytest.mark.parametrize(
    "name, words",
    [("range", "dtype, image, a list in brackets, null"), ("size", "a whole number or a list in brackets")],
)
def test_what_an_option_takes_is_said_without_types(name, words):
    key = next(key for key in keys_of(FolderData, "data") if key.name == f"data.{name}")
    with pytest.raises(UserError, match=words) as refused:
        key.read("set")
    assert "<class" not in str(refused.value)
