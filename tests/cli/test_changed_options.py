"""With which options a run goes on, and with which not."""

import pytest

from longvision.errors import UserError
from longvision_cli.changed_options import ALLOWED, FREE, KEPT, OF_A_STEP, changed_options
from longvision_cli.configuration import options_of
from longvision_cli.train import parse
from longvision_cli.values import keys_of

SEGMENTATION, DETECTION = "-c segment_digits", "-c detect_digits"
AUTO = "--trainer.devices auto"
MIXUP, LESS = "--data.augment.mixup 0.5", "--data.batch_size 16"


def configuration(words):
    """The digits', whose batch is 64 images, or those of another recipe; on 4 devices."""
    recipe = [] if "-c " in words else ["-c", "digits"]
    return parse([*recipe, "--trainer.devices", "4", *words.split()])[0]


def changed(words, allowed=False, begun=""):
    names = [word.removeprefix("--") for word in words.split() if word.startswith("--")]
    return changed_options(configuration(begun), configuration(f"{begun} {words}"), names, allowed)


@pytest.mark.parametrize(
    "words, begun",
    [
        ("--trainer.max_epochs 99", ""),
        ("--trainer.max_time 00:01:00:00 --data.workers 2", ""),
        ("--trainer.devices 2", ""),
        ("--trainer.limit_val_batches 3", ""),
        (LESS, "--data.total_batch 256"),
        ("--data.batch_size 32 --trainer.accumulate_grad_batches 2", ""),
        ("--data.batch_size 128 --trainer.devices 2", ""),
        ("--data.batch_size 256 --trainer.devices [0] --trainer.num_nodes 1", ""),
        ("--data.batch_size 16 --trainer.devices 2", "--data.total_batch 256"),
        ("--data.total_batch 256", ""),
        ("--data.batch_size 32 --trainer.accumulate_grad_batches 2", AUTO),
        ("--data.batch_size 32 --trainer.accumulate_grad_batches 2", "--trainer.devices -1"),
        ("--model.checkpoint true --model.nonfinite_steps 3", ""),
        ("--model.inference.flip true --model.inference.window 64", SEGMENTATION),
        ("--model.detections 5", DETECTION),
    ],
)
def test_what_is_free_is_told(words, begun):
    assert changed(words, begun=begun) == changed(words, True, begun)
    assert len(changed(words, begun=begun)) >= words.count("--") - 1  # --trainer.num_nodes 1 is as it was


@pytest.mark.parametrize(
    "words, named",
    [
        (MIXUP, r"--data\.augment\.mixup 0\.5 \(it was 0\.0\)"),
        ("--data.augment.flip 0.25 --data.workers 2", r"augment\.flip 0\.25"),
        ("--data.balance true", r"--data\.balance True"),
        ("--trainer.gradient_clip_val 9", r"gradient_clip_val 9"),
        ("--trainer.limit_train_batches 5", "limit_train_batches 5"),
        ("--data.batch_size 128", "batch_size 128"),
        (LESS, r"--data\.batch_size 16 \(it was 64\)"),
        ("--model.lr 0.5", r"--model\.lr 0\.5 \(it was"),
        ("--data.batch_size 16 --trainer.accumulate_grad_batches 2", "batch_size 16.*accumulate_grad_batches 2"),
        ("--data.batch_size 128 --trainer.devices 4", "batch_size 128"),
        ("--trainer.accumulate_grad_batches 2", "accumulate_grad_batches 2"),
        ("--data.total_batch 512", "total_batch 512"),
        ("--data.crop 0.9", r"--data\.crop 0\.9"),
        ("--trainer.precision bf16-mixed", "precision bf16-mixed"),
        ("--model.final_lr 0.5", r"--model\.final_lr 0\.5 \(it was 0\.01\)"),
        ("--model.monitor auroc", "monitor auroc"),
        ("--model.schedule poly", "schedule poly"),
        ("--model.warmup_epochs 3 --model.warmup_steps 7", "warmup_epochs 3.*warmup_steps 7"),
    ],
)
def test_what_is_learnt_is_refused_unless_allowed(words, named):
    with pytest.raises(UserError, match=rf"{named}.*--allow-changed-config"):
        changed(words)
    assert changed(words, allowed=True)


@pytest.mark.parametrize(
    "words, named, begun",
    [
        ("--data.total_batch 64", "total_batch 64", AUTO),  # on 8 GPUs a step had 512
        ("--data.total_batch 64", "total_batch 64", "--trainer.devices -1"),
        ("--data.batch_size 16 --trainer.devices 4", "batch_size 16", AUTO),
        ("--data.batch_size 256 --trainer.devices -1", "batch_size 256", ""),
        ("--data.batch_size 32", "batch_size 32", "--trainer.devices -1"),
    ],
)
def test_a_number_of_devices_that_is_not_in_the_options_is_not_guessed(words, named, begun):
    with pytest.raises(UserError, match=rf"{named}.*--allow-changed-config"):
        changed(words, begun=begun)
    assert changed(words, True, begun)


def test_free_ones_are_not_named_among_the_refused():
    with pytest.raises(UserError) as error:
        changed(f"{MIXUP} --data.workers 2 {LESS}", begun="--data.total_batch 256")
    assert "workers" not in str(error.value) and "batch_size" not in str(error.value)


@pytest.mark.parametrize(
    "words, named",
    [
        ("--data.size 32", r"--data\.size 32: the run was begun with 16"),
        ("--model.drop_path 0.5", r"--model\.drop_path 0\.5: the run was begun with 0\.1"),
        ("--model.weight_decay 1", r"--model\.weight_decay 1"),
        ("--model.optimizer sgd", r"--model\.optimizer sgd"),
        ("--model.pretrained other.pth", r"--model\.pretrained other"),
        ("--model.args.depth 3", r"--model\.args"),
    ],
)
def test_another_input_or_model_is_never_allowed(words, named):
    with pytest.raises(UserError, match=named):
        changed(words, allowed=True)


def test_a_new_run_has_nothing_to_allow():
    with pytest.raises(UserError, match="--allow-changed-config is for --resume"):
        parse(["--allow-changed-config"])


def test_every_name_is_an_option():
    sources = {"classification": ("parquet", "labels", "shards"), "segmentation": ("masks",), "detection": ("coco",)}
    kinds = [options_of(task, source) for task, names in sources.items() for source in names]
    known = {key.name for kind in kinds for section, options in kind.items() for key in keys_of(options, section)}
    assert (FREE | OF_A_STEP | ALLOWED | set(KEPT)) - known == set()
