"""`longvision models`: names, parameters and multiply-adds."""

import pytest


def rows(answer):
    assert answer.code == 0, answer.err
    return {line.split()[0]: line.split()[1:] for line in answer.out.splitlines()[1:]}


@pytest.fixture(scope="module")
def listed(longvision):
    return rows(longvision("models"))


def test_ours_are_listed_with_their_parameters(listed):
    assert {name: row[0] for name, row in listed.items()} == {
        "vim_tiny_patch16_224": "7,148,008",
        "vim_small_patch16_224": "25,796,584",
        "vim_base_patch16_224": "97,598,440",
        "vim_tiny_patch16_stride8_224": "7,250,344",
        "vim_small_patch16_stride8_224": "26,001,256",
        "vim_nano_patch4_32": listed["vim_nano_patch4_32"][0],
        "vit_nano_patch4_32": "546,186",
        "navit_tiny_patch16": "6,103,656",
        "navit_small_patch16": "23,706,216",
        "navit_base_patch16": "93,416,040",
        "deepvit_16": "24,426,664",
        "deepvit_24": "36,261,448",
        "deepvit_32": "48,096,232",
        "deepvit_s": "27,312,632",
        "deepvit_l": "58,883,708",
        "deepvit_l_384": "59,043,308",
        "vmamba_tiny_s1l8_224": "30,249,064",
        "vmamba_small_s1l20_224": "49,012,840",
        "vmamba_base_s1l20_224": "86,614,504",
        "vmamba_tiny_s2l5_224": "30,705,832",
        "vmamba_small_s2l15_224": "50,147,752",
        "vmamba_base_s2l15_224": "88,557,800",
        "vmamba_tiny_v0_224": "22,893,448",
        "vmamba_small_v0_224": "44,417,416",
        "vmamba_base_v0_224": "76,254,056",
        "mambareg_tiny_patch16_224": "9,264,232",
        "mambareg_small_patch16_224": "27,801,064",
        "mambareg_base_patch16_224": "99,301,096",
        "mambareg_large_patch16_224": "341,222,376",
        "arm_tiny_patch16_224": "22,167,400",
        "arm_small_patch16_224": "38,594,016",
        "arm_base_patch16_224": "85,031,656",
        "arm_large_patch16_224": "297,035,720",
        "arm_huge_patch16_224": "662,682,088",
        "localvim_tiny_patch16_224": "7,994,536",
        "localvim_small_patch16_224": "27,783,784",
    }


def test_the_cost_is_the_paper_s(listed):
    """Table 1 of arXiv 2401.09417: 1.5, 5.1 and 18.9 G at 224 pixels."""
    for name, paper in {"tiny": 1.5, "small": 5.1, "base": 18.9}.items():
        _, size, macs, share, *_ = listed[f"vim_{name}_patch16_224"]
        assert size == "224x224"
        assert float(macs) == pytest.approx(paper, rel=0.12)
        assert 0 < float(share) < 50


@pytest.mark.slow
def test_the_cost_grows_with_the_tokens(longvision):
    small, large = (rows(longvision("models", "vim_tiny_patch16_224", "--size", n)) for n in (448, 896))
    ratio = float(large["vim_tiny_patch16_224"][2]) / float(small["vim_tiny_patch16_224"][2])
    assert ratio == pytest.approx(4, rel=0.01)
    small, large = (rows(longvision("models", "deit_tiny_patch16_224", "--size", n)) for n in (448, 896))
    assert float(large["deit_tiny_patch16_224"][2]) / float(small["deit_tiny_patch16_224"][2]) > 5


def test_a_size_of_two_sides(longvision):
    (row,) = rows(longvision("models", "vim_tiny_patch16_224", "--size", "480x640")).values()
    assert row[1] == "480x640"
    square = rows(longvision("models", "vim_tiny_patch16_224"))["vim_tiny_patch16_224"]
    assert float(row[2]) == pytest.approx(float(square[2]) * (30 * 40 + 1) / 197, rel=0.01)


def test_a_pattern_among_all_of_timm(longvision):
    found = rows(longvision("models", "deit_tiny_*_224"))
    assert found["deit_tiny_patch16_224"][0] == "5,717,416"
    assert found["deit_tiny_patch16_224"][3:] == ["-", "-", "apache-2.0"]  # no scan; timm tells no accuracy


def test_what_authors_state_of_their_weights(listed):
    """Top-1 and licence; there are weights without one, and models without weights."""
    assert listed["vim_tiny_patch16_224"][-2:] == ["76.1", "apache-2.0"]
    assert listed["deepvit_l_384"][-2:] == ["84.25", "mit"]
    assert listed["mambareg_small_patch16_224"][-3:] == ["81.4", "none", "stated"]
    for name in ("mambareg_tiny_patch16_224", "vim_nano_patch4_32", "localvim_small_patch16_224"):
        assert listed[name][-2:] == ["-", "-"]


def test_a_convolutional_model_takes_any_size(longvision):
    (row,) = rows(longvision("models", "resnet18", "--size", "225x300")).values()
    assert row[:2] == ["11,689,512", "225x300"]


def test_a_size_that_a_model_refuses_is_a_row(longvision):
    answer = longvision("models", "vim_nano*", "--size", "30")
    assert answer.code == 0
    assert "30x30 does not divide into patches of 4" in answer.out.splitlines()[1]


def test_pyramids_of_ours_are_models_too(longvision):
    (name,) = rows(longvision("models", "vim_nano*_pyramid"))
    assert name == "vim_nano_patch4_32_pyramid"


@pytest.mark.parametrize("pattern", ["nosuch*", "deit3_huge_*_pyramid"])
def test_a_pattern_that_fits_nothing(longvision, pattern):
    answer = longvision("models", pattern)
    assert answer.code == 2 and pattern in answer.err


@pytest.mark.parametrize(
    "pattern, near",
    [("efficientvit_m9", "efficientvit_m5"), ("vim_nano", "'*vim_nano*'"), ("qqqqqq", "`longvision models '*'`")],
)
def test_what_is_advised_exists(longvision, pattern, near):
    answer = longvision("models", pattern)
    assert answer.code == 2 and near in answer.err
