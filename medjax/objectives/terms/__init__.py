"""Terms are the losses that a recipe adds up. Each term is a module that the config names.

`term='koleo'` in a config is the module `medjax.objectives.terms.koleo`. A name with a dot, 'mypkg.myterm', is a module
of the user. Its function `build(context, **config)` returns a `Term`. See docs/add_a_term.md.

The weight of a term acts in one place: `Objective.loss` in `medjax/objectives/compose.py` multiplies by it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.data.types import known as is_known
from medjax.errors import UserError, suggest
from medjax.models.passes import Pass
from medjax.objectives.features import Feature, parse
from medjax.objectives.trees import leaf_at
from medjax.types import Head, Input, Masks, Metrics, Tower, Tree, Views
from medjax.views import cutmix, geometry

_STATISTICS = (
    'heads.{0} normalises by the statistics of the batch, so a term cannot run it; name it in a feature, …>{0}'
)


class TargetColumn(NamedTuple):
    """A label or a column of the data that a term predicts."""

    name: str
    field: Literal['label', 'column']  # of a batch
    number: int  # of the label or column in this field
    words: tuple[str, ...]  # its classes, by number; () for a column of numbers


@dataclasses.dataclass(frozen=True, eq=False)
class TermContext:
    """The facts of a recipe that a term may use when it is built, and what the term declares."""

    where: str  # the config path that messages name, 'terms[0] (koleo)'
    total_steps: int
    rows_per_group: int
    heads: Mapping[str, Head] = dataclasses.field(default_factory=dict)  # the heads that were declared so far
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # view -> the part of the batch that it shows
    crops: Mapping[str, int] = dataclasses.field(default_factory=dict)  # view -> its number of crops or texts
    boxes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # view -> the view whose crops it shows too
    passes: Mapping[str, Pass] = dataclasses.field(default_factory=dict)  # of the features declared so far, by name
    width: Callable[[str], int] = lambda name: 0  # name of a declared feature -> the length of its last axis
    # checks a feature against the recipe; the second argument is the number of outputs that its last head should have
    declare: Callable[[Feature, int | None], Feature] = lambda feature, outputs: feature
    declare_head: Callable[[str, int, str], Head] | None = None  # (head, width, argument); see `head`
    towers: Mapping[str, Tower] = dataclasses.field(default_factory=dict)
    mixed: frozenset[str] = frozenset()  # views with CutMix, whose crops show two rows
    labels: tuple[str, ...] | None = ()  # the names of the labels of the data; None: no data are at hand
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> 'number', or its words
    run_by_term: list[str] = dataclasses.field(default_factory=list)  # 'towers/fusion', filled by `tower` and `head`
    read_by_loss: list[str] = dataclasses.field(default_factory=list)  # names of features, filled by `feature`

    def feature(
        self, name: str, argument: str, per_row: bool = False, outputs: int | None = None, mixes: bool = False
    ) -> Feature:
        """Declares that the term reads the feature `name`, the value of the config key `argument`.

        The declared features decide which passes run. `per_row`: `Term.per_row` alone reads it, so that it is dropped
        after each micro-batch. `outputs`: the number of outputs that the term needs; the last head of the feature takes
        it if the config leaves its `out` open. `mixes`: the term knows that a crop under CutMix shows two rows, see
        `TermInputs.partners`. UserError if the name does not have the form of a feature, or if the recipe has no such
        feature.
        """
        feature = self.declare(parse(name, f'{self.where}.{argument}'), outputs)
        for one in feature.inputs:
            if one.view in self.mixed and not (mixes and len(feature.inputs) == 1):
                why = 'a tower that reads other views too' if mixes else 'this term'
                raise UserError(
                    f'{self.where}.{argument}: the crops of {one.view!r} show two rows each (cutmix), and {why} would '
                    'take them for one; name a view without cutmix'
                )
        if not per_row:
            self.read_by_loss.append(feature.name)
        return feature

    def check_queue(self, queue: int, batch: int, what: str) -> None:
        """UserError if a queue is shorter than a batch, whose `batch` elements are called `what`."""
        if queue < batch:
            raise UserError(f'{self.where}.queue={queue}: must hold at least a batch, which has {batch} {what} here')

    def same_part(self, *features: Feature) -> None:
        """UserError unless all features are of one part of the batch, so that their rows belong together."""
        shown = {feature.view: self.parts.get(feature.view) for feature in features}
        if len(set(shown.values())) > 1:
            parts = ' and '.join(f'{view!r} shows {part!r}' for view, part in shown.items())
            raise UserError(f'{self.where}: its features are of different parts of the batch: {parts}')

    def head(self, name: str, width: int, argument: str) -> Head:
        """Declares that the term runs the head `name` itself, on features of `width` numbers.

        UserError for a head with statistics of the batch, which would not move.
        """
        if self.declare_head is None:
            return self.heads[name]
        head = self.declare_head(name, width, f'{self.where}.{argument}')
        if head.batch_statistics:
            raise UserError(f'{self.where}.{argument}: {_STATISTICS.format(name)}')
        self.run_by_term.append(f'heads/{name}')
        return head

    def tower(self, name: str, argument: str) -> Tower:
        """Declares that the term runs the tower `name` itself; a UserError where the recipe has no such tower."""
        if name not in self.towers:
            raise UserError(f'{self.where}.{argument}: there is no tower {name!r}{suggest(name, self.towers)}')
        if self.towers[name].batch_statistics:
            raise UserError(
                f'{self.where}.{argument}: towers.{name} normalises by the statistics of the batch, so a term cannot '
                'run it; name it in a feature'
            )
        self.run_by_term.append(f'towers/{name}')
        return self.towers[name]

    def target(self, name: str, argument: str) -> TargetColumn:
        """The label or the column `name` of the data, for `TermInputs.target`; a UserError where there is none.

        Where no data are at hand (`medjax config` without --data), any name may be a label, and words are made up.
        """
        if name in self.columns:
            words = self.columns[name] or ('one word', 'another word')
            words = () if words == 'number' else tuple(words)
            return TargetColumn(name, 'column', list(self.columns).index(name), words)
        labels = (name,) if self.labels is None else tuple(self.labels)
        if name in labels:
            return TargetColumn(name, 'label', labels.index(name), ('absent', 'present'))
        raise UserError(
            f'{self.where}.{argument}: the data have no label {name!r}, and the config no such column '
            f'(columns=dict({name}=None) lists one){suggest(name, [*labels, *self.columns])}'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The towers and heads with the parameters of the student and of the teachers."""

    towers: Mapping[str, Tower]
    heads: Mapping[str, Head]
    trees: Mapping[str, Tree]  # network -> {'towers', 'heads'}: parameters with their statistics
    rows_per_group: int = 1

    def run_head(self, name: str, x: Array, network: str, present: Array | None = None, train: bool = False) -> Any:
        """The output of one head, or (output, statistics); see `Head.apply`."""
        with jax.named_scope(f'heads/{name}'):  # for profiles
            return self.heads[name].apply(self.head_params(name, network), x, present=present, train=train)

    def head_params(self, name: str, network: str) -> Tree:
        """The parameters of a head, with the parameter of another module that it is tied to."""
        tie, params = self.heads[name].tie, self.trees[network]['heads'][name]
        return params if tie is None else {**params, 'tied': leaf_at(self.trees[network], tie)}

    def head(self, name: str, x: Array, network: str) -> Array:
        """The output of a head that a term runs itself."""
        if self.heads[name].batch_statistics:
            raise UserError(_STATISTICS.format(name))
        return self.run_head(name, x, network)

    def prototypes(self, name: str, network: str) -> Callable[[Array], Array]:
        """The function from bottlenecks to logits of a head with prototypes; see `Head.prototypes`."""
        return self.heads[name].prototypes(self.head_params(name, network))

    def tower(
        self,
        name: str,
        inputs: tuple[Input | None, ...],
        network: str,
        key: Array | None,
        want: Collection[str] = (),
    ) -> dict[str, Any]:
        """The outputs of a tower that a term runs itself."""
        if self.towers[name].batch_statistics:
            raise UserError(
                f'towers.{name}: it normalises by the statistics of the batch, so a term cannot run it itself'
            )
        train = network == 'student' and key is not None
        return self.towers[name].apply(
            self.trees[network]['towers'][name], *inputs, train=train, key=key,
            rows_per_group=self.rows_per_group, want=want,
        )  # fmt: skip


