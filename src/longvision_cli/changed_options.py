"""Options with which a run goes on that are not those it was begun with: free, told, refused or never."""

from typing import Any

from longvision.errors import UserError
from longvision_cli.configuration import Configuration
from longvision_cli.values import plain

KEPT = tuple(f"data.{name}" for name in ("size", "channels", "range", "mean", "std", "seed", "multilabel"))
# the packs that a run has seen are counted
KEPT += tuple(f"data.{name}" for name in ("pack", "tokens", "patch", "sizes", "sizes_by", "drop", "drop_by"))
# Where and how long a run trains, what it is looked at for, and where its data is: whether that is the same is checked.
FREE = {
    *(f"data.{name}" for name in ("path", "classes_file", "train", "val", "test", "image_column", "label_column")),
    *(f"data.{name}" for name in ("label_key", "images", "separator", "workers", "unreadable")),
    *(f"trainer.{name}" for name in ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy")),
    *(f"trainer.limit_{split}_batches" for split in ("val", "test", "predict")),
    *(f"trainer.{name}" for name in ("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps")),
    *(f"trainer.{name}" for name in ("log_every_n_steps", "enable_autolog_hparams", "model_registry", "profiler")),
    *(f"trainer.{name}" for name in ("deterministic", "benchmark", "detect_anomaly", "fast_dev_run", "barebones")),
    *(f"trainer.{name}" for name in ("inference_mode", "use_distributed_sampler")),
    "trainer.reload_dataloaders_every_n_epochs",
    *(f"model.{name}" for name in ("checkpoint", "nonfinite_steps", "detections")),
    *(f"model.inference.{name}" for name in ("window", "stride", "scales", "flip")),
}
# The rest of the model's are in its weights and in the optimizer's state. Another metric forgets the best epoch so far.
ALLOWED = {f"model.{name}" for name in ("lr", "schedule", "warmup_epochs", "warmup_steps", "final_lr", "monitor")}
OF_A_STEP = {"data.batch_size", "data.total_batch", "trainer.accumulate_grad_batches"}


def changed_options(before: Configuration, now: Configuration, names: list[str], allowed: bool) -> list[str]:
    """Lines on what is not as it was, among the options of these names.

    Raises:
        UserError: it would not be the same model of the same images; or it would learn otherwise, unless `allowed`.
    """
    changed = {name: (_value(before, name), _value(now, name)) for name in dict.fromkeys(names)}
    changed = {name: (was, given) for name, (was, given) in changed.items() if was != given}
    for name, (was, given) in changed.items():
        if name in KEPT or (name.startswith("model.") and name not in FREE | ALLOWED):
            raise UserError(f"--{name} {given}: the run was begun with {was}; leave it out, or start a new run")
    free = FREE | OF_A_STEP if _images_a_step(before) == _images_a_step(now) else FREE
    learnt = [f"--{name} {given} (it was {was})" for name, (was, given) in changed.items() if name not in free]
    if learnt and not allowed:
        raise UserError(
            f"{', '.join(learnt)} may change what the run learns: leave that out, start a new run, or go on all the "
            "same with --allow-changed-config"
        )
    return [f"goes on with --{name} {given}, it was {was}" for name, (was, given) in changed.items()]


def _value(configuration: Configuration, name: str) -> Any:
    value: Any = plain(configuration)
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _images_a_step(configuration: Configuration) -> tuple[int, str | None]:
    """Of the optimizer; of each of the devices, where their number is not in the options, as with auto or -1."""
    data, trainer = configuration.data, configuration.trainer
    if data.total_batch:
        return data.total_batch, None
    images: int = data.batch_size * trainer.accumulate_grad_batches * trainer.num_nodes
    given = trainer.devices
    devices = len(given) if isinstance(given, list) else given
    return (images * devices, None) if isinstance(devices, int) and devices > 0 else (images, str(devices))
