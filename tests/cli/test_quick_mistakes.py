"""A mistake in a path, recipe, option, run or image is told before torch is loaded, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

OLD = Path(__file__).parent / "old_runs"
PROGRAM = """
import contextlib, io, json, sys
from longvision_cli.main import main
told = []
for words in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main(words)
    told.append([code, err.getvalue(), sorted({"torch", "timm", "lightning"} & set(sys.modules))])
print(json.dumps(told))
"""
MISTAKES = {
    "trian": "train",
    "train -c digit": "digits",
    "train -c nosuch.yaml": "nosuch.yaml",
    "train -c broken.yaml": "broken.yaml",
    "train -c a-folder.yaml": "a-folder.yaml",
    "train --task segment": "segmentation",
    "train --source foldr": "folder",
    "train --lr 3": "--model.lr",
    "train --model.nmae x": "--model.name",
    "train --model.lr": "VALUE",
    "train --model.lr x": "a number",
    "train --model.lr 11": "11",
    "train --model.name vim_tinny_patch16_224": "vim_tiny_patch16_224",
    "train --model.pretrained nofile.pth": "nofile.pth",
    "train --model.asking.flip true": "--model.inference.flip",
    "train --data.channels 2": "1 channel",
    "train --data.batch_size 0": "batch_size 0",
    "train --data.augment.flip 3": "flip",
    "train --data.augment.repeats 0": "repeats 0",
    "train --data.sizes 16,30": "30x30",
    "train --data.pack true --data.tokens 8 --data.patch 4": "tokens 8",
    "train --data.tokens 512": "data.pack true",
    "train -c mixed_digits --data.tokens 24": "tokens 24",
    "train -c mixed_digits --data.sizes [16,30]": "size 30",
    "train -c mixed_digits --model.args.stride 2": "overlap",
    "train -c mixed_digits --data.patch 2": "patches of 4",
    "train -c mixed_digits --trainer.accumulate_grad_batches 2": "packs are not accumulated",
    "train --data.sizes [16,32] --trainer.overfit_batches 2": "overfit_batches",
    "train --data.pack true --data.augment.mixup 0.2": "mixup",
    "train --data.sizes [16,320]": "320x320",
    "train --trainer.max_epoch 3": "--trainer.max_epochs",
    "train --trainer.precision 17": "bf16-mixed",
    "train --trainer.max_time x": "DD:HH:MM:SS",
    "train --data.size 30": "30x30",
    "train --data.size [32,30]": "32x30",
    "train --model.name vim_tiny_patch16_stride8_224 --data.size 36": "stride 8",
    "train --model.name deepvit_s --data.size 40": "patches of 16",
    "train --model.name efficientvit_m0 --data.size 15": "at least 16 pixels",
    "train --model.args.patch_size 5": "patches of 5",
    "train --model.name vit_base_patch16_224 --data.size 100": "96x96 or 112x112",
    "train --model.name deit3_small_patch16_384.fb_in1k --data.size [32,100]": "dynamic_img_pad",
    "train --model.args.stride x": "--model.args.stride",
    "train --model.args depth=3": "NAME: VALUE",
    "train --model.args {depth:": "NAME: VALUE",
    "train --trainer.accelerator nonsense": "cuda",
    "train --trainer.devices nonsense": "'nonsense'",
    "train --runs broken.yaml": "broken.yaml",
    "train --runs broken.yaml/below": "broken.yaml",
    "train --seed x": "a whole number",
    "train --resume nothing": "nothing",
    "train --resume a-folder.yaml": "config.yaml",
    "train --resume young --task segmentation": "classification",
    "train --resume dense --task classification": "segmentation",
    "train --resume young --source parquet": "digits",
    "train -c folder": "data.path",
    "train -c folder --data.path nowhere": "nowhere",
    "train -c folder --data.path broken.yaml": "broken.yaml",
    "train -c parquet --data.path nowhere": "nowhere",
    "train -c camvid --data.path nowhere": "nowhere",
    "train -c coco_vim_tiny --data.path nowhere": "nowhere",
    "train -c bccd --data.path nowhere": "nowhere",
    "validate": "RUN",
    "validate nothing": "nothing",
    "validate young": "young",
    "validate young --split train": "val",
    "validate young --data.sizee 3": "--data.size",
    "validate dense --data.size 64": "--data.size",
    "check-data -c folder --data.path nowhere": "nowhere",
    "check-data --out a-folder.yaml": "a-folder.yaml",
    "models nosuch*": "nosuch*",
    "models --size x": "'x'",
    "recipes digit": "digits",
    "convert nowhere.pth out.safetensors": "nowhere.pth",
    "convert broken.safetensors out.safetensors": "broken.safetensors",
    "convert broken.safetensors out.pth": ".safetensors",
    "predict": "RUN",
    "predict nothing image.png": "nothing",
    "predict young image.png --device nonsense": "'nonsense'",
    "predict young image.png": "young",
    "explain": "--method",
    "explain --method similarity": "WHAT",
    "explain deit_tiny_patch16_224 image.png": "--method",
    "explain deit_tiny_patch16_224 image.png --method similrity": "similarity",
    "explain deit_tiny_patch16_224 image.png --method similarity": "image.png",
    "explain deit_tiny_patch16_224 --method similarity": "images",
    "explain deit_tinny_patch16_224 image.png --method similarity": "deit_tiny_patch16_224",
    "explain deit_tiny_patch16_224 image.png --method similarity --device nonsense": "'nonsense'",
    "explain deit_tiny_patch16_224 image.png --method similarity --size x": "'x'",
    "explain deit_tiny_patch16_224 image.png --method similarity --weights nowhere.pth": "nowhere.pth",
    "explain vim_nano_patch4_32 image.png --method similarity --size 30": "30x30",
    "explain nothing/run image.png --method similarity": "nothing/run",
    "explain young image.png --method similarity": "young",
    "explain young image.png --method similarity --size 32": "--size",
    "explain broken.yaml image.png --method similarity": "--weights broken.yaml",
    "explain deit_tiny_patch16_224 image.png --method similarity --out a-folder.yaml": "a-folder.yaml",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process of its own says of each: (exit code, stderr, which libraries it had loaded by then)."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "broken.yaml").write_text("model: [")
    (folder / "broken.safetensors").write_bytes(b"no weights")
    (folder / "a-folder.yaml" / "full").mkdir(parents=True)
    for run, config in {"young": "classification", "dense": "segmentation"}.items():
        (folder / run).mkdir()
        (folder / run / "config.yaml").write_text((OLD / f"{config}.yaml").read_text())
    words = json.dumps([mistake.split() for mistake in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=words, capture_output=True, text=True, check=True, cwd=folder
    )
    return dict(zip(MISTAKES, json.loads(done.stdout)))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_told_before_torch_is_loaded(told, mistake):
    code, err, loaded = told[mistake]
    assert (code, err.count("\n")) == (2, 1), err
    assert MISTAKES[mistake] in err
    assert loaded == []
