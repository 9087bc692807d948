"""Plans, turns, skipping and ratios; the processes are imagined here."""

import sys

import pytest

from longvision.benchmark import models
from longvision.benchmark.case import Round
from longvision.benchmark.models import ModelsBenchmark, can_checkpoint, fitting_size
from longvision.errors import UserError

VIM, VIT, PLAIN = "vim_nano_patch4_32", "test_vit", "test_vit+materialised"


@pytest.fixture
def imagined(monkeypatch, plan):
    """imagined(answer, [models], [sizes], mode="train") -> (benchmark that ran, its processes, the news)."""

    def run(answer, *names_and_sizes, **options):
        launched = []

        def launch(case, share, patience, measure_memory):
            launched.append((case, share, patience, measure_memory))
            return answer(case)

        monkeypatch.setattr(models, "launch", launch)
        benchmark = ModelsBenchmark(plan(*names_and_sizes, **options))
        return benchmark, launched, list(benchmark.run())

    return run


def steady(case):
    seconds = {VIM: 0.4, VIT: 0.2, PLAIN: 0.3}[case.label] * case.size / 32
    return Round(seconds=[seconds] * 3, spent=5 * seconds, peak_bytes=case.size * 1000, attention="x", threads=1)


def test_sizes_come_one_after_the_other_and_models_take_turns(imagined):
    _, launched, news = imagined(steady, [VIM, VIT], [32, 64])
    assert [(case.size, case.label) for case, *_ in launched] == [(32, VIM), (32, VIT)] * 3 + [(64, VIM), (64, VIT)] * 3
    assert [memory for *_, memory in launched] == [True, True, False, False, False, False] * 2
    assert news[0] == f"32 px  {VIM}  round 1 of 3: 400 ms"


def test_a_first_call_may_take_five_budgets(imagined):
    _, launched, _ = imagined(steady, [VIT], [32], budget=9.0)
    assert {patience for *_, patience, _ in launched} == {45.0}


def test_ratios_are_to_the_first_peer(imagined):
    rows = imagined(steady, [VIM, VIT, PLAIN], [32, 64])[0].rows()
    assert [row["time_ratio"] for row in rows] == [2.0, 1.0, 1.5] * 2
    assert [row["memory_ratio"] for row in rows] == [1.0] * 6
    assert {row["baseline"] for row in rows} == {VIT}
    rows = imagined(steady, [VIM, VIT], [32], baseline=VIM)[0].rows()
    assert [row["time_ratio"] for row in rows] == [1.0, 0.5]
    assert imagined(steady, [VIM], [32])[0].baseline == VIM


def test_images_per_second_are_of_the_batch(imagined):
    (row,) = imagined(steady, [VIT], [32], batch=8)[0].rows()
    assert row["images_per_s"] == 40


@pytest.mark.parametrize("status", ["out of memory", "over budget: no call in 1 s", "killed (signal 9): probably"])
def test_larger_sizes_are_skipped_after_the_end_of_a_model(imagined, status):
    def answer(case):
        return Round(status) if case.label == PLAIN and case.size == 64 else steady(case)

    benchmark, launched, news = imagined(answer, [VIT, PLAIN], [32, 64, 96, 128])
    rows = {(row["requested"], row["form"]): row for row in benchmark.rows()}
    assert rows[32, "materialised"]["status"] == rows[128, ""]["status"] == "ok"
    assert rows[64, "materialised"]["status"] == status
    skipped = f"skipped: {status.split(':')[0]} at 64"
    for size in (96, 128):
        row = rows[size, "materialised"]
        assert (row["status"], row["ms_median"], row["time_ratio"]) == (skipped, None, None)
        assert f"{size} px  {PLAIN}: {skipped}" in news
    assert [case.requested for case, *_ in launched if case.form] == [32, 32, 32, 64]


def test_a_size_that_is_refused_does_not_end_the_model(imagined):
    rows = imagined(lambda case: Round("refused: no") if case.size == 32 else steady(case), [VIT], [32, 64])[0].rows()
    assert [row["status"] for row in rows] == ["refused: no", "ok"]


