"""The contracts: what data, views, towers, objectives and training hand to each other.

Shapes use one letter an axis: B global rows of a part, V crops of a view, N patch tokens, D features,
G groups, K targets of a mask or prototypes of a head, M masked tokens of a group.
A group is `rows_per_group` consecutive global rows; everything that gathers rows by chance does so inside
a group, so that no row crosses devices and no draw depends on the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

Tree = Any  # a nested dict of arrays
Batch = Mapping[str, Mapping[str, Array]]
"""part -> field -> array; the leading axis is the part's own number of GLOBAL rows.

    row            uint32 [B]            the global row number in the batch; every draw folds it in
    image          uint8|uint16 [B,S,H,W,C]   S slots (one for now); the picture lies top-left on its canvas
    image/present  bool [B,S]
    image/extent   int32 [B,S,2]         height and width of the picture on the canvas
    label          int8 [B,L]            1, 0, -1 uncertain, -2 blank, over one vocabulary
    key/patient    uint32 [B,2]          the two halves of the hashed 64-bit id; key/study likewise
    key/text       uint32 [B,2]          a hash of all that the part's text views may draw from; 0: nothing
    text/<view>           int32 [B,R,T]  R texts of each row as tokens, filled up; <view> is the name of a text view
    text/<view>/length    int32 [B,R]    tokens of each text; 0 = absent
    index          uint32 [B]            the record's number in its source (provenance)
"""


class View(NamedTuple):
    """What a tower sees: V crops or texts of each row, image-major."""

    x: Array  # float32 [B,V,H,W,C], normalised; of texts int32 [B,V,T] token ids
    row: Array  # uint32 [B], the global row numbers
    present: Array  # bool [B,V]
    valid: Array | None  # bool [B,V,N] where tokens can be padding, else None; a text is the first of its T tokens
    meta: dict[str, Array]
    """What terms may read: label and key/… of the rows; of crops boxes float32 [B,V,4] (top, left, height, width, in
    picture pixels), flip bool [B,V], …; of texts length int32 [B,V]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which tokens of a view are masked: as bits, and as a fixed number of gathered positions in each group.

    `index` counts in the group's own [rows_per_group * V * N] tokens, image-major. `weight` is 1 / (masked tokens
    of that crop), and 0 for padding, which enters no loss, Sinkhorn, centre or count.
    """

    bits: Array  # bool [B,V,N]
    index: Array  # int32 [G,K,M]
    weight: Array  # float32 [G,K,M]
    mode: str = dataclasses.field(metadata=dict(static=True), default='replace')  # 'replace' | 'drop' | 'zero'


Views = dict[str, View]
Masks = dict[str, Mask]
MakeViews = Callable[[Batch, Array, Array], tuple[Views, Masks]]
"""(batch, key, step) -> views by name, masks by 'view~mask'; the only place where chance touches pixels."""


class Tower(NamedTuple):
    """An encoder as pure functions; made by `medjax.models.<name>.build(**cfg)`."""

    init: Callable[[Array], Tree]
    """key -> params. Running statistics of batch norms lie in them as 'stats': the objective takes them out and keeps
    them in aux, where neither gradient nor optimiser reaches them, and an export holds them again."""
    axes: Tree  # like params: a tuple of logical axis names (or None) for each array
    apply: Callable[..., dict[str, Any]]
    """(params, view, mask=None, *, train=False, key=None, rows_per_group=1, layers=1) -> outputs by name.

    Every tower gives cls [B,V,D], the one feature of an image or a text; image towers patches [B,V,N,D], and, where
    they have them, registers [B,V,R,D]; text towers tokens [B,V,T,D]; all after the final norm. `layers=n` adds
    'layers/cls' [B,V,n,D] and 'layers/patches' [B,V,n,N,D] (or 'layers/tokens') of the last n blocks, normed.
    `train` turns drop path on; its draws depend on `key`, the group number (view.row // rows_per_group), nothing else.
    It also has batch norms use the batch, and the outputs hold the running statistics that follow as 'stats'.
    """
    width: int  # D
    grid: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    """Image height and width -> rows and columns of patches; None: the tower reads texts."""
    check: Callable[..., None] = lambda **_: None
    """(crops: dict[view, V], rows_per_group) -> raises UserError where the drop rate cannot be met within .02."""
    batch_statistics: bool = False  # in training a row's features depend on the other rows: no micro-batches
    vocabulary: int = 0  # of a text tower: how many token ids it knows …
    context: int = 0  # … and how many tokens of a text it can read


class Head(NamedTuple):
    """A projection; made by `medjax.models.heads.<name>(width, **cfg)`."""

    init: Callable[[Array], Tree]
    axes: Tree
    apply: Callable[
        [Tree, Array], Array
    ]  # params, [...,D] -> [...,d]; of a prototype head: the L2-normalised bottleneck
    prototypes: Callable[[Tree, Array], Array] | None  # params, [...,d] -> logits [...,K], float32
    prototype_count: int  # K, or 0 for a head without prototypes


class TrainState(NamedTuple):
    """All that a run needs to go on; `step` is the only clock."""

    step: Array  # int32 [], steps done, the skipped ones included
    params: Tree  # {'towers', 'heads', 'terms'}
    opt: Tree
    aux: Tree  # {'teachers', 'stats', 'terms'}
    key: Array  # typed PRNG key; folded with the step, never advanced
    skipped: dict[str, Array]  # int32: in_a_row, total


class Record(NamedTuple):
    """One decoded example as `medjax.data.records.Split` gives it (host side, numpy)."""

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
