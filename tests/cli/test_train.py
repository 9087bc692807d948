"""`longvision train` from the words on the command line to the files in the run's folder."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from longvision.engine import trainer as training
from longvision.engine.run import Run
from longvision.engine.trainer import RunCheckpoint
from longvision.errors import UserError
from longvision.models.weights.files import read_weights
from longvision.tasks.classification import Classification
from longvision_cli.configuration import Configuration
from longvision_cli.train import parse


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(run):
    return [
        {name: value for name, value in row.items() if name != "seconds" and not name.startswith("speed/")}
        for row in rows(run)
    ]


def test_the_last_two_lines_are_the_accuracy_and_the_folder(digits_answer):
    assert digits_answer.code == 0
    *_, accuracy, folder = digits_answer.out.splitlines()
    share = r"\d+\.\d %"
    assert re.fullmatch(f"test accuracy {share}, balanced accuracy {share}, AUROC {share}", accuracy)
    assert Path(folder).is_dir()
    _, metadata = read_weights(Path(folder) / "model.safetensors")
    assert accuracy.startswith(f"test accuracy {100 * metadata['metrics']['test/accuracy']:.1f} %, ")
    assert digits_answer.err == ""


def test_what_is_said_first(digits_answer, digits_run):
    model, data, folder, *_ = digits_answer.out.splitlines()
    assert model == "vim_nano_patch4_32, 15,210 parameters, 16x16 pixels"
    assert data == "digits: 10 classes, 1293 training, 144 validation, 360 test images"
    assert folder == f"run folder {digits_run}"
    epochs = [line for line in digits_answer.out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
    assert "testing the best epoch on 360 images" in digits_answer.out.splitlines()
    speed = r"[\d,.]+ images/s, \d+\.\d GB"
    assert re.fullmatch(rf"epoch 1/2  loss \d\.\d{{3}}, val accuracy \d+\.\d %  {speed}  \d+:\d\d left", epochs[0])


def test_everything_is_in_the_folder(digits_run):
    found = {str(path.relative_to(digits_run)) for path in digits_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "metrics.csv", "model.safetensors", "README.md", "curves.png", "confusion.png",
        "predictions.png", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    } <= found  # fmt: skip
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in found)
    assert not [name for name in found if name.endswith(".part")]


@pytest.mark.parametrize("name", ["curves", "confusion", "predictions"])
def test_images_show_something(digits_run, name):
    with Image.open(digits_run / f"{name}.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 400
        assert np.asarray(image.convert("L")).std() > 5


def test_metrics_have_a_row_an_epoch(digits_run):
    first, second = rows(digits_run)
    assert list(first) == [
        "epoch", "step", "lr", "speed/images_per_second", "speed/memory_gb", "train/accuracy", "train/loss",
        "val/accuracy", "val/auroc", "val/balanced_accuracy", "val/loss", "val/top5", "seconds",
    ]  # fmt: skip
    assert [(row["epoch"], row["step"]) for row in (first, second)] == [("1", "2"), ("2", "4")]
    for row in (first, second):
        assert 0 <= float(row["val/accuracy"]) <= float(row["val/top5"]) <= 1
        assert float(row["train/loss"]) > 0


def test_tensorboard_holds_the_same_metrics(digits_run):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged = reading.EventAccumulator(str(digits_run / "tensorboard"))
    logged.Reload()
    values = [event.value for event in logged.Scalars("val/accuracy")]
    assert values == pytest.approx([float(row["val/accuracy"]) for row in rows(digits_run)], rel=1e-4)


def test_the_configuration_parses_to_the_same_values(digits_run):
    again, _ = parse(["-c", str(digits_run / "config.yaml")])
    again.save(Path("again.yaml"))
    saved, second = (yaml.safe_load(path.read_text()) for path in (digits_run / "config.yaml", Path("again.yaml")))
    assert second == saved
    assert saved["model"]["args"] == {"depth": 1, "embed_dim": 32}
    assert (saved["trainer"]["max_epochs"], saved["data"]["size"], saved["seed"]) == (2, 16, 0)
    assert "classes" not in saved["model"]


@pytest.mark.parametrize(
    "words, gpu, precision",
    [
        ([], False, "32-true"),
        ([], True, "bf16-mixed"),
        (["--trainer.precision", "32-true"], True, "32-true"),
        (["--trainer.precision", "bf16"], False, "bf16-mixed"),
    ],
)
def test_the_configuration_says_the_precision(train, monkeypatch, words, gpu, precision):
    saved = []
    monkeypatch.setattr(Configuration, "save", lambda self, path: saved.append(self.trainer.precision))
    monkeypatch.setattr(training, "train", stopped)
    if gpu:
        monkeypatch.setattr(training, "_precision", lambda accelerator: "bf16-mixed")
    assert train(*words).code == 130
    assert saved == [precision]


def stopped(*_, **__):
    raise KeyboardInterrupt


def test_the_weights_say_all_that_prediction_needs(digits_run):
    weights, metadata = read_weights(digits_run / "model.safetensors")
    assert metadata["architecture"] == "vim_nano_patch4_32"
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    assert metadata["preprocess"]["size"] == [16, 16]
    assert metadata["args"] == {"depth": 1, "embed_dim": 32}
    with safe_open(digits_run / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    best = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, best[f"model.{name}"]) for name, tensor in weights.items())


def test_the_best_epoch_is_kept_not_the_last(train, monkeypatch):
    """In the last step of the second epoch the model is made to say the opposite."""
    step = Classification.training_step

    def turned(self, batch, index):
        if (self.current_epoch, index) == (1, 7):
            self.model.head.weight.data.neg_()
        return step(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", turned)
    run = train("--model.warmup_epochs", 0, "--trainer.limit_train_batches", 8).run
    first, second = (float(row["val/accuracy"]) for row in rows(run))
    assert first > second
    kept = read_weights(run / "model.safetensors")[0]["head.weight"]
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["model.head.weight"]
    assert (kept * last).sum() < 0


def test_the_card_s_program_works(digits_run, monkeypatch):
    card = (digits_run / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "timm"
    monkeypatch.chdir(digits_run)
    variables: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], variables)
    weights, _ = read_weights("model.safetensors")
    own = variables["model"].state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in weights)


def test_weights_and_biases_that_is_not_installed(train, monkeypatch):
    monkeypatch.setattr("longvision_cli.train.find_spec", lambda name: None)
    answer = train("--wandb", "my project")
    assert answer.code == 2 and "pip install wandb" in answer.err and "my project" in answer.err


def test_same_seed_same_metrics_in_a_folder_of_its_own(train, digits_run):
    before = {path: path.read_bytes() for path in digits_run.rglob("*") if path.is_file()}
    again = train("--runs", digits_run.parent)
    assert again.code == 0
    assert again.run != digits_run
    assert again.run.parent == digits_run.parent
    assert {path: path.read_bytes() for path in before} == before
    assert without_times(again.run) == without_times(digits_run)


@pytest.mark.slow
def test_another_seed_other_metrics(train, digits_run):
    assert without_times(train("--seed", 1).run) != without_times(digits_run)


def test_a_user_s_yaml_over_a_recipe_and_options_over_both():
    Path("own.yaml").write_text("model:\n  lr: 1.0e-4\n  weight_decay: 0.3\n  args: {depth: 3}\nseed: 5\n", "utf-8")
    words = ["-c", "digits", "-c", "own.yaml", "--model.lr", "5e-4", "--model.args.direction", "none", "--seed=7"]
    got, _ = parse(words)
    assert (got.model.lr, got.model.weight_decay, got.model.label_smoothing) == (5e-4, 0.3, 0.1)
    assert (got.model.args, got.seed, got.data.size) == ({"depth": 3, "direction": "none"}, 7, 16)
    assert parse(["-c", "digits", "-c", "own.yaml"])[0].seed == 5


def test_a_recipe_s_packs_are_switched_off_with_all_that_belongs_to_them():
    Path("own.yaml").write_text("data: {pack: false}\n", "utf-8")
    for words in (["--data.pack", "false"], ["-c", "own.yaml"]):
        data = parse(["-c", "mixed_digits", *words])[0].data
        assert (data.pack, data.tokens, data.sizes_by, data.sizes) == (False, 4096, "list", (16, 28))
    with pytest.raises(UserError, match=r"data\.tokens 512.*set data\.pack true"):
        parse(["-c", "mixed_digits", "--data.pack", "false", "--data.tokens", "512"])


def test_folders_of_images(longvision, folder_run, images):
    assert len(rows(folder_run)) == 2
    _, metadata = read_weights(folder_run / "model.safetensors")
    assert metadata["classes"] == ["dark", "light"]
    assert metadata["preprocess"]["channels"] == 3
    assert "val/top5" not in rows(folder_run)[0]


def test_folders_without_test_images(train, own_images):
    answer = train("-c", "folder", "--data.path", own_images)
    assert answer.code == 0
    accuracy, _ = answer.out.splitlines()[-2:]
    assert re.fullmatch(
        r"validation accuracy \d+\.\d %, .* \d+\.\d % \(the best epoch's; there are no test images\)", accuracy
    )
    best = max(float(row["val/accuracy"]) for row in rows(answer.run))
    assert accuracy.startswith(f"validation accuracy {100 * best:.1f} %")


def test_mixup_and_soft_targets(train, own_images):
    answer = train("-c", "folder", "--data.path", own_images, "--data.augment.mixup", 0.8, "--data.augment.cutmix", 1)
    assert answer.code == 0, answer.err
    assert float(rows(answer.run)[0]["train/loss"]) > 0


def test_a_few_bad_images_are_named_and_skipped(train, tmp_path):
    for split, count in {"train": 100, "val": 2}.items():
        for number in range(2 * count):
            path = tmp_path / "set" / split / ("dark", "light")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 200 * (number % 2)).save(path)
    (tmp_path / "set" / "train" / "dark" / "0.png").write_text("no image")
    answer = train("-c", "folder", "--data.path", tmp_path / "set")
    assert answer.code == 0
    assert "1 of 200 files in" in answer.err and "dark/0.png" in answer.err
    assert "199 training" in answer.out


def test_parquet(train, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = []
    for number in range(20):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 16), (12 * number, 0, 0)).save(buffer, ("PNG", "JPEG")[number % 2])
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": encoded, "label": [number // 10 for number in range(20)]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    answer = train("-c", "parquet", "--data.path", tmp_path)
    assert answer.code == 0, answer.err
    assert "2 classes, 18 training, 2 validation, 20 test images" in answer.out
    assert answer.out.splitlines()[-2].startswith("test accuracy ")


@pytest.mark.parametrize("name", ["resnet10t", pytest.param("deit_tiny_patch16_224", marks=pytest.mark.slow)])
def test_models_of_timm(longvision, own_images, name):
    words = "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --data.workers 0 --data.size 32 --data.batch_size 4"
    answer = longvision("train", "-c", "folder", "--data.path", own_images, "--model.name", name, *words.split())
    assert answer.code == 0, answer.err
    image = next(own_images.rglob("*.png"))
    assert longvision("predict", answer.run, image, "--json").code == 0


def test_from_a_run_s_weights_with_another_class_count(train, own_images, digits_run):
    weights = digits_run / "model.safetensors"
    words = ["--data.path", own_images, "--data.channels", 1, "--model.pretrained", weights, "--model.lr", 0]
    answer = train("-c", "folder", *words)
    assert answer.code == 0, answer.err
    before, after = read_weights(weights)[0], read_weights(answer.run / "model.safetensors")[0]
    assert (len(before["head.weight"]), len(after["head.weight"])) == (10, 2)
    same = [name for name in before if not name.startswith("head.")]
    assert len(same) > 10
    for name in same:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert "given weights" in (answer.run / "README.md").read_text()


def test_a_loss_that_is_no_number_stops_with_a_sentence(train, monkeypatch):
    monkeypatch.setattr(Classification, "forward", lambda self, x_BCHW: self.model(x_BCHW) * float("nan"))
    answer = train("--model.lr", 0.3, "--model.nonfinite_steps", 3)
    assert answer.code == 2
    *_, skipped, error = answer.err.splitlines()
    assert "step 2 is skipped, its loss is not finite; its 64 images: number " in skipped
    assert "not finite in 3 steps in a row, up to step 2: lower --model.lr (now 0.3)" in error
    assert "--allow-changed-config" in error  # without which --resume takes neither
    assert "Traceback" not in answer.err


def test_weights_that_are_no_numbers_do_not_replace_the_last_good_checkpoint(train, monkeypatch):
    step = Classification.training_step

    def poisoned(self, batch, index):
        if self.global_step == 3:
            self.model.head.weight.data.fill_(float("nan"))
        return step(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", poisoned)
    answer = train()
    assert answer.code == 2 and "a weight is not finite at step 3: lower --model.lr" in answer.err
    (run,) = Path("runs").iterdir()
    assert f"the last good state is {run / 'checkpoints' / 'last.ckpt'}" in answer.err
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_interrupted_and_resumed(train, longvision, stop):
    stopped = stop(6, lambda: train("--trainer.limit_train_batches", 4))
    (folder,) = Path("runs").iterdir()
    assert stopped.code == 130
    hint = f"longvision train --resume {folder}"
    assert stopped.err.splitlines()[-1] == f"longvision train: interrupted: saved; go on with: {hint}"
    assert "Traceback" not in stopped.err
    assert [row["epoch"] for row in rows(folder)] == ["1"]
    assert not (folder / "model.safetensors").exists()

    resumed = longvision(*hint.split()[1:])
    assert resumed.code == 0, resumed.err
    assert resumed.run == folder
    assert list(Path("runs").iterdir()) == [folder]
    # in the middle of the second epoch it went on, and made the steps that a run without a break makes
    assert [(row["epoch"], row["step"]) for row in rows(folder)] == [("1", "4"), ("2", "8")]
    assert (folder / "model.safetensors").is_file()
    assert str(folder) in resumed.out
    assert resumed.out.splitlines()[-2].startswith("test accuracy")
    assert longvision("train", "--resume", folder).code == 2


@pytest.mark.slow
def test_resumed_with_another_length(train, longvision, stopped_run):
    answer = longvision("train", "--resume", stopped_run, "--trainer.max_epochs", 3)
    assert answer.code == 0, answer.err
    assert [(row["epoch"], row["step"]) for row in rows(stopped_run)] == [("1", "4"), ("2", "8"), ("3", "12")]
    first, second = (yaml.safe_load(path.read_text()) for path in Run.open(stopped_run).configs())
    assert (first["trainer"]["max_epochs"], second["trainer"]["max_epochs"]) == (2, 3)
    assert second["model"] == first["model"]


@pytest.mark.slow
def test_resumed_on_a_set_that_has_changed(train, longvision, stop, own_images):
    """Nothing is trained before it is refused; a run of earlier versions, which noted nothing, says so."""
    words = ["-c", "folder", "--data.path", own_images, "--data.batch_size", 4]
    assert stop(3, lambda: train(*words)).code == 130
    (folder,) = Path("runs").iterdir()
    dark = own_images / "train/dark"
    dark.rename(own_images / "train/zebra")
    (own_images / "val/dark").rename(own_images / "val/zebra")
    renamed = longvision("train", "--resume", folder, "--allow-changed-data")
    assert renamed.code == 2 and "dark" in renamed.err and "zebra" in renamed.err and "light was 1, is 0" in renamed.err
    for split in ("train", "val"):
        (own_images / split / "zebra").rename(own_images / split / "dark")
    Image.new("RGB", (8, 8), "red").save(dark / "new.png")
    added = longvision("train", "--resume", folder)
    assert added.code == 2 and "1 image added" in added.err and "--allow-changed-data" in added.err
    assert longvision("train", "--resume", folder, "--seed", 3).code == 2
    assert [row["epoch"] for row in rows(folder)] == ["1"]
    allowed = longvision("train", "--resume", folder, "--allow-changed-data")
    assert allowed.code == 0, allowed.err
    assert "changed since the run began: 1 image added" in allowed.out
    assert len(Run.open(folder).data_files()) == 2

    before = longvision("validate", folder)
    Image.new("RGB", (8, 8), "red").save(own_images / "val/dark/new.png")
    after = longvision("validate", folder)
    assert after.out.splitlines()[0] == before.out.splitlines()[0] and "val/dark/new.png" in after.out
    for file in Run.open(folder).data_files():
        file.unlink()
    assert "earlier version" in longvision("validate", folder).out


@pytest.mark.slow
def test_interrupted_twice(longvision, stopped_run, stop):
    answer = stop(7, lambda: longvision("train", "--resume", stopped_run))
    assert answer.code == 130 and f"--resume {stopped_run}" in answer.err
    assert longvision("train", "--resume", stopped_run).code == 0
    assert [(row["epoch"], row["step"]) for row in rows(stopped_run)] == [("1", "4"), ("2", "8")]


@pytest.mark.slow
def test_interrupted_between_epochs_the_result_is_that_of_a_run_without_a_break(train, longvision, stop):
    """With nothing random but the start: no dropout, one batch of all images in order."""
    words = ["--trainer.overfit_batches", 1, "--data.augment.rotate", 0, "--data.augment.shift", 0]
    words += ["--data.augment.zoom", 0, "--trainer.max_epochs", 4]
    whole = train(*words, "--runs", "whole")
    assert stop(2, lambda: train(*words, "--runs", "broken"), "on_train_epoch_start").code == 130
    (folder,) = Path("broken").iterdir()
    assert longvision("train", "--resume", folder).code == 0
    names = ("epoch", "step", "lr", "val/loss")
    one, two = ([[row[name] for name in names] for row in rows(run)] for run in (whole.run, folder))
    assert [row[:3] for row in one] == [row[:3] for row in two]
    assert [float(row[3]) for row in two] == pytest.approx([float(row[3]) for row in one], rel=1e-3)


@pytest.mark.slow
def test_interrupted_while_it_validates(train, longvision, stop):
    answer = stop(2, lambda: train(), "on_validation_start")
    assert answer.code == 130
    (folder,) = Path("runs").iterdir()
    assert longvision("train", "--resume", folder).code == 0
    assert [(row["epoch"], row["step"]) for row in rows(folder)] == [("1", "2"), ("2", "4")]


@pytest.mark.slow
def test_ctrl_c(tmp_path, hear_ctrl_c):
    """The signal itself, in a process of its own."""
    words = ["--trainer.limit_train_batches", "10", "--model.args.depth", "1", "--model.args.embed_dim", "32"]
    program = [sys.executable, "-u", "-m", "longvision", "train", "--trainer.max_epochs", "100", *words]
    process = subprocess.Popen(
        program,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)  # only so that a process that hangs ends
    finally:
        process.kill()
    (folder,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 130, err
    assert f"saved; go on with: longvision train --resume runs/{folder.name}\n" in err
    assert "Traceback" not in err
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    "recipe, name, data, some",
    [
        ("folder", "vim_tiny_patch16_224", "imagenette224", "val/*/*"),
        ("parquet", "vim_nano_patch4_32", "cifar10", None),
    ],
)
def test_real_data(longvision, shared, recipe, name, data, some):
    path = shared / "data" / data
    if not path.is_dir():
        pytest.skip(f"no {path}")
    words = (
        f"--model.name {name} --model.args.depth 1 --model.args.embed_dim 32 --data.batch_size 8 --data.workers 0 "
        "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 "
        "--trainer.limit_test_batches 2"
    )
    answer = longvision("train", "-c", recipe, "--data.path", path, *words.split())
    assert answer.code == 0, answer.err
    assert ": 10 classes, " in answer.out
    if some:
        image = sorted(path.glob(some))[0]
    else:
        image = Path("grey.png")
        Image.new("RGB", (32, 32), "grey").save(image)
    predicted = longvision("predict", answer.run, image)
    assert predicted.code == 0, predicted.err
    assert str(image)[-20:] in predicted.out


@pytest.mark.slow
def test_the_card_s_program_works_for_a_model_of_timm(train, monkeypatch):
    """timm drops a head that it believes to be for 1000 classes: the card says how many there are."""
    done = train("--model.name", "deit_tiny_patch16_224", "--model.args", json.dumps({"depth": 1, "patch_size": 8}))
    assert done.code == 0, done.err
    monkeypatch.chdir(done.run)
    variables: dict = {}
    exec(re.search(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)[1], variables)
    weights, _ = read_weights("model.safetensors")
    own = variables["model"].state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("option", "value", "before"), [("size", 32, "16"), ("channels", 3, "1")])
def test_resume_refuses_another_input(longvision, stopped_run, option, value, before):
    answer = longvision("train", "--resume", stopped_run, f"--data.{option}", value)
    assert answer.code == 2 and "Traceback" not in answer.err
    assert f"--data.{option} {value}" in answer.err and before in answer.err


@pytest.mark.slow
def test_resume_refuses_another_model(longvision, stopped_run):
    answer = longvision("train", "--resume", stopped_run, "--model.args.depth", 9)
    assert answer.code == 2 and "--model.args.depth 9: the run was begun with 1" in answer.err


def test_a_moved_run_keeps_its_best_epoch(tmp_path):
    first = RunCheckpoint(dirpath=tmp_path / "old", filename="best", monitor="val/accuracy", mode="max")
    first.best_model_path = str(tmp_path / "old" / "best.ckpt")
    first.best_model_score = torch.tensor(0.9)
    first.best_k_models = {first.best_model_path: first.best_model_score}
    moved = RunCheckpoint(dirpath=tmp_path / "new", filename="best", monitor="val/accuracy", mode="max")
    moved.load_state_dict(first.state_dict())
    assert moved.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert moved.best_model_score == 0.9 and list(moved.best_k_models) == [moved.best_model_path]