def test_without_a_baseline_at_a_size_there_is_no_ratio(imagined):
    rows = imagined(lambda case: Round("out of memory") if case.label == VIT else steady(case), [VIM, VIT], [32])[0]
    assert [row["time_ratio"] for row in rows.rows()] == [None, None]


def test_what_is_interrupted_keeps_what_it_has(plan, monkeypatch):
    benchmark, answers = ModelsBenchmark(plan([VIM, VIT], [32, 64])), iter([steady] * 7)

    def launch(case, *rest, **options):
        for answer in answers:
            return answer(case)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        list(benchmark.run())
    assert [(row["requested"], row["model"]) for row in benchmark.rows()] == [(32, VIM), (32, VIT), (64, VIM)]


def test_a_model_runs_at_the_nearest_smaller_size_it_takes():
    assert fitting_size(VIM, 66) == (64, fitting_size(VIM, 64)[1])
    assert fitting_size("test_resnet", 225)[0] == 225
    assert fitting_size(VIM, 3) == (3, None)  # its process says why


def test_a_row(imagined):
    (row,) = imagined(lambda case: Round(seconds=[1.0], spent=1.0, threads=1), [VIM], [66])[0].rows()
    assert (row["requested"], row["size"], row["checkpoint"], row["head"], row["threads"]) == (66, 64, "", "", 1)
    assert row["gmacs"] == pytest.approx(fitting_size(VIM, 64)[1] / 1e9, abs=1e-3)
    assert ",".join(row) == (
        "model,form,checkpoint,head,attention,mode,requested,size,batch,dtype,device,threads,ms_median,ms_q1,ms_q3,"
        "samples,images_per_s,peak_mb,gmacs,time_ratio,memory_ratio,baseline,status,longvision,torch,timm,python,"
        "commit,date"
    )


@pytest.mark.slow
def test_what_can_be_checkpointed_is_and_its_row_says_so(imagined):
    names, one = [VIM, "sequencer2d_s"], lambda case: Round(seconds=[1.0], spent=1.0)
    benchmark, launched, _ = imagined(one, names, [32], mode="train", checkpoint=True)
    assert [row["checkpoint"] for row in benchmark.rows()] == ["yes", ""]
    assert [case.checkpoint for case, *_ in launched[:2]] == [True, False]


@pytest.mark.parametrize("head", ["fpn", pytest.param("cascade", marks=pytest.mark.slow)])
def test_a_head_is_on_every_model_and_in_every_row(imagined, head):
    if head == "fpn":
        pytest.importorskip("segmentation_models_pytorch")
    names, one = [VIM, "deit_tiny_patch16_224+materialised"], lambda case: Round(seconds=[1.0], spent=1.0)
    benchmark, launched, _ = imagined(one, names, [32, 64], head=head)
    assert {case.head for case, *_ in launched} == {head}
    for row in benchmark.rows():
        assert (row["head"], row["gmacs"], row["status"]) == (head, None, "ok")
        assert row["size"] == row["requested"]
    assert can_checkpoint(VIM, head)


@pytest.mark.slow
def test_a_model_of_windows_runs_at_a_smaller_size_and_under_a_head_too():
    assert fitting_size("maxvit_tiny_rw_224", 250)[0] == 224
    name = "swinv2_cr_tiny_224"
    assert fitting_size(name, 230, "fpn")[0] == 224
    assert fitting_size(name, 224, "fpn") == (224, None)


def test_a_head_whose_library_is_missing_is_refused_before_anything_starts(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"--head fpn on vim_nano_patch4_32: .*segmentation_mod"):
        ModelsBenchmark(plan([VIM], [32], head="fpn"))
    ModelsBenchmark(plan([VIM], [32]))


@pytest.mark.parametrize(
    "name, options, named",
    [
        ("vim_tinny_patch16_224", {}, "'vim_tinny_patch16_224'.*vim_tiny_patch16"),
        ("qqqqqqqq", {}, "'qqqqqqqq'.*longvision models"),
        ("test_resnet+materialised", {}, "test_resnet.*materialised"),
        ("vit_small_patch14_dinov2", {"head": "cascade"}, "--head cascade on vit_small_patch14_dinov2: .*14"),
    ],
)
def test_models_that_cannot_be(plan, name, options, named):
    with pytest.raises(UserError, match=named):
        ModelsBenchmark(plan([name], [32], **options))
