"""What people call their splits, in names of folders and files: the one place that knows, for every source."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import Literal

from longvision.errors import UserError
from longvision.types import Split

Reading = Literal["train", "val", "test", "trainval", "either"]

TRAINS: frozenset[Reading | None] = frozenset({"train", "trainval"})
SAID: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
WORDS: dict[Reading, str] = {
    "train": "train training trn entrenamiento treino treinamento entrainement apprentissage addestramento trenirovka "
    "обучение тренировка 训练 训练集 訓練 學習 学習 훈련 학습",
    "val": "val valid validation validations validate validating vali vld dev devel development developpement "
    "validacion validacao validierung validazione валидация проверка 验证 验证集 驗證 検証 검증",
    "test": "test tests testing tst prueba pruebas teste testes prova тест тестирование 测试 测试集 測試 テスト 테스트",
    "trainval": "trainval trainvalid traindev",
    "either": "eval evaluation evaluate evaluating holdout heldout",
}
SHORT: dict[str, Reading] = {"tr": "train", "ts": "test", "te": "test", "va": "val"}  # as in imagesTr, never alone
IMAGES = frozenset(
    "image images img imgs picture pictures pic pics photo photos frame frames input inputs rgb "  # noqa: SIM905
    "jpegimages".split()
)
MASKS = frozenset(
    "mask masks ann anns annot annots anno annotation annotations label labels gt groundtruth segmentation "  # noqa: SIM905
    "segmentations segmentationclass target targets".split()
)
SAY_NOTHING = frozenset("set sets data dataset datasets split splits file files folder dir part partition fold".split())  # noqa: SIM905


@dataclass(frozen=True)
class SplitName:
    """What a name says.

    Args:
        reading: the split; trainval for both at once, either for a word that some use for one, some for the other.
        kinds: "images" and "masks", where the name says so.
        rest: words beside; where there are any, the name may well be a class's.
    """

    reading: Reading | None = None
    kinds: frozenset[str] = frozenset()
    rest: tuple[str, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether the name says a split and nothing else."""
        return self.reading is not None and not self.rest and "masks" not in self.kinds


@dataclass(frozen=True)
class Chosen:
    """Which name is which split, what must be told of the choice, and names that are not used."""

    names: dict[Split, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@cache
def read_name(name: str, nothing: frozenset[str] = frozenset()) -> SplitName:
    """However it is spelled: Training, TRAIN, train_set, train2017, val-images, test data, trainannot, imagesTr.

    `nothing` are further words that say nothing.
    """
    words = [part for word in _words(name) for part in _parts(word) if part not in SAY_NOTHING | nothing]
    kinds = {"images" for word in words if word in IMAGES} | {"masks" for word in words if word in MASKS}
    words = [word for word in words if word not in IMAGES | MASKS]
    known = [word for word in words if word in _READINGS]
    if not known and kinds and len(words) == 1 and words[0] in SHORT:
        return SplitName(SHORT[words[0]], frozenset(kinds))
    reading = _one([_READINGS[word] for word in known])
    rest = words if reading is None else [word for word in words if word not in _READINGS]
    return SplitName(reading, frozenset(kinds), tuple(rest))


def choose(names: Iterable[str], where: str, nothing: frozenset[str] = frozenset()) -> Chosen:
    """Names that each say a split -> one for each split that there is.

    Raises UserError where two names say the same split, and where one holds training and validation images at once
    beside another that holds the latter.
    """
    said: dict[Reading, list[str]] = defaultdict(list)
    for name in sorted(names):
        if reading := read_name(name, nothing).reading:
            said[reading].append(name)
    for reading, several in said.items():
        if len(several) > 1:
            raise UserError(
                f"{where} has {' and '.join(several)}: each could hold the {_said(reading)} images; "
                "join them in one, or move away those that are not meant"
            )
    chosen = Chosen({split: said[split][0] for split in SAID if split in said})
    if both := said.get("trainval"):
        _choose_both(both[0], chosen, where)
    if either := said.get("either"):
        _choose_either(either[0], chosen, where)
    return chosen


def split_inside(folders: Iterable[str], own: Reading = "train") -> str | None:
    """The first of these folders that is called as a split other than `own`, or lies in one that is."""
    for folder in sorted(folders):
        said = [read_name(part) for part in PurePath(folder).parts]
        if any(name.is_split and name.reading not in (own, "train") for name in said):
            return folder
    return None


def alike(names: Iterable[str]) -> list[str]:
    """Of names that say a split and something else, those that are called the same but for the split: seg_train and
    seg_test. None where no such group has training images."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        found = read_name(name)
        if found.reading and found.rest and "masks" not in found.kinds:
            groups[found.rest].append(name)
    with_train = [group for group in groups.values() if {read_name(name).reading for name in group} & TRAINS]
    return [name for group in with_train if len(group) > 1 for name in group]


def _choose_both(name: str, chosen: Chosen, where: str) -> None:
    if "train" in chosen.names:
        chosen.left.append(name)
    elif "val" in chosen.names:
        raise UserError(
            f"{where} has {name} and {chosen.names['val']}, but no training images alone: the latter would train and "
            "validate; name the training images train, or move one of the two away"
        )
    else:
        chosen.names["train"] = name


def _choose_either(name: str, chosen: Chosen, where: str) -> None:
    split = next((split for split in SAID if split != "train" and split not in chosen.names), None)
    if split is None:
        chosen.left.append(name)
    else:
        chosen.names[split] = name
        chosen.notes.append(f"{where} has {name}: taken as the {SAID[split]} images; call it val or test to say which")


def _said(reading: Reading) -> str:
    others: dict[Reading, str] = {"trainval": "training", "either": "validation"}
    return others.get(reading) or SAID[reading]  # type: ignore[index]


def _one(readings: list[Reading]) -> Reading | None:
    found = set(readings)
    if len(found) == 1:
        return readings[0]
    if found == {"train", "val"}:
        return "trainval"
    return "test" if found == {"test", "val"} and readings[0] == "test" else None  # COCO's test-dev


def _words(name: str) -> list[str]:
    """Letters alone, in lower case, without accents; cut at capitals too."""
    plain = _plain(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)))
    return re.findall(r"[^\W\d_]+", re.sub(r"(hold|held|ground|segmentation)[\W_]*(out|truth|class)", r"\1\2", plain))


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


_READINGS: dict[str, Reading] = {_plain(word): reading for reading, words in WORDS.items() for word in words.split()}
_BESIDE = IMAGES | MASKS | SAY_NOTHING


def _parts(word: str) -> list[str]:
    """trainset -> train, set; imagestrain -> images, train; any other word as it is."""
    if word in _READINGS or word in _BESIDE:
        return [word]
    for known in _READINGS:
        if word.startswith(known) and word[len(known) :] in _BESIDE:
            return [known, word[len(known) :]]
        if word.endswith(known) and word[: -len(known)] in _BESIDE:
            return [word[: -len(known)], known]
    return [word]
