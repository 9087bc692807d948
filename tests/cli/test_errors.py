"""Every mistake of a user: exit code 2, one line on stderr, nothing on stdout, no run folder, and what to do."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from longvision.models.weights.files import read_weights, write_weights


def check_one_line(answer, *expected):
    assert answer.code == 2, answer
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err
    assert ": error: " in answer.err
    for text in expected:
        assert text in answer.err, answer.err
    assert answer.out == ""
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    "words, named",
    [
        ("-c digit", ["'digit'", "digits"]),
        ("-c zzzz", ["'zzzz'", "ade20k_vim_small"]),
        ("-c nosuch.yaml", ["nosuch.yaml"]),
        ("-c", ["-c"]),
        ("-c mixed_digits --model.name test_vit", ["VisionTransformer", "vim_nano_patch4_32", "vit_nano_patch4_32"]),
        (
            "--model.name test_vit --model.args.dynamic_img_size false --data.sizes 16",
            ["sizes [16]", "dynamic_img_size"],
        ),
        ("--task segment", ["'segment'", "segmentation"]),
        ("--source foldr", ["'foldr'", "folder"]),
        ("--model.name vim_tinny_patch16_224", ["vim_tiny_patch16_224"]),
        ("--model.name qqqqqqqqqqqq", ["qqqqqqqqqqqq", "longvision models"]),
        ("--model.nmae x", ["--model.nmae", "--model.name"]),
        ("--lr 3", ["--lr", "--model.lr"]),
        ("--model.lr", ["--model.lr", "VALUE"]),
        ("--model.lr --data.size 3", ["--model.lr", "VALUE"]),
        ("--model.asking.flip true", ["--model.asking.flip", "--model.inference.flip"]),
        ("--data.augment.flp 3", ["data.augment.flp", "data.augment.flip"]),
        ("--data.path x", ["--data.path", "--source"]),
        ("--model.lr x", ["model.lr", "'x'", "a number"]),
        ("--model.lr 1e9", ["model.lr", "1000000000", "from 0 to 10"]),
        ("--model.lr -1", ["model.lr", "-1", "from 0 to 10"]),
        ("--model.drop_path 1", ["model.drop_path", "from 0 to 0.99"]),
        ("--model.layer_decay 2", ["model.layer_decay", "from 0.01 to 1"]),
        ("--model.checkpoint maybe", ["model.checkpoint", "'maybe'", "true or false"]),
        ("--model.args foo", ["model.args", "'foo'"]),
        ("--model.args.foo 3", ["model.args", "vim_nano_patch4_32", "foo"]),
        ("--model.pretrained nofile.pth", ["nofile.pth"]),
        ("--trainer.max_epochs x", ["trainer.max_epochs", "'x'", "a whole number or null"]),
        ("--trainer.max_epochs -5", ["trainer.max_epochs", "-5"]),
        ("--trainer.max_time x", ["trainer.max_time", "'x'", "DD:HH:MM:SS"]),
        ("--trainer.devices 0", ["trainer.devices", "0"]),
        ("--trainer.precision 17", ["trainer.precision", "'17'", "bf16-mixed"]),
        ("--trainer.callback x", ["--trainer.callback"]),
        ("--seed x", ["seed", "'x'", "a whole number"]),
        ("--seed -1", ["seed", "-1"]),
        ("--data.size 18", ["18x18", "patches of 4", "16x16"]),
        ("--model.name vit_nano_patch4_32 --data.size 18", ["18x18", "patches of 4", "16x16"]),
        ("--model.name navit_tiny_patch16 --data.size 40", ["40x40", "patches of 16", "32x32 or 48x48"]),
        ("--data.size 0", ["size", "0"]),
        ("--data.size x", ["data.size", "'x'", "a whole number"]),
        ("--data.channels 2", ["data.channels 2", "1 channel", "3"]),
        ("--data.batch_size 0", ["batch_size", "0"]),
        ("--data.augment.flip 3", ["flip", "3", "from 0 to 1"]),
        ("--data.augment.rand_augment foo", ["rand_augment", "'foo'"]),
        ("extra", ["'extra'"]),
        ("--resume nothing", ["nothing"]),
        ("-c folder", ["data.path", "--data.path VALUE"]),
        ("-c folder --data.path nowhere", ["nowhere"]),
        ("-c parquet --data.path nowhere", ["nowhere"]),
    ],
)
def test_train(longvision, words, named):
    check_one_line(longvision("train", *words.split()), "longvision train: error: ", *named)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--model.pretrained true", "vim_nano_patch4_32"),
        ("--model.name resnet18 --data.channels 3 --model.args.foo 3", "resnet18"),
    ],
)
def test_train_mistakes_of_others_libraries(longvision, words, expected):
    answer = longvision("train", *words.split())
    assert answer.code == 2, answer
    assert expected in answer.err


def test_no_epochs_at_all(train):
    answer = train("--trainer.max_epochs", 0)
    assert answer.code == 2
    assert "max_epochs" in answer.err


def test_a_start_that_fails_leaves_no_folder(train):
    answer = train("--trainer.accelerator", "tpux")
    assert answer.code == 2
    assert "tpux" in answer.err and answer.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("runs", ["file", "file/runs"])
def test_a_place_for_runs_that_is_none(train, runs):
    Path("file").write_text("x")
    check_one_line(train("--runs", runs), "file")


@pytest.mark.parametrize(
    "text, named",
    [
        ("model: [", ["own.yaml", "YAML"]),
        ("3", ["own.yaml"]),
        ("", ["own.yaml"]),
        ("modle:\n  name: x", ["own.yaml", "modle.name", "model.name"]),
        ("modle: 3", ["own.yaml", "modle"]),
        ("model: 3", ["own.yaml", "model"]),
        ("model:\n  lr: fast", ["model.lr", "'fast'", "a number"]),
        ("model:\n  asking:\n    flip: true", ["own.yaml", "model.asking.flip", "model.inference.flip"]),
        ("source: foldr", ["'foldr'", "folder"]),
        ("source: 3", ["source", "3"]),
    ],
)
def test_train_with_a_broken_yaml(longvision, text, named):
    Path("own.yaml").write_text(text)
    check_one_line(longvision("train", "-c", "own.yaml"), *named)


def test_train_on_a_file(longvision):
    Path("file").write_text("x")
    check_one_line(longvision("train", "-c", "folder", "--data.path", "file"), "file is a file: give a folder")


def test_train_with_an_empty_class(train, own_images):
    (own_images / "train" / "empty").mkdir()
    check_one_line(train("-c", "folder", "--data.path", own_images), "has no images of empty")


def test_train_with_one_class(train, own_images):
    for split in ("train", "val"):
        shutil.rmtree(own_images / split / "dark")
    check_one_line(train("-c", "folder", "--data.path", own_images), "only the class light: two classes are needed")


def test_train_with_many_bad_images(train, own_images):
    for number in range(12):
        (own_images / "train" / "dark" / f"bad{number:02}.jpg").write_text("no image")
    answer = train("-c", "folder", "--data.path", own_images)
    check_one_line(answer, "12 of 20 files in", "more than 1 %")
    assert [f"bad{number:02}" in answer.err for number in range(12)] == [True] * 10 + [False] * 2


def test_train_on_a_folder_without_parquet(longvision, own_images):
    check_one_line(longvision("train", "-c", "parquet", "--data.path", own_images), str(own_images), "parquet")


@pytest.mark.parametrize(
    "command", [["train", "--resume", "{}"], ["predict", "{}", "image.png"], ["validate", "{}"]], ids=lambda c: c[0]
)
def test_what_is_no_run_folder(longvision, tmp_path, command):
    Image.new("L", (8, 8)).save("image.png")
    (tmp_path / "other").mkdir()
    for given, expected in {"nothing": "run folder nothing does not exist", "other": "is not a run folder"}.items():
        check_one_line(longvision(*(word.format(given) for word in command)), given, expected, "longvision train")


def test_an_unfinished_run_says_how_to_go_on(longvision, stopped_run):
    Image.new("L", (8, 8)).save("image.png")
    for words in (["predict", stopped_run, "image.png"], ["validate", stopped_run]):
        check_one_line(longvision(*words), "not finished", f"longvision train --resume {stopped_run}")


def test_a_finished_run_is_not_resumed(longvision, digits_run):
    before = sorted(digits_run.rglob("*"))
    answer = longvision("train", "--resume", digits_run)
    check_one_line(
        answer, "is finished", f"-c {digits_run}/config.yaml --model.pretrained {digits_run}/model.safetensors"
    )
    assert sorted(digits_run.rglob("*")) == before


def test_a_run_whose_checkpoints_are_gone_is_not_resumed(longvision, digits_run, tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(digits_run / name, tmp_path / "old")
    said = "no other checkpoint: start again with -c old"
    check_one_line(longvision("train", "--resume", "old"), said)


@pytest.mark.parametrize("damage", [b"", b"\x10", b"nonsense" * 100])
def test_weights_that_are_damaged(longvision, digits_run, tmp_path, damage):
    broken = shutil.copytree(digits_run, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(damage)
    Image.new("L", (8, 8)).save("image.png")
    for words in (
        ["predict", broken, "image.png"],
        ["validate", broken],
        ["convert", broken / "model.safetensors", "o.safetensors"],
    ):
        check_one_line(longvision(*words), f"{broken}/model.safetensors is not a safetensors file that can be read")


def test_weights_cut_short(longvision, digits_run, tmp_path):
    broken = shutil.copytree(digits_run, tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (8, 8)).save("image.png")
    check_one_line(longvision("predict", broken, "image.png"), "is not a safetensors file that can be read")


def test_weights_without_their_description(longvision, digits_run, tmp_path):
    plain = shutil.copytree(digits_run, tmp_path / "plain")
    save_file(load_file(plain / "model.safetensors"), plain / "model.safetensors")
    Image.new("L", (8, 8)).save("image.png")
    check_one_line(longvision("predict", plain, "image.png"), "does not say its architecture, classes, preprocess")


def test_validate_weights_without_their_description(longvision, digits_run, tmp_path):
    plain = shutil.copytree(digits_run, tmp_path / "plain")
    save_file(load_file(plain / "model.safetensors"), plain / "model.safetensors")
    check_one_line(longvision("validate", plain), "does not say its architecture, classes, preprocess")


def _with_other_weights(run, target):
    """A run folder with a tensor of another name and one of another shape."""
    weights, metadata = read_weights(run / "model.safetensors")
    weights["other"] = weights.pop("norm_f.weight")
    weights["layers.0.mixer.out_proj.weight"] = torch.zeros(3, 3)
    shutil.copytree(run, target)
    (target / "model.safetensors").unlink()
    write_weights(weights, target / "model.safetensors", metadata)
    return target


def test_train_from_weights_of_another_model(train, digits_run, tmp_path):
    other = _with_other_weights(digits_run, tmp_path / "other")
    check_one_line(
        train("--model.pretrained", other / "model.safetensors"),
        "is a checkpoint for another model", "norm_f.weight is missing", "other is unknown to the model",
        "layers.0.mixer.out_proj.weight is (3, 3), the model's is (32, 64)",
    )  # fmt: skip


def test_train_from_a_run_s_folder(train, digits_run):
    check_one_line(train("--model.pretrained", digits_run), "is not a file", str(digits_run / "model.safetensors"))


def test_train_from_a_run_of_another_model(train, digits_run):
    words = ["--model.name", "test_resnet", "--model.args", "{}", "--data.channels", 3]
    answer = train(*words, "--model.pretrained", digits_run / "model.safetensors")
    check_one_line(answer, "is a checkpoint for another model", "it is for vim_nano_patch4_32")


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_run_with_weights_of_another_model(longvision, digits_run, tmp_path, command):
    other = _with_other_weights(digits_run, tmp_path / "other")
    Image.new("L", (8, 8)).save("image.png")
    words = [command, other] + (["image.png"] if command == "predict" else [])
    check_one_line(longvision(*words), "norm_f.weight")


@pytest.mark.parametrize(
    "words, named",
    [
        ("predict", ["RUN", "FILE|FOLDER"]),
        ("predict {run}", ["FILE|FOLDER"]),
        ("predict {run} nowhere.png", ["nowhere.png"]),
        ("predict {run} empty", ["empty"]),
        ("predict {run} image.png --devic cpu", ["--devic", "--device"]),
        ("predict {run} image.png --out image.png", ["image.png"]),
        ("validate", ["RUN"]),
        ("validate {run} more", ["'more'"]),
        ("validate {run} --split train", ["'train'", "val", "test"]),
        ("validate {run} --split", ["--split"]),
        ("validate {run} --task detr", ["--task", "a run keeps the task"]),
        ("validate {run} --data.sizee 3", ["--data.sizee", "--data.size"]),
        ("validate {run} --data.size 18", ["18x18", "patches of 4"]),
        ("models nosuch*", ["'nosuch*'"]),
        ("models --size 0", ["'0'", "512", "480x640"]),
        ("models --size 10xa", ["'10xa'"]),
        ("models --siz 10", ["--siz", "--size"]),
        ("models a b", ["'b'"]),
        ("recipes digit", ["'digit'", "digits"]),
        ("recipes a b", ["'b'"]),
        ("convert", ["IN", "OUT.safetensors"]),
        ("convert nowhere.pth out.safetensors", ["nowhere.pth"]),
        ("convert image.png out.pth", ["out.pth", ".safetensors"]),
        ("convert image.png there.safetensors", ["there.safetensors"]),
        ("convert image.png no/out.safetensors", ["no/out.safetensors"]),
        ("convert {run}/model.safetensors o.safetensors", ["vim_nano_patch4_32", "(1, 1, 32)", "models.Vim("]),
        ("check-data --out", ["--out"]),
        ("check-data --split val", ["--split"]),
    ],
)
def test_the_other_commands(longvision, digits_run, words, named):
    Image.new("L", (8, 8)).save("image.png")
    Path("there.safetensors").write_text("kept")
    Path("empty").mkdir()
    answer = longvision(*words.format(run=digits_run).split())
    check_one_line(answer, f"longvision {words.split()[0]}: error: ", *named)
    assert Path("there.safetensors").read_text() == "kept"


def test_validate_at_another_size_works_or_says_why_not(longvision, digits_run):
    answer = longvision("validate", digits_run, "--data.size", 32)
    assert answer.code in (0, 2), answer


def _plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("it-ran"),))


@pytest.mark.parametrize("write", [torch.save, _plain_pickle])
@pytest.mark.parametrize("place", ["top", "inside"])
def test_nothing_in_a_malicious_pickle_runs(longvision, train, write, place):
    content = Malicious() if place == "top" else {"model": {"w": torch.zeros(2)}, "args": Malicious()}
    write(content, Path("bad.pth"))
    check_one_line(longvision("convert", "bad.pth", "out.safetensors"), "bad.pth")
    check_one_line(train("--model.pretrained", "bad.pth"), "bad.pth")
    assert not Path("it-ran").exists()
    assert not Path("out.safetensors").exists()
    torch.load("bad.pth", weights_only=False) if write is torch.save else pickle.loads(Path("bad.pth").read_bytes())
    assert Path("it-ran").exists()  # it was a real one
