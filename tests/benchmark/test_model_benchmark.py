"""Plans, turns, budgets, skipping and ratios; the processes are imagined here."""

import csv
import sys
from pathlib import Path

import pytest

from longvision.benchmark import models
from longvision.benchmark.case import Round
from longvision.benchmark.folder import check_folder, make_folder, write_csv
from longvision.benchmark.models import ModelBenchmark, Plan, fitting_size

VIM, VIT, PLAIN = "vim_nano_patch4_32", "test_vit", "test_vit+materialised"


@pytest.fixture
def imagined(monkeypatch):
    """imagined(plan, answer) -> (benchmark that ran, the cases in the order of their processes)."""

    def run(plan, answer):
        launched = []

        def launch(case, share, patience, measure_memory):
            launched.append((case, share, patience, measure_memory))
            return answer(case)

        monkeypatch.setattr(models, "launch", launch)
        benchmark = ModelBenchmark(plan)
        news = list(benchmark.run())
        assert [done for done, _ in news] == list(range(1, benchmark.steps + 1))  # no number is skipped
        return benchmark, launched

    return run


def steady(case):
    seconds = {VIM: 0.4, VIT: 0.2, PLAIN: 0.3}[case.label] * case.size / 32
    return Round(seconds=[seconds] * 3, spent=5 * seconds, peak_bytes=case.size * 1000, attention="x", threads=1)


def test_models_take_turns_and_sizes_come_one_after_the_other(imagined):
    _, launched = imagined(Plan([VIM, VIT], [32, 64]), steady)
    assert [(case.size, case.label) for case, *_ in launched] == [(32, VIM), (32, VIT)] * 3 + [(64, VIM), (64, VIT)] * 3
    assert [memory for *_, memory in launched] == [True, True, False, False, False, False] * 2


def test_the_budget_is_of_all_rounds(imagined):
    benchmark, launched = imagined(
        Plan([VIT], [32], budget=9.0), lambda case: Round(seconds=[1.0], spent=4.0, threads=1)
    )
    assert [share for _, share, *_ in launched] == [3.0, 2.5, 1.0]
    assert {patience for *_, patience, _ in launched} == {45.0}
    assert benchmark.results[0].spent == 12.0


def test_a_case_that_used_its_budget_up_is_left(imagined):
    benchmark, launched = imagined(
        Plan([VIT], [32], budget=9.0), lambda case: Round(seconds=[10.0], first_call=True, spent=10.0)
    )
    assert len(launched) == 1
    assert (benchmark.cases, benchmark.steps) == (1, 1)
    (row,) = benchmark.rows()
    assert (row["status"], row["samples"], row["ms_median"]) == ("ok", "1 (first call)", 10_000)


def test_ratios_are_to_the_first_peer(imagined):
    rows = imagined(Plan([VIM, VIT, PLAIN], [32, 64]), steady)[0].rows()
    assert [row["time_ratio"] for row in rows] == [2.0, 1.0, 1.5] * 2
    assert [row["memory_ratio"] for row in rows] == [1.0] * 6
    assert {row["baseline"] for row in rows} == {VIT}
    assert rows[0]["images_per_s"] == 2.5 and rows[0]["peak_mb"] == 0.0
    rows = imagined(Plan([VIM, VIT], [32], baseline=VIM), steady)[0].rows()
    assert [row["time_ratio"] for row in rows] == [1.0, 0.5]
    assert Plan([VIM], [32]).yardstick() == VIM


def test_images_per_second_are_of_the_batch(imagined):
    (row,) = imagined(Plan([VIT], [32], batch=8), steady)[0].rows()
    assert row["images_per_s"] == 40


@pytest.mark.parametrize("status", ["out of memory", "over budget: no call in 1 s", "killed (signal 9): probably"])
def test_larger_sizes_are_skipped_after_the_end_of_a_model(imagined, status):
    def answer(case):
        return Round(status) if case.label == PLAIN and case.size == 64 else steady(case)

    benchmark, launched = imagined(Plan([VIT, PLAIN], [32, 64, 96, 128]), answer)
    rows = {(row["asked"], row["variant"]): row for row in benchmark.rows()}
    assert rows[32, "materialised"]["status"] == rows[128, ""]["status"] == "ok"
    assert rows[64, "materialised"]["status"] == status
    for size in (96, 128):
        assert rows[size, "materialised"]["status"] == f"skipped: {status.split(':')[0]} at 64"
        assert rows[size, "materialised"]["ms_median"] is None
        assert rows[size, "materialised"]["time_ratio"] is None
    ran = [case.asked for case, *_ in launched if case.variant]
    assert ran == [32, 32, 32, 64]


def test_a_size_that_is_refused_does_not_end_the_model(imagined):
    def answer(case):
        return Round("refused: no") if case.size == 32 else steady(case)

    rows = imagined(Plan([VIT], [32, 64]), answer)[0].rows()
    assert [row["status"] for row in rows] == ["refused: no", "ok"]


def test_without_a_baseline_at_a_size_there_is_no_ratio(imagined):
    def answer(case):
        return Round("out of memory") if case.label == VIT else steady(case)

    rows = imagined(Plan([VIM, VIT], [32]), answer)[0].rows()
    assert [row["time_ratio"] for row in rows] == [None, None]


