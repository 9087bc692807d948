"""Options of tasks: their ranges, told without torch."""

import subprocess
import sys

import pytest

from longvision.errors import UserError
from longvision.tasks import config as configs
from longvision.tasks.config import ClassificationConfig, DetectionConfig, DetrConfig, SegmentationConfig

EVERY = [ClassificationConfig, SegmentationConfig, DetectionConfig, DetrConfig]


@pytest.mark.parametrize("config", EVERY)
@pytest.mark.parametrize(
    "key, value",
    [
        ("lr", -1.0),
        ("lr", 11.0),
        ("lr", float("nan")),
        ("final_lr", 2.0),
        ("weight_decay", -0.1),
        ("drop_path", 1.0),
        ("warmup_epochs", -1),
        ("warmup_steps", -1),
        ("layer_decay", 1.5),
        ("layer_decay", 0.0),
    ],
)
def test_what_all_tasks_refuse_names_the_key(config, key, value):
    with pytest.raises(UserError, match=f"--model.{key} is {value}"):
        config(**{key: value})


@pytest.mark.parametrize(
    "config, key, value",
    [
        (ClassificationConfig, "label_smoothing", 1.0),
        (SegmentationConfig, "auxiliary", -1),
        (SegmentationConfig, "width", 0),
        (DetectionConfig, "width", 0),
        (DetrConfig, "width", 12),
        (DetrConfig, "queries", 0),
        (DetrConfig, "layers", 0),
        (DetrConfig, "dropout", 1.0),
        (DetrConfig, "backbone_lr", 11),
    ],
)
def test_what_single_tasks_refuse(config, key, value):
    with pytest.raises(UserError, match=f"--model.{key} is {value}"):
        config(**{key: value})


@pytest.mark.parametrize(
    "options, named",
    [
        ({"finetune": "head", "drop_path": 0.1}, "drop_path is 0.1"),
        ({"finetune": "memory", "args": {"drop_rate": 0.2}}, "args.drop_rate is 0.2"),
        ({"finetune": "memory_mask", "args": {"depth": 2, "attn_drop_rate": 0.3}}, "args.attn_drop_rate is 0.3"),
        ({"memory": 50}, "memory is 50"),
        ({"finetune": "class_token", "memory": 1}, "memory is 1"),
        ({"finetune": "memory_mask", "checkpoint": True}, "checkpoint is true"),
        ({"finetune": "memory", "args": {"weight_init": "jax"}}, "args.weight_init"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_has_no_meaning_in_a_way_of_fine_tuning(options, named):
    with pytest.raises(UserError, match=f"--model.{named}.* --model.finetune {options.get('finetune', 'full')}"):
        ClassificationConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"args": {"drop_rate": 0.2, "weight_init": "jax"}, "drop_path": 0.1, "checkpoint": True},
        {"finetune": "head", "args": {"drop_rate": 0.0, "depth": 2}, "memory": 5},
        {"finetune": "memory", "memory": 50, "checkpoint": True},
    ],
    ids=["full", "head", "memory"],
)
def test_what_has(options):
    assert ClassificationConfig(**options).memory in (5, 50)


def test_fpn_takes_multiples_of_64():
    assert SegmentationConfig(head="fpn", width=128).width == 128
    with pytest.raises(UserError, match=r"--model.width is 96.*64"):
        SegmentationConfig(head="fpn", width=96)


def test_every_option_is_documented():
    """In the class that adds it, where `--help` reads it."""
    for config in EVERY:
        documented = "".join(base.__doc__ or "" for base in config.__mro__)
        assert all(f"{name}: " in documented for name in config.__dataclass_fields__)


def test_it_loads_no_torch():
    program = f"import sys; import {configs.__name__}; print('torch' in sys.modules, 'lightning' in sys.modules)"
    # longvision/__init__ leaves the models unregistered where the command was loaded first
    program = f"import longvision_cli.main; {program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["False", "False"], done.stderr
