"""The contracts: the records that data, views, towers, objectives and training hand to each other.

Shapes use one letter an axis: B global rows of a part, V crops of a view, S slots of a crop, N patch tokens,
D features, G groups, K targets of a mask or prototypes of a head, M masked tokens of a group.
A group is `rows_per_group` consecutive global rows. Every random or data-dependent gather stays inside a group, so that
no row crosses devices and no draw depends on the mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError

Tree = Any  # a nested dict of arrays
Batch = Mapping[str, Mapping[str, Array]]
"""part -> field -> array; the leading axis is the part's own number of GLOBAL rows.

    row            uint32 [B]            the global row number in the batch; every draw folds it in
    image          uint8|uint16 [B,S,H,W,C]   S slots, 1 for now; the image lies top-left on its canvas
    image/present  bool [B,S]
    image/extent   int32 [B,S,2]         height and width of the image on the canvas
    label          int8 [B,L]            1, 0, -1 uncertain, -2 blank; L labels, the same for all sources
    mask           uint8 [B,S,H,W]       bit k: structure k, of those that a term reads; only if a term reads masks
    mask/known     uint8 [B,S]           bit k: the record says where structure k is; 0: it has no mask
    column         float32 [B,C]         C columns of the config: numbers, or numbers of words; nan: unknown
    key/patient    uint32 [B,2]          the two halves of the hashed 64-bit id
    key/study      uint32 [B,2]          the same for the study
    key/text       uint32 [B,2]          a hash of everything that the text views of the part may draw from; 0: no text
    text/<view>           int32 [B,R,T]  R texts of each row as tokens, padded; <view> is the name of a text view
    text/<view>/length    int32 [B,R]    number of tokens of each text; 0: absent
    index          uint32 [B]            the number of the record in its source
"""


class View(NamedTuple):
    """Crops or texts of each row: V of them, image-major."""

    x: Array  # float32 [B,V,S,H,W,C], normalised; of texts int32 [B,V,T] token ids
    row: Array  # uint32 [B], the global row numbers
    present: Array  # bool [B,V]
    valid: Array | None  # bool [B,V,T] of texts: the first `length` of the T tokens; None for images
    meta: dict[str, Array]
    """Facts that terms may read: label, column and key/… of the rows. For crops also their draws: boxes float32 [B,V,4]
    (top, left, height, width, in image pixels), flip bool [B,V], … For texts also length int32 [B,V]."""
    slot_present: Array | None = None  # bool [B,V,S]: which slots of a crop are there; None: all slots, and for texts

    @property
    def image(self) -> Array:
        """float32 [B,V,H,W,C]: x without its axis of slots, for towers that take one image."""
        if self.x.shape[2] != 1:
            raise UserError(f'the view has {self.x.shape[2]} slots, and this tower takes one image')
        return self.x[:, :, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The masked tokens of a view: as bits, and as a fixed number of positions in each group.

    `index` counts the [rows_per_group * V * N] tokens of a group, image-major. `weight` is 1 / (masked tokens of the
    crop), and 0 for padding. Padding enters no loss, Sinkhorn, centre or count.

    `mode` is what a tower does with masked tokens. 'replace': it puts its mask token, or `fill`, in their places.
    'drop': it reads the tokens `kept` alone, as K sequences for each crop, one for each context. 'zero': it sets them
    to zero in every layer.
    """

    bits: Array  # bool [B,V,N]
    index: Array  # int32 [G,K,M]
    weight: Array  # float32 [G,K,M]
    kept: Array | None = None  # int32 [B,V,K,M'], with mode 'drop': the tokens of each context; padding is any token
    length: Array | None = None  # int32 [B,V,K]: the first `length` of `kept` count; None: all M' of them
    fill: Array | None = None  # int32 [B,V,N], texts: the token ids in place of the masked ones
    mode: str = dataclasses.field(metadata=dict(static=True), default='replace')  # 'replace' | 'drop' | 'zero'
    crop_room: int = dataclasses.field(metadata=dict(static=True), default=0)
    """The places of each crop in `index`: crop j of a group has those from j crop_room on. 0: crops share all M."""
    own_sets: bool = dataclasses.field(metadata=dict(static=True), default=False)
    """Whether each context of a crop has sets of targets of its own: K / C sets for each of C contexts, in their order.

    If not, all sets belong to every context."""


Views = dict[str, View]
Masks = dict[str, Mask]
MakeViews = Callable[[Batch, Array, Array], tuple[Views, Masks]]
"""(batch, key, step) -> views by name, masks by 'view~mask'. Randomness touches pixels here and nowhere else."""