class Target(NamedTuple):
    """The values of one label or column for the rows of a part."""

    value: Array  # float32 [B]: 1 or 0 of a label, the number of a word, or a number; 0 where it is not known
    known: Array  # bool [B]


class Cells(NamedTuple):
    """The structures that the masks of the rows show, in the cells of each crop."""

    share: Array  # float32 [B,V,h,w,K], of a cell that a structure covers
    on_image: Array  # float32 [B,V,h,w], the share of a cell that lies on the image
    known: Array  # bool [B,K]: the record says where the structure is


@dataclasses.dataclass(frozen=True, eq=False)
class TermInputs:
    """The inputs of `Term.per_row` and `Term.loss`."""

    params: Tree  # of the term itself
    state: Tree  # of the term itself
    features: Mapping[str, Array]  # by full name; those of teachers have no gradient
    presence: Mapping[str, Array]  # bool [B,V] by full name, see `present`
    views: Views  # in `Term.loss` without their pixels and tokens: x is None in micro-batches
    masks: Masks
    networks: Networks
    step: Array
    key: Array | None  # a random key for this term alone
    per_row: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # in `Term.loss`: what `Term.per_row` gave
    temperatures: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # of the terms that have one
    marked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # view -> structures of its masks

    def present(self, feature: Feature) -> Array:
        """bool [B,V]: the elements of a feature that count. All required inputs of its pass are there.

        Absent elements are neither rows nor columns nor counts of a loss.
        """
        return self.presence[feature.name]

    def feature(self, feature: Feature, axes: str) -> Array:
        """A feature, whose axes must be as many as `axes` names, such as 'BVD'; UserError if they are not."""
        x = self.features[feature.name]
        if x.ndim != len(axes):
            raise UserError(
                f'the feature {feature.name!r} has the shape {list(x.shape)}, and the term needs one of '
                f'[{",".join(axes)}]'
            )
        return x

    def head(self, name: str, x: Array, network: str = 'student') -> Array:
        """The output of a head for `x`."""
        return self.networks.head(name, x, network)

    def prototypes(self, name: str, network: str = 'student') -> Callable[[Array], Array]:
        """The function from bottlenecks [...,d] to logits [...,K] of a head with prototypes.

        Call this once and the function for each block of rows: what does not depend on the rows is then computed once.
        """
        return self.networks.prototypes(name, network)

    def tower(
        self, name: str, *inputs: Input | None, network: str = 'student', call: int = 0, want: Collection[str] = ()
    ) -> dict[str, Any]:
        """The outputs of a tower for inputs that the term makes itself; `want` as in `Tower.apply`.

        `call` is another number for each call of a term, so that drop path draws anew. The `outputs` of an input need
        'present'. In `Term.per_row` this costs the memory of a micro-batch, in `Term.loss` that of the whole batch.
        """
        key = None if self.key is None else jax.random.fold_in(self.key, zlib.crc32(f'{name}/{call}'.encode()))
        return self.networks.tower(name, inputs, network, key, want)

    def target(self, feature: Feature, column: TargetColumn) -> Target:
        """The values of a label or a column for the rows of a feature."""
        values = self.views[feature.view].meta[column.field][:, column.number]
        known = is_known(values) if column.field == 'label' else jnp.isfinite(values)
        return Target(jnp.where(known, values, 0).astype(jnp.float32), known)

    def codes(self, feature: Feature, labels: Sequence[int]) -> Array:
        """int8 [B,L]: the codes of some labels, by their numbers, for the rows of a feature; see data/types.py."""
        return self.views[feature.view].meta['label'][:, np.asarray(labels)]

    def cells(self, feature: Feature, names: Sequence[str], grid: tuple[int, int]) -> Cells:
        """Structures of the data in the crops of a feature, each crop cut into `grid` cells of equal size.

        The term must name the structures in `Term.structures`. Call this in `Term.per_row`, so that the cells of one
        micro-batch are held at once.
        """
        meta, bits = self.views[feature.view].meta, [self.marked[feature.view].index(name) for name in names]
        shifts = np.array(bits, np.uint8)

        def of_row(mask: Array, extent: Array, boxes: Array, flips: Array) -> tuple[Array, Array]:
            planes = (mask >> shifts[:, None, None]) & 1
            return jax.vmap(lambda box, flip: geometry.covered(planes, extent, box, grid, flip))(boxes, flips)

        extent = jnp.maximum(meta['image/extent'][:, 0], 1)  # an absent image has extent 0; its cells stay finite
        share, on_image = jax.vmap(of_row)(meta['mask'][:, 0], extent, meta['boxes'], meta['flip'])
        return Cells(jnp.moveaxis(share, 2, -1), on_image, (meta['mask/known'] >> shifts) & 1 > 0)

    def partners(self, view: str) -> TermInputs | None:
        """The inputs in which the rows of a view have the facts of their partners under CutMix; None without CutMix."""
        one = self.views[view]
        if cutmix.SHARE not in one.meta:
            return None
        told = {name.removeprefix(cutmix.PREFIX): x for name, x in one.meta.items() if name.startswith(cutmix.PREFIX)}
        theirs = one._replace(row=told['row'], meta={**one.meta, **told})
        return dataclasses.replace(self, views={**self.views, view: theirs})

    def temperature(self, term: str) -> Array:
        """The temperature of another term, which learns it; the gradient of this term reaches it too."""
        return self.temperatures[term]


