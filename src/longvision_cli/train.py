"""`longvision train`: from a recipe and dotted overrides to a run's folder."""

from typing import Any

from longvision_cli.configuration import read_configuration
from longvision_cli.quiet import quiet

DEFAULT_RECIPE = "digits"


def run(arguments: list[str]) -> int:
    quiet()
    configuration = read_configuration(arguments, default=DEFAULT_RECIPE)
    from lightning import seed_everything

    from longvision.engine.run import Run, leads_run
    from longvision.engine.trainer import make_trainer, train

    resumed = Run.open(configuration.resume) if configuration.resume else None
    checkpoint = resumed.resume_from() if resumed else None
    if not 0 <= configuration.seed < 2**32:
        raise ValueError(f"--seed {configuration.seed}: expected a whole number from 0 to 4294967295")
    seed_everything(configuration.seed, workers=True, verbose=False)
    data, task = configuration.build(weights_follow=resumed is not None)
    data.setup("fit")

    run_folder = resumed or Run.create(configuration.runs, f"{configuration.source}-{task.name}")
    try:
        trainer = make_trainer(configuration.trainer, run_folder, task.monitor())
        if leads_run():
            configuration.values.trainer.precision = trainer.precision  # the default depends on the machine
            configuration.save(run_folder.new_config())
            _announce(task, data, run_folder, checkpoint is not None)
        outcome = train(trainer, task, data, run_folder, checkpoint)
    except KeyboardInterrupt:
        if run_folder.last.is_file():
            raise KeyboardInterrupt(f"saved; go on with: longvision train --resume {run_folder.path}") from None
        raise KeyboardInterrupt("before there was anything to save") from None
    finally:
        if leads_run():
            run_folder.discard_if_unused()
    if leads_run():
        print(f"{task.leaves}, model.safetensors and its card are in the run's folder")
        print(outcome)
        print(run_folder.path)
    return 0


def _announce(task: Any, data: Any, run_folder: Any, goes_on: bool) -> None:
    splits = ("train", "val", "test") if data.has_test else ("train", "val")
    words = {"train": "training", "val": "validation", "test": "test"}
    counts = ", ".join(f"{len(data.images(split))} {words[split]}" for split in splits)
    parameters = sum(p.numel() for p in task.model.parameters())
    print(f"{task.name}, {parameters:,} parameters, {data.size[0]}x{data.size[1]} pixels")
    print(f"{data.name}: {len(data.classes)} classes, {counts} images")
    print(f"{'goes on in' if goes_on else 'run folder'} {run_folder.path}", flush=True)