class Input(NamedTuple):
    """One input of a tower: a view, or the outputs of another tower that has read the view."""

    view: View
    mask: Mask | None = None  # of the view
    outputs: Mapping[str, Array] | None = None  # of the tower that this input is read through; None: the view itself

    @property
    def present(self) -> Array:
        """bool [B,V']: which elements of the input are there. V' = V K for a mask with K contexts a crop."""
        if self.outputs is not None:
            return self.outputs['present']
        kept = None if self.mask is None else self.mask.kept
        return self.view.present if kept is None else jnp.repeat(self.view.present, kept.shape[2], axis=1)


class Read(NamedTuple):
    """One entry of `reads` of a tower over towers: 'image', 'prior=image?', or None for the view itself."""

    name: str  # for names of features, where two entries see one kind of view
    tower: str | None  # the tower that the input is read through; None: the view itself
    optional: bool  # a feature may leave this input out


class ApplyOptions(NamedTuple):
    """The options of `Tower.apply`, as `Tower.encode` gets them."""

    train: bool
    key: Array | None
    rows_per_group: int
    want: frozenset[str]

    @property
    def layers(self) -> int:
        """The most blocks whose results are wanted: 4 for 'last4/cls' or 'mean4/patches'. 1 without such a wish."""
        return max([1, *self.numbers('last'), *self.numbers('mean')])

    def numbers(self, kind: str) -> set[int]:
        """The numbers of blocks in wanted outputs of a kind: {4} for 'last4/cls' and the kind 'last'."""
        return {int(match[1]) for name in self.want if (match := re.fullmatch(rf'{kind}([1-9]\d*)/\w+', name))}

    def last(self, **outputs: Array) -> dict[str, Array]:
        """The wanted outputs of the last blocks, such as 'last4/cls', from arrays [B,V,blocks,…] of enough blocks."""
        return {f'last{n}/{name}': x[:, :, -n:] for n in self.numbers('last') for name, x in outputs.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """A module with parameters that turns its inputs into named outputs: an encoder, a decoder, a fusion, …

    `medjax.models.towers.<name>.build` returns a subclass with the methods `init` and `encode`, and `grid` if it sees
    images. A tower holds settings and no parameters, so its methods are pure functions. With `eq=False` a tower equals
    only itself, so jax.jit can hash it although `axes` is a dict. A subclass that adds fields needs the same decorator.

    A tower of views has one input, a view. A tower over towers has one input for each entry of `reads`: the outputs of
    another tower, or a view.
    """

    sees: ClassVar[Literal['image', 'text']] = 'image'  # the kind of the views that it reads itself

    width: int  # D, the numbers in a feature
    axes: Tree  # like the parameters: for each array a tuple of logical axis names, None for an axis without a name
    reads: tuple[Read, ...] = ()  # (): a tower of views. `medjax.models.build` fills it in from the config
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of outputs whose last axis is not D
    wants: tuple[str, ...] = ()  # outputs that cost more (see `apply`), which it needs of every tower that it reads
    batch_statistics: bool = False  # in training a row's features depend on other rows, so micro-batches are refused
    vocabulary: int = 0  # text towers: the number of token ids
    context: int = 0  # text towers: the largest number of tokens in a text
    blocks: int = 0  # whose results 'last<n>/…' and 'mean<n>/…' may name; 0: unknown

    def init(self, key: Array) -> Tree:
        """New parameters.

        Batch-norm statistics are stored under 'stats'. During training the objective keeps them in `aux`, out of reach
        of gradients and the optimizer. Exports put them back.
        """
        raise NotImplementedError

    def apply(
        self,
        params: Tree,
        *inputs: Input | None,
        train: bool = False,
        key: Array | None = None,
        rows_per_group: int = 1,
        want: Collection[str] = (),
    ) -> dict[str, Any]:
        """The outputs by name, in float32 and after the final norm. An optional input that is absent is None.

        Every tower has cls [B,V,D], one feature for each image or text. Image towers add patches [B,V,N,D], and
        registers [B,V,R,D] if they have registers. Text towers add tokens [B,V,T,D]. `present` bool [B,V] says which
        features count: those whose required inputs are all present, unless the tower knows better.

        `want` names outputs that cost more, and nothing else of that kind is computed. 'last4/cls' [B,V,4,D] and
        'last4/patches' [B,V,4,N,D] or 'last4/tokens' are those of the last 4 blocks. 'mean4/patches' [B,V,N,D] is the
        mean over the last 4 blocks, of which the last one alone passes the final norm; for 'mean4/standardised_patches'
        all stand before the norm, and each is standardised over D. 'attention' [B,V,N] is the attention of the CLS
        token in the last block, the mean over heads. 'levels/2' [B,V,h,w,D'] is the feature map after the second stage
        of a convolutional tower.

        `train` turns drop path on. Its draws depend on `key` and the group number (view.row // rows_per_group) alone.
        With `train`, batch norms use the statistics of the batch, and the output 'stats' holds the new running ones.
        """
        if len(inputs) != max(len(self.reads), 1):
            raise UserError(f'{type(self).__name__} takes {max(len(self.reads), 1)} inputs, got {len(inputs)}')
        present = self.present(inputs)  # also checks that the inputs fit together
        outputs = self.encode(params, inputs, ApplyOptions(train, key, rows_per_group, frozenset(want)))
        return {'present': present, **outputs}

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        """The outputs that `apply` describes. A subclass computes them here; everybody else calls `apply`."""
        raise NotImplementedError

    def present(self, inputs: tuple[Input | None, ...]) -> Array:
        """bool [B,V]: the elements whose required inputs are all present."""
        optional = [read.optional for read in self.reads] or [False]
        required = [x.present for x, free in zip(inputs, optional, strict=True) if x is not None and not free]
        given = required or [x.present for x in inputs if x is not None]  # all inputs are optional: any of them
        counts = sorted({x.shape[1] for x in given} - {1})
        if len(counts) > 1:
            raise UserError(
                f'its inputs have {" and ".join(map(str, counts))} crops or texts a row; give their views equal counts'
            )
        combine = jnp.logical_and if required else jnp.logical_or
        return functools.reduce(combine, given)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for an image of height and width `size`. Text towers have no grid."""
        raise NotImplementedError(f'{type(self).__name__} has no grid of patches')

    def is_added(self, path: str) -> bool:
        """Whether a parameter was added to a trained tower: it stays new where weights to start from lack it."""
        return False

    def exported(self, params: Tree, section: Mapping[str, Any]) -> tuple[Tree, Mapping[str, Any]]:
        """Parameters (numpy) and the section of the config as an export holds them."""
        return params, section

    def check(self, crops: Mapping[str, int], rows_per_group: int) -> None:
        """A UserError if drop path cannot come within .02 of its rate; `crops` is the number of crops by view."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """One array in, one array out: a projection; `medjax.models.heads.<name>.build(width, ...)` returns a subclass.

    `eq=False` lets jax.jit hash a head, as in `Tower`.
    """

    axes: Tree  # like the parameters, see Tower.axes
    prototype_count: int = 0  # K; 0 means that the head has no prototypes
    batch_statistics: bool = False  # in training a row's result depends on other rows, see `Tower.batch_statistics`
    tie: str | None = None
    """A parameter of another module that this head uses, as 'towers/text/words': it gets it as params['tied'].

    `medjax.models.build` fills it in from the config. The array is that of the same network."""
    together: bool = False
    """Whether all features of a network pass the head as one batch, so that its statistics are those of all crops.

    `medjax.models.build` fills it in from the config. If not, each feature has its own statistics."""

    def init(self, key: Array) -> Tree:
        """New parameters. Batch-norm statistics are stored under 'stats', as in `Tower.init`."""
        raise NotImplementedError

    def apply(self, params: Tree, x: Array, *, present: Array | None = None, train: bool = False) -> Any:
        """Features [...,D] -> [...,d]. A head with prototypes gives its L2-normalised bottleneck.

        `present` bool is like the leading axes of x; None: everything is present. A head with `batch_statistics`
        needs it, and with `train` it returns (result, new running statistics).
        """
        raise NotImplementedError

    def prototypes(self, params: Tree) -> Callable[[Array], Array]:
        """The function from results of `apply` [...,d] to logits [...,K], float32. Only heads with prototypes have it.

        Losses call the function for one block of rows after the other. What depends on the parameters alone, such as
        the norms of the prototypes, is computed before, so that devices exchange its gradient once.
        """
        raise NotImplementedError(f'{type(self).__name__} has no prototypes')


class TrainState(NamedTuple):
    """Everything that a run needs to resume. `step` is the only clock."""

    step: Array  # int32 [], number of steps, the skipped ones included
    params: Tree  # {'towers', 'heads', 'terms'}
    opt: Tree
    aux: Tree  # {'teachers', 'stats', 'terms'}; stats: network -> {'towers', 'heads'} -> name -> running statistics
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
