"""The stored list of Trainer options is that of the installed Lightning."""

import inspect
from dataclasses import MISSING, fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

pytest.importorskip("lightning")
from lightning import Trainer

from longvision.errors import UserError
from longvision_cli.trainer_options import TrainerOptions

SET_BY_US = {
    "callbacks", "default_root_dir", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "logger",
    "plugins",
}  # fmt: skip
PLAIN = {int, float, bool, str, type(None)}


def members(kind):
    """Of a union: its plain types, and the values of its literals."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    if get_args(kind) and get_origin(kind) not in (list, dict):
        return set().union(*map(members, get_args(kind)))
    return {get_origin(kind) or kind} & (PLAIN | {list, dict})


def test_names_defaults_and_types_are_lightning_s():
    theirs = {name: value for name, value in inspect.signature(Trainer).parameters.items() if name not in SET_BY_US}
    ours, hints = {each.name: each for each in fields(TrainerOptions)}, get_type_hints(TrainerOptions)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].default is not MISSING and ours[name].default == value.default, name
        assert members(hints[name]) == members(value.annotation), name


@pytest.mark.parametrize(
    "options", [{"max_epochs": 0}, {"max_epochs": -5}, {"max_steps": 0}, {"max_time": "x"}, {"devices": 0}]
)
def test_what_no_training_can_use(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"trainer.{name} is .*{value}"):
        TrainerOptions(**options)
