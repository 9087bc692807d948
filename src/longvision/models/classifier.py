"""The part of timm's contract about a model's head: its pooling, its Linear, and others in their place."""

from collections.abc import Sequence
from typing import Literal, get_args

from timm.layers import trunc_normal_
from torch import nn

from longvision.errors import UserError

Pool = Literal["token", "mean", "max", "map", "none"]
# timm's words for the same, which its tools pass as `global_pool`
POOLS: dict[str, Pool] = {word: word for word in get_args(Pool)} | {"avg": "mean", "": "none"}


class Classifier(nn.Module):
    """A model with a head, which it makes by `_set(self.head_name, self._new_head())` once it has parameters.

    Args:
        num_features: channels that the head takes.
        num_classes: outputs; 0 for none (features are returned).
        pool: what goes to the head, one of `pools`.
        drop_rate: dropout before the head.
    """

    head_name = "head"  # of the Linear
    pools: Sequence[Pool] = ("mean", "max", "none")

    def __init__(self, num_features: int, num_classes: int, pool: str, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.pool = self._checked_pool(pool)
        self.drop_rate, self.head_drop = drop_rate, nn.Dropout(drop_rate)

    @property
    def global_pool(self) -> str:
        """`pool` in timm's words."""
        return {"mean": "avg", "none": ""}.get(self.pool, self.pool)

    def get_classifier(self) -> nn.Module:
        """The head: a Linear, or an Identity for no classes."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` outputs (0: none), and another pooling if given, in timm's words or ours."""
        if global_pool is not None:
            self.pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        self._set(self.head_name, self._new_head().train(self.training))
        self._init_head()

    def _new_head(self) -> nn.Module:
        if self.num_classes < 1:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(self.head_hidden_size, self.num_classes, device=like.device, dtype=like.dtype)

    def _init_head(self) -> None:
        head = self.get_classifier()
        if isinstance(head, nn.Linear):
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def _checked_pool(self, pool: str) -> Pool:
        if pool not in POOLS or POOLS[pool] not in self.pools:
            hint = " (token needs a class token)" if pool == "token" else ""
            raise UserError(f"pool={pool!r} cannot be applied{hint}: choose {', '.join(self.pools)}")
        return POOLS[pool]

    def _set(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(parent), leaf, module)