def test_what_is_interrupted_keeps_what_it_has(imagined, monkeypatch):
    plan = Plan([VIM, VIT], [32, 64])
    benchmark = ModelBenchmark(plan)
    answers = iter([steady] * 7)

    def launch(case, *rest, **options):
        try:
            return next(answers)(case)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(models, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        list(benchmark.run())
    assert [(row["asked"], row["model"]) for row in benchmark.rows()] == [(32, VIM), (32, VIT), (64, VIM)]


def test_a_model_runs_at_the_nearest_smaller_size_it_takes():
    assert fitting_size(VIM, 66) == (64, fitting_size(VIM, 64)[1])
    assert fitting_size("maxvit_tiny_rw_224", 250)[0] == 224
    assert fitting_size("test_resnet", 225)[0] == 225
    assert fitting_size(VIM, 3) == (3, None)  # its process says why


def test_the_size_that_ran_is_in_the_row(imagined):
    (row,) = imagined(Plan([VIM], [66]), lambda case: Round(seconds=[1.0], spent=1.0))[0].rows()
    assert (row["asked"], row["size"]) == (66, 64)
    assert row["gmacs"] == pytest.approx(fitting_size(VIM, 64)[1] / 1e9, abs=1e-3)


@pytest.mark.parametrize("head", ["fpn", "cascade"])
def test_a_head_is_on_every_model_and_in_every_row(imagined, head):
    if head == "fpn":
        pytest.importorskip("segmentation_models_pytorch")
    labels = [VIM, "deit_tiny_patch16_224+materialised"]
    plan = Plan(labels, [32, 64], head=head)
    benchmark, launched = imagined(plan, lambda case: Round(seconds=[1.0], spent=1.0))
    assert {case.head for case, *_ in launched} == {head}
    for row in benchmark.rows():
        assert (row["head"], row["gmacs"], row["status"]) == (head, None, "ok")
        assert row["size"] == row["asked"]
    assert {row["head"] for row in imagined(Plan([VIM], [32]), steady)[0].rows()} == {""}


def test_a_backbone_of_windows_runs_under_a_head_at_a_smaller_size():
    name = "swinv2_cr_tiny_224"
    assert fitting_size(name, 230, "fpn")[0] == 224
    assert fitting_size(name, 224, "fpn") == (224, None)


def test_a_head_whose_library_is_missing_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match="--head fpn on vim_nano_patch4_32: this head needs segmentation_mod"):
        Plan([VIM], [32], head="fpn")
    Plan([VIM], [32])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": ["vim_tinny_patch16_224"]}, "unknown model 'vim_tinny_patch16_224': did you mean vim_tiny_patch16"),
        ({"labels": ["qqqqqqqq"]}, r'unknown model \'qqqqqqqq\': `longvision models "\*"` lists those there are'),
        ({"labels": ["test_vit+fast"]}, "unknown variant 'fast' of test_vit: expected one of materialised, checkpoint"),
        ({"labels": ["test_vit+"]}, "unknown variant '' of test_vit"),
        ({"labels": ["test_resnet+materialised"]}, "test_resnet has no variant materialised: none of its modules"),
        ({"labels": ["vim_nano_patch4_32+checkpoint"]}, "checkpointing changes training only: add --mode train"),
        (
            {"labels": ["test_convnext+checkpoint", "sequencer2d_s+checkpoint"], "mode": "train"},
            "sequencer2d_s has no v",
        ),
        ({"labels": []}, "--models is empty"),
        ({"sizes": []}, "--sizes is empty"),
        ({"batch": 0}, "--batch 0: expected at least 1"),
        ({"budget": 0}, "--budget 0: expected a number of seconds above 0"),
        ({"budget": float("nan")}, "--budget nan: expected"),
        ({"mode": "run"}, "--mode 'run' is unknown: expected one of infer, train"),
        ({"dtype": "float16"}, "--dtype 'float16' is unknown: expected one of float32, float64, bfloat16"),
        ({"head": "unet"}, "--head 'unet' is unknown: expected one of fpn, cascade"),
        ({"head": "cascade", "dtype": "float64"}, "--dtype float64: boxes of --head cascade are float32: choose float"),
        (
            {"head": "cascade", "labels": ["vit_small_patch14_dinov2"]},
            "--head cascade on vit_small_patch14_dinov2: .* maps of strides .*14.* none of stride 4: choose another",
        ),
        ({"device": "tpu"}, "--device 'tpu' is unknown: expected one of cpu, cuda"),
        ({"baseline": "resnet18"}, "--baseline resnet18 is not measured: choose one of test_vit"),
    ],
)
def test_plans_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"labels": ["test_vit"], "sizes": [32], **changes})


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA device here: use --device cpu"):
        Plan(["test_vit"], [32], device="cuda")


def test_rows_are_written_as_a_whole(tmp_path, imagined):
    rows = imagined(Plan([VIM, VIT], [32]), steady)[0].rows()
    write_csv(tmp_path / "models.csv", rows)
    with (tmp_path / "models.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["model"] for row in read] == [VIM, VIT]
    assert ",".join(read[0]) == (
        "model,variant,head,attention,mode,asked,size,batch,dtype,device,threads,ms_median,ms_q1,ms_q3,samples,"
        "images_per_s,peak_mb,gmacs,time_ratio,memory_ratio,baseline,status,longvision,torch,timm,python,commit,date"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "models.csv"]


def test_a_new_folder_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {make_folder(None) for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)
    assert make_folder("own/one").is_dir()
    (tmp_path / "own/one/file").write_text("x")
    with pytest.raises(ValueError, match="--out own/one is not empty"):
        make_folder("own/one")
    for out in ("own/one/file", "own/one/file/new"):
        with pytest.raises(ValueError, match=f"--out {out}: own/one/file is a file, not a folder: give a new folder"):
            check_folder(out)


def test_a_folder_that_may_not_be_made(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "elsewhere")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"--out .*/new cannot be made \(Permission denied\): give a new folder"):
        make_folder(str(tmp_path / "new"))
