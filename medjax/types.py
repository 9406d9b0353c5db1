"""The contracts: the records that data, views, towers, objectives and training hand to each other.

Shapes use one letter an axis: B global rows of a part, V crops of a view, N patch tokens, D features,
G groups, K targets of a mask or prototypes of a head, M masked tokens of a group.
A group is `rows_per_group` consecutive global rows. Every random or data-dependent gather stays inside a group, so that
no row crosses devices and no draw depends on the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
from jax import Array

Tree = Any  # a nested dict of arrays
Batch = Mapping[str, Mapping[str, Array]]
"""part -> field -> array; the leading axis is the part's own number of GLOBAL rows.

    row            uint32 [B]            the global row number in the batch; every draw folds it in
    image          uint8|uint16 [B,S,H,W,C]   S slots, 1 for now; the image lies top-left on its canvas
    image/present  bool [B,S]
    image/extent   int32 [B,S,2]         height and width of the image on the canvas
    label          int8 [B,L]            1, 0, -1 uncertain, -2 blank; L labels, the same for all sources
    key/patient    uint32 [B,2]          the two halves of the hashed 64-bit id
    key/study      uint32 [B,2]          the same for the study
    key/text       uint32 [B,2]          a hash of everything that the text views of the part may draw from; 0: no text
    text/<view>           int32 [B,R,T]  R texts of each row as tokens, padded; <view> is the name of a text view
    text/<view>/length    int32 [B,R]    number of tokens of each text; 0: absent
    index          uint32 [B]            the number of the record in its source
"""


class View(NamedTuple):
    """The input of a tower: V crops or texts of each row, image-major."""

    x: Array  # float32 [B,V,H,W,C], normalised; of texts int32 [B,V,T] token ids
    row: Array  # uint32 [B], the global row numbers
    present: Array  # bool [B,V]
    valid: Array | None  # bool [B,V,T] of texts: the first `length` of the T tokens; None for images
    meta: dict[str, Array]
    """Facts that terms may read: label and key/… of the rows. For crops also their draws: boxes float32 [B,V,4]
    (top, left, height, width, in image pixels), flip bool [B,V], … For texts also length int32 [B,V]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The masked tokens of a view: as bits, and as a fixed number of positions in each group.

    `index` counts the [rows_per_group * V * N] tokens of a group, image-major. `weight` is 1 / (masked tokens of the
    crop), and 0 for padding. Padding enters no loss, Sinkhorn, centre or count.
    """

    bits: Array  # bool [B,V,N]
    index: Array  # int32 [G,K,M]
    weight: Array  # float32 [G,K,M]
    mode: str = dataclasses.field(metadata=dict(static=True), default='replace')  # 'replace' | 'drop' | 'zero'


Views = dict[str, View]
Masks = dict[str, Mask]
MakeViews = Callable[[Batch, Array, Array], tuple[Views, Masks]]
"""(batch, key, step) -> views by name, masks by 'view~mask'. Randomness touches pixels here and nowhere else."""


class ApplyOptions(NamedTuple):
    """The options of `Tower.apply`, as `Tower.encode` gets them."""

    train: bool
    key: Array | None
    rows_per_group: int
    layers: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """An encoder: it makes parameters, and with them it turns a view into named outputs.

    `medjax.models.towers.<name>.build` returns a subclass with the methods `init` and `encode`, and `grid` if it sees
    images. A tower holds settings and no parameters, so its methods are pure functions. With `eq=False` a tower equals
    only itself, so jax.jit can hash it although `axes` is a dict. A subclass that adds fields needs the same decorator.
    """

    sees: ClassVar[Literal['image', 'text']] = 'image'  # the kind of view

    width: int  # D, the numbers in a feature
    axes: Tree  # like the parameters: for each array a tuple of logical axis names, None for an axis without a name
    batch_statistics: bool = False  # in training a row's features depend on other rows, so micro-batches are refused
    vocabulary: int = 0  # text towers: the number of token ids
    context: int = 0  # text towers: the largest number of tokens in a text

    def init(self, key: Array) -> Tree:
        """New parameters.

        Batch-norm statistics are stored under 'stats'. During training the objective keeps them in `aux`, out of reach
        of gradients and the optimizer. Exports put them back.
        """
        raise NotImplementedError

    def apply(
        self,
        params: Tree,
        view: View,
        mask: Mask | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
        rows_per_group: int = 1,
        layers: int = 1,
    ) -> dict[str, Any]:
        """The outputs by name, in float32 and after the final norm.

        Every tower has cls [B,V,D], one feature for each image or text. Image towers add patches [B,V,N,D], and
        registers [B,V,R,D] if they have registers. Text towers add tokens [B,V,T,D]. `layers=n` adds the same for each
        of the last n blocks: 'layers/cls' [B,V,n,D] and 'layers/patches' [B,V,n,N,D] or 'layers/tokens' [B,V,n,T,D].

        `train` turns drop path on. Its draws depend on `key` and the group number (view.row // rows_per_group) alone.
        With `train`, batch norms use the statistics of the batch, and the output 'stats' holds the new running ones.
        """
        return self.encode(params, view, mask, ApplyOptions(train, key, rows_per_group, layers))

    def encode(self, params: Tree, view: View, mask: Mask | None, options: ApplyOptions) -> dict[str, Any]:
        """The outputs that `apply` describes. A subclass computes them here; everybody else calls `apply`."""
        raise NotImplementedError

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for an image of height and width `size`. Text towers have no grid."""
        raise NotImplementedError(f'{type(self).__name__} has no grid of patches')

    def check(self, crops: Mapping[str, int], rows_per_group: int) -> None:
        """A UserError if drop path cannot come within .02 of its rate; `crops` is the number of crops by view."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A projection of features; `medjax.models.heads.<name>.build(width, ...)` returns a subclass.

    `eq=False` lets jax.jit hash a head, as in `Tower`.
    """

    axes: Tree  # like the parameters, see Tower.axes
    prototype_count: int = 0  # K; 0 means that the head has no prototypes

    def init(self, key: Array) -> Tree:
        """New parameters."""
        raise NotImplementedError

    def apply(self, params: Tree, x: Array) -> Array:
        """Features [...,D] -> [...,d]. A head with prototypes gives its L2-normalised bottleneck."""
        raise NotImplementedError

    def prototypes(self, params: Tree, z: Array) -> Array:
        """The result of `apply` [...,d] -> logits [...,K], float32. Only heads with prototypes have this method."""
        raise NotImplementedError(f'{type(self).__name__} has no prototypes')


class TrainState(NamedTuple):
    """Everything that a run needs to resume. `step` is the only clock."""

    step: Array  # int32 [], number of steps, the skipped ones included
    params: Tree  # {'towers', 'heads', 'terms'}
    opt: Tree
    aux: Tree  # {'teachers', 'stats', 'terms'}
    key: Array  # typed PRNG key; folded with the step, never advanced
    skipped: dict[str, Array]  # int32: in_a_row, total


class Record(NamedTuple):
    """One decoded record, as `medjax.data.records.Split` gives it (on the host, numpy)."""

    image: Any  # uint8|uint16 [H,W,C]
    label: Any  # int8 [L]
    keys: dict[str, Any]  # image, patient, study -> uint64, hashed
    attributes: dict[str, Any]  # role, view, age, sex, site, split, text by section, …


Metrics = dict[str, Array]


def is_number(x: Any) -> bool:
    """Whether a config's value is a number; True and False are none."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def is_whole(x: Any) -> bool:
    """Whether a config's value is a whole number; True and False are none."""
    return isinstance(x, int) and not isinstance(x, bool)
