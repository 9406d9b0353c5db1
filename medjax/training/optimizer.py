"""AdamW, SGD, LARS and LAMB with parameter groups. Rate and weight decay are functions of the state's step alone.

`optim.groups` in a config is a list of rules `dict(match=pattern, …)`. A pattern is compared with the path of each
parameter, for example 'towers/image/blocks/mlp/fc1/kernel':

    match         shell pattern; 'blocks[0:6]' in it means rows 0 to 5 of the stacked blocks
    lr_scale      factor of the learning rate
    wd_scale      factor of the weight decay
    layerwise     layer-wise decay of the learning rate: layerwise ** (number of layers above), for one tower
    frozen_until  before this step the parameter does not change; its gradient still enters norms and moments. 'end': it
                  never changes, and its gradient is not computed
    unfreeze      (first, last): the layers of one tower begin to change one after the other, the last layer at step
                  `first` and the first layer at step `last` (arXiv 1801.06146)
    clip_group    name of the set of parameters whose gradients are clipped by their common norm

Biases, norms and LayerScale have no weight decay unless `optim.no_decay` says otherwise.
If several rules match a parameter, their lr_scale and wd_scale multiply: the patch embedding of DINOv2 has
layerwise .9 of the whole tower times lr_scale .2 of its own rule. For frozen_until (and unfreeze) and clip_group the
last matching rule decides.

The layers of a transformer are its blocks; all before them is the first layer, and the norm and pool after them are the
last. The layers of a ResNet or ConvNeXt are its stages, after the stem.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from medjax.errors import UserError, suggest
from medjax.objectives import schedules
from medjax.objectives.schedules import Schedule
from medjax.plugins import call, text_list
from medjax.types import Metrics, Tree, is_number, is_whole

NEVER = 2**31 - 1  # the step from which a parameter with frozen_until='end' changes
RULES = ('adamw', 'sgd', 'lars', 'lamb')
TRUST = 0.001  # of LARS
STACKS = ('/blocks/', '/rest/')  # of transformers, and of the stages of a ResNet: layers on the leading axis
NO_DECAY = ('*/bias', '*/scale', '*/gamma?')  # of biases, norms and LayerScale


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
    """AdamW, SGD, LARS or LAMB with a learning rate, weight decay and clipping of its own for every parameter."""

    lr: float
    schedule: Schedule  # step -> factor of lr
    weight_decay: Schedule
    moments: optax.GradientTransformation
    # of SGD and LARS: (gradients, parameters, groups, decay) -> gradients with their decay, before the moments
    coupled: Callable[[Tree, Tree, Tree, Array], Tree] | None
    as_long: bool  # LAMB: the step of a parameter with weight decay is as long as the parameter, times lr
    clip: float | None
    groups: Tree  # like the parameters: the Group of each

    def init(self, params: Tree) -> Tree:
        """The moments, and the number of updates so far."""
        return self.moments.init(params)

    def update(self, grads: Tree, opt: Tree, params: Tree, step: Array) -> tuple[Tree, Tree, Metrics]:
        """New params and opt, and the metrics 'grad_norm/<clip group>', 'lr', 'weight_decay'."""
        grads, norms = clip_by_group(grads, self.groups, self.clip)
        rate, decay = self.lr * self.schedule(step), self.weight_decay(step)
        after = decay  # the decay that acts after the moments
        if self.coupled is not None:
            grads, after = self.coupled(grads, params, self.groups, decay), 0.0
        directions, opt = self.moments.update(grads, opt)

        def move(p: Array, d: Array, group: Group) -> Array:
            thawed = (step >= group.frozen_until).astype(jnp.float32)
            d = d + after * group.wd_scale * p
            return p - rate * group.lr_scale * thawed * (as_long(d, p, group) if self.as_long else d)

        params = jax.tree.map(move, params, directions, self.groups)
        return params, opt, {**norms, 'lr': rate, 'weight_decay': decay}

    def trained(self, params: Tree) -> Tree:
        """The same parameters; no gradient reaches those that never change."""
        return jax.tree.map(lambda p, g: jax.lax.stop_gradient(p) if g.is_frozen else p, params, self.groups)


class Rule(NamedTuple):
    """One entry of `optim.groups`; see above."""

    match: str
    lr_scale: float = 1.0
    wd_scale: float = 1.0
    layerwise: float | None = None
    frozen_until: int | str | None = None
    unfreeze: Sequence[int] | None = None
    clip_group: str | None = None


class Group(NamedTuple):
    """The result of all rules for one parameter. Numbers may be arrays [depth,1,…] for stacked blocks."""

    lr_scale: Any = 1.0
    wd_scale: Any = 1.0
    frozen_until: Any = 0
    clip_group: str = 'all'
    is_stack: bool = False  # the leading axis counts the layers of a stack

    @property
    def is_frozen(self) -> bool:
        """Whether the parameter never changes."""
        return isinstance(self.frozen_until, int) and self.frozen_until == NEVER


def optimizer(
    params: Tree,
    total_steps: int,
    lr: float,
    schedule: Any = 1.0,
    weight_decay: Any = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    rule: str = 'adamw',
    clip: float | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    groups: Sequence[Mapping[str, Any]] = (),
) -> Optimizer:
    """The optimizer that the section `optim` of a config describes.

    rule='adamw', with decoupled weight decay (arXiv 1711.05101):

        p <- p - lr(step) lr_scale (m / (sqrt(v) + eps) + weight_decay(step) wd_scale p)
        lr(step) = lr * schedule(step)

    rule='sgd', with momentum b1 as torch has it, and w = weight_decay(step) wd_scale:

        m <- b1 m + g + w p      p <- p - lr(step) lr_scale m

    rule='lars' (arXiv 1708.03888):

        d = (g + w p) .001 |p| / (|g| + w |p| + eps)      m <- b1 m + d      p <- p - lr(step) lr_scale m

    The norms are those of one array, or of one layer of a stack. d = g where p or g is 0, and for parameters without
    weight decay: biases and norms by default, none with no_decay=[] (SwAV). optax.lars and SimCLR put lr into m, which
    is equal for a constant lr. Barlow Twins, VICReg and BYOL take |g + w p| below the line, which is nearly equal for a
    small w. `b2` has no effect on SGD and LARS.

    rule='lamb' (arXiv 1904.00962), with the moments of AdamW:

        d = m / (sqrt(v) + eps) + w p      p <- p - lr(step) lr_scale d |p| / |d|

    Parameters without weight decay, and those for which |p| or |d| is 0, have the factor 1 in place of |p| / |d|, as in
    timm and SparK. optax.lamb gives all arrays the factor, and a stack of layers one for all of them.

    schedule, weight_decay  schedules: numbers, lists by step or rules
    clip                    bound of the gradient norm of every clip group: g <- g min(1, clip / (norm + 1e-6)), as
                            torch does; None for no clipping
    no_decay                patterns of parameters without weight decay: biases, norms and LayerScale by default
    groups                  rules for some of the parameters, see the top of this file

    `params` gives paths and shapes only.
    """
    schedules.number(lr, 'optim.lr', schedules.NOT_NEGATIVE)
    schedules.number(eps, 'optim.eps', schedules.POSITIVE)
    for name, beta in dict(b1=b1, b2=b2).items():
        if not is_number(beta) or not 0 <= beta < 1:
            raise UserError(f'optim.{name}={beta!r}: must be a number of at least 0 and below 1')
    if clip is not None and not (is_number(clip) and clip > 0):
        raise UserError(f'optim.clip={clip!r}: must be a number above 0, or None for no clipping')
    if rule not in RULES:
        raise UserError(f'optim.rule: there is no optimizer {rule!r}{suggest(str(rule), RULES)}')
    coupled: dict[str, Callable[[Tree, Tree, Tree, Array], Tree]] = dict(
        sgd=decayed, lars=functools.partial(trusted, eps=eps)
    )
    return Optimizer(
        lr,
        schedules.schedule(schedule, total_steps, 'optim.schedule', schedules.NOT_NEGATIVE),
        schedules.schedule(weight_decay, total_steps, 'optim.weight_decay', schedules.NOT_NEGATIVE),
        optax.scale_by_adam(b1, b2, eps) if rule not in coupled else optax.trace(b1),
        coupled.get(rule),
        rule == 'lamb',
        clip,
        parameter_groups(params, groups, no_decay),
    )


def decayed(grads: Tree, params: Tree, groups: Tree, decay: Array) -> Tree:
    """Gradients with their decay, g + w p; see `optimizer`."""
    return jax.tree.map(lambda g, p, group: g + decay * group.wd_scale * p, grads, params, groups)


def trusted(grads: Tree, params: Tree, groups: Tree, decay: Array, eps: float) -> Tree:
    """Gradients with their decay, scaled to a thousandth of the norm of their parameter; see `optimizer`."""

    def one(g: Array, p: Array, group: Group) -> Array:
        if not np.any(group.wd_scale):
            return g
        of_p, of_g = norm(p, group), norm(g, group)
        w = decay * group.wd_scale
        scaled = (g + w * p) * TRUST * of_p / (of_g + w * of_p + eps)
        return jnp.where((of_p > 0) & (of_g > 0), scaled, g)

    return jax.tree.map(one, grads, params, groups)


def as_long(d: Array, p: Array, group: Group) -> Array:
    """The direction d with the norm of its parameter p, as LAMB has it; d itself without weight decay."""
    if not np.any(group.wd_scale):
        return d
    of_p, of_d = norm(p, group), norm(d, group)
    return d * jnp.where((of_p > 0) & (of_d > 0), of_p / jnp.where(of_d > 0, of_d, 1.0), 1.0)


def norm(x: Array, group: Group) -> Array:
    """The norm of one array, or of each layer of a stack, in a shape that x can be divided by."""
    return jnp.sqrt(jnp.square(x).sum(tuple(range(int(group.is_stack), x.ndim)), keepdims=True))


def clip_by_group(grads: Tree, table: Tree, bound: float | None) -> tuple[Tree, Metrics]:
    """Gradients with the norm of every clip group bounded, and the norms before clipping."""
    leaves, structure = jax.tree.flatten(grads)
    names = [group.clip_group for group in jax.tree.leaves(table, is_leaf=_is_group)]
    norms = {
        name: jnp.sqrt(sum(jnp.sum(g.astype(jnp.float32) ** 2) for g, n in zip(leaves, names) if n == name))
        for name in sorted(set(names))
    }
    metrics = {f'grad_norm/{name}': norm for name, norm in norms.items()}
    if bound is None:
        return grads, metrics
    scale = {name: jnp.minimum(1.0, bound / (norm + 1e-6)) for name, norm in norms.items()}
    return jax.tree.unflatten(structure, [g * scale[n] for g, n in zip(leaves, names)]), metrics


def parameter_groups(params: Tree, rules: Sequence[Mapping[str, Any]] = (), no_decay: Sequence[str] = NO_DECAY) -> Tree:
    """A tree like `params` with the Group of every parameter.

    A rule that matches nothing is a UserError. A pattern of `no_decay` may match nothing.
    """
    no_decay = text_list(no_decay, 'optim.no_decay', '*/bias')
    if not isinstance(rules, (list, tuple)):
        raise UserError(
            f"optim.groups={rules!r}: must be a list of rules, such as [dict(match='heads/*', lr_scale=0.1)]"
        )
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    shapes = {'/'.join(str(k.key) for k in path): leaf.shape for path, leaf in flat}
    table = {
        path: Group(
            wd_scale=0.0 if any(fnmatch.fnmatchcase(path, pattern) for pattern in no_decay) else 1.0,
            is_stack=any(stack in path for stack in STACKS),
        )
        for path in shapes
    }
    for i, cfg in enumerate(rules):
        if not isinstance(cfg, Mapping) or not isinstance(cfg.get('match', ''), str):
            raise UserError(f"optim.groups[{i}]={cfg!r}: must be a dict with a pattern, such as dict(match='heads/*')")
        rule = call(Rule, cfg, f'optim.groups[{i}]')
        _check_steps(rule, f'optim.groups[{i}]')
        matched = _matched(rule.match, shapes)
        if not matched:
            raise UserError(
                f'optim.groups[{i}].match: no parameter matches {rule.match!r}; '
                f'a path is for example {next(iter(shapes))!r}'
            )
        for path in matched:
            table[path] = _with_rule(table[path], rule, path, shapes)
    return jax.tree.unflatten(structure, list(table.values()))


def _check_steps(rule: Rule, where: str) -> None:
    until, unfreeze = rule.frozen_until, rule.unfreeze
    if until not in (None, 'end') and (not isinstance(until, int) or isinstance(until, bool) or until < 0):
        raise UserError(f"{where}.frozen_until={until!r}: must be a step of at least 0, or 'end' for never")
    if unfreeze is None:
        return
    steps = unfreeze if isinstance(unfreeze, (list, tuple)) else ()
    if len(steps) != 2 or not all(map(is_whole, steps)) or not 0 <= steps[0] <= steps[1]:
        raise UserError(
            f'{where}.unfreeze={unfreeze!r}: must be two steps in rising order, as (500, 2000): that of the last layer '
            'and that of the first'
        )
    if until is not None:
        raise UserError(f'{where}: frozen_until and unfreeze both say when its parameters change; give one of them')


ROWS = re.compile(r'\[(\d*):(\d*)\]')  # 'blocks[0:6]'
STAGE = re.compile(r'stage(\d+)/')  # of a ResNet


def _matched(match: str, shapes: Mapping[str, Any]) -> list[str]:
    pattern = ROWS.sub('', match)
    return [path for path in shapes if fnmatch.fnmatchcase(path, pattern)]


def _with_rule(group: Group, rule: Rule, path: str, shapes: dict[str, tuple[int, ...]]) -> Group:
    """The group of a parameter after one more rule."""
    rows = ROWS.search(rule.match)
    layer, last = _layer(path, shapes)
    decay = rule.layerwise ** (last - layer) if rule.layerwise else 1.0
    until: Any = NEVER if rule.frozen_until == 'end' else rule.frozen_until
    if rule.unfreeze is not None:
        first, end = rule.unfreeze
        until = np.asarray(first + np.round((end - first) * (last - layer) / max(last, 1)), np.int32)
    return Group(
        group.lr_scale * _for_rows(rule.lr_scale, rows, shapes[path], 1.0) * decay,
        group.wd_scale * _for_rows(rule.wd_scale, rows, shapes[path], 1.0),
        group.frozen_until if until is None else _for_rows(until, rows, shapes[path], group.frozen_until),
        group.clip_group if rule.clip_group is None else rule.clip_group,
        group.is_stack,
    )


def _for_rows(value: Any, rows: re.Match[str] | None, shape: tuple[int, ...], other: Any) -> Any:
    """`value` for some rows of stacked blocks and `other` for the rest, [depth,1,…]; the plain value without rows."""
    if rows is None or (np.ndim(value) == 0 and np.ndim(other) == 0 and value == other):
        return value
    number = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    inside = (number >= int(rows[1] or 0)) & (number < int(rows[2] or shape[0]))
    return np.where(inside, value, other).astype(np.float32 if isinstance(other, float) else np.int32)


def _layer(path: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, int]:
    """The layer of a parameter in its tower, an array [depth,1,…] for stacked blocks, and the number of the last layer.

    Layer 0 is everything before the blocks, block i is layer i + 1, and the norm and pool after the blocks are layer
    depth + 1. In a ResNet or ConvNeXt the stem is layer 0, stage i is layer i, and the final norm belongs to the last
    stage. All else has one layer.
    """
    tower = '/'.join(path.split('/')[:2])
    inner = path[len(tower) + 1 :]
    mine = [p[len(tower) + 1 :] for p in shapes if p.startswith(f'{tower}/')]
    if stages := [int(match[1]) for p in mine if (match := STAGE.match(p))]:
        match = STAGE.match(inner)
        last = max(stages)
        return int(match[1]) if match else last if inner.startswith('norm/') else 0, last
    depth = next((shape[0] for p, shape in shapes.items() if p.startswith(f'{tower}/blocks/')), None)
    if depth is None:
        return 0, 0
    if inner.startswith('blocks/'):
        return 1 + np.arange(depth, dtype=np.float32).reshape(depth, *[1] * (len(shapes[path]) - 1)), depth + 1
    return (depth + 1 if inner.startswith(('norm/', 'pool/')) else 0), depth + 1


def _is_group(x: Any) -> bool:
    return isinstance(x, Group)