class TermOutput(NamedTuple):
    """The result of `Term.loss`."""

    loss: Array  # a scalar, without the term's weight
    metrics: Metrics  # numbers to log; 'rows' is the number of rows that count
    start: Array | None = None
    """The loss of the best constant answer to the targets of this batch, which health compares with; None if there is
    none. Examples: the entropy of the frequencies of the targets, the variance of the targets."""
    carry: Any = None  # what `Term.update` receives


class Alignment(NamedTuple):
    """Two features that a term brings into one space. Exports list them, for image-text probes."""

    rows: Feature
    columns: Feature


class Prediction(NamedTuple):
    """A feature that a term makes predict labels or columns. Exports list them, so that the head can be used."""

    of: Feature
    outputs: int  # their number, the length of the last axis
    meaning: Mapping[str, Any]  # what they predict, as JSON: `predicts`, `names`, …


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """A function of features that gives one number.

    Subclasses define `loss`. The other methods are optional.
    """

    context: TermContext

    @property
    def needs(self) -> tuple[str, ...]:
        """The full names of the features that `loss` reads, as they were declared."""
        return tuple(dict.fromkeys(self.context.read_by_loss))

    @property
    def least_rows(self) -> int:
        """The fewest rows of a batch that the term can learn from: 2 if it compares rows with each other."""
        return 1

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """The part of the term that looks at nothing outside of a group of rows: small float arrays by name.

        It runs inside each micro-batch, sees pixels and tokens, and may run towers. Its arrays are float32, and their
        leading axis is rows [B,…] or groups [G,…]. `loss` gets them for the whole batch as `x.per_row`.
        """
        return {}

    def loss(self, x: TermInputs) -> TermOutput:
        """The loss over the global batch, as the paper writes it. The compiler shards it."""
        raise NotImplementedError

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """Parameters and state of the term itself."""
        return {}, {}

    @property
    def axes(self) -> tuple[Tree, Tree]:
        """Trees like those of `init`, with a tuple of logical axis names (or None) for each array."""
        return {}, {}

    def update(self, state: Tree, carry: Any, step: Array) -> Tree:
        """The state after the optimizer step; `carry` is what `loss` returned."""
        return state

    def project(self, params: Tree) -> Tree:
        """The parameters after the optimizer step, for example clamped."""
        return params

    def own_temperature(self, params: Tree, step: Array) -> Array | None:
        """The temperature that belongs to this term, from its parameters; None for a term without one of its own."""
        return None

    @property
    def temperature_of(self) -> str | None:
        """The term whose temperature this one uses; None for no other term."""
        return None

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int | Literal['any'] | None:
        """The number of array elements that devices exchange in one step; `shapes` are those of the features by name.

        The sharding tests compare this bound with the compiled program. None: nothing but a few sums over rows may
        travel. 'any': the term states no bound.
        """
        return None

    @property
    def structures(self) -> Mapping[str, tuple[str, ...]]:
        """View -> the structures whose masks the term reads, by `TermInputs.cells`; without them no mask is read."""
        return {}

    @property
    def alignment(self) -> Alignment | None:
        """The two features that the term brings into one space; None if it brings none."""
        return None

    @property
    def prediction(self) -> Prediction | None:
        """The feature that the term makes predict labels or columns of the data; None if there is none."""
        return None
