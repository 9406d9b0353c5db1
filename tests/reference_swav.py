"""Checks of files that the original code of SwAV made; each takes the path of one file.

The keys of the files: w/ weights before, g/ gradients of the first step and g_last/ of the last, end/ weights after the
last step, hp/ settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from programs import run
from reference_losses import close

from medjax.objectives import formulas, numerics
from medjax.objectives.compose import Objective, compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import gradients, make_step
from medjax.types import TrainState, View
from medjax.weights import export, load

GIVEN = dict(forward=2e-5, loss=1e-5, gradient=1e-4, end=2e-4)
RESNET = dict(forward=5e-4, loss=5e-5, gradient=1e-3, end=2e-3)
SETTINGS = {
    'temperature', 'epsilon', 'sinkhorn_iterations', 'crops_for_assign', 'freeze_prototypes_niters', 'base_lr', 'wd',
    'batch', 'hidden_mlp', 'feat_dim', 'nmb_prototypes', 'nmb_crops', 'lr', 'queue_length', 'grad_is_none_step0',
}  # fmt: skip
KINDS = ('w', 'g', 'g_last', 'end', 'end_queue', 'in', 'mid', 'out', 'loss', 'hp')


def settings(d: Any) -> dict[str, Any]:
    """All of hp/*; a setting that is not known here fails."""
    given = {name.removeprefix('hp/'): d[name] for name in d.files if name.startswith('hp/')}
    more = given.keys() - {'noise_gradient', 'in_dim', 'size_crops'}
    assert more == SETTINGS, f'settings {sorted(more ^ SETTINGS)}'
    strange = [name for name in d.files if name.split('/')[0] not in KINDS]
    assert not strange, f'arrays of no known kind: {strange}'
    return given


def check_sinkhorn(path: Path) -> None:
    """sinkhorn: balanced assignments of some scores, by the plain formula and by the potential that terms use."""
    d = np.load(path)
    for case in sorted({name.split('/')[0] for name in d.files}):
        scores, expected = d[f'{case}/scores'], d[f'{case}/assign']
        epsilon, iterations = float(d[f'{case}/epsilon']), int(d[f'{case}/iterations'])
        rows, count = scores.shape

        def ours(s, epsilon=epsilon, iterations=iterations, rows=rows, count=count):
            c = numerics.sinkhorn_potential(lambda z: z, s, jnp.ones(rows), epsilon, count, iterations)
            return jax.nn.softmax(s / epsilon + c), formulas.sinkhorn(s, epsilon, iterations)

        by_potential, plain = run(ours, scores)
        if not np.isfinite(expected).all():  # the original's exp(s / epsilon) overflows
            np.testing.assert_allclose(by_potential.sum(1), 1, rtol=1e-5)
            continue
        close(by_potential, expected, GIVEN['forward'], f'{case}: assignments')
        close(plain, expected, GIVEN['forward'], f'{case}: the plain formula')


# The recipe of a file. Its crops are views: those of one size, in which the assigned ones stand first.


def crops_of(d: Any, hp: dict[str, Any]) -> dict[str, list[int]]:
    """The numbers of the crops of each view: the assigned ones, and the others of each size."""
    assigned = hp['crops_for_assign'].tolist()
    sizes = np.repeat(np.arange(len(hp['nmb_crops'])), hp['nmb_crops'])
    if 'size_crops' in hp:  # crops of one size pass the ResNet as one batch, so they are one view
        assert assigned == np.flatnonzero(sizes == 0).tolist(), 'only some crops of one size are assigned'
    named = {'assigned': assigned}
    for size in sorted(set(sizes.tolist())):
        rest = [i for i in np.flatnonzero(sizes == size).tolist() if i not in assigned]
        named |= {f'others{size}': rest} if rest else {}
    return named


def recipe(d: Any, hp: dict[str, Any]) -> dict[str, Any]:
    crops, resnet = crops_of(d, hp), 'size_crops' in hp
    if resnet:
        stem = int(d['w/conv1.weight'].shape[0])
        tower = dict(tower='resnet', variant='50', stem=stem, depths=[1, 1, 1, 1])
    else:
        tower = dict(tower='swav.given', width=int(hp['in_dim']))
    head = dict(head='linear', out=int(hp['feat_dim']), bias=True)
    if int(hp['hidden_mlp']):
        head |= dict(head='mlp', hidden=int(hp['hidden_mlp']), batch_norm=True, together=True)
    first, *others = (f'student/image/{name}/cls>projector' for name in crops)
    return dict(
        total_steps=100,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3, mean=0.5, std=0.25),
        views={name: dict(view='crop', part='images', size=40, count=len(which)) for name, which in crops.items()},
        masks={},
        towers=dict(image=tower),
        heads=dict(projector=head),
        teachers={},
        terms=[
            dict(
                term='swav', of=first, others=others, prototypes=int(hp['nmb_prototypes']),
                temperature=float(hp['temperature']), epsilon=float(hp['epsilon']),
                iterations=int(hp['sinkhorn_iterations']), queue=int(hp['queue_length']),
                frozen=int(hp['freeze_prototypes_niters']),
            )
        ],
    )  # fmt: skip


def tree(d: Any, start: str) -> dict[str, Any]:
    """Our trees from the arrays whose names begin with `start`: parameters, and statistics under 'stats'."""
    given = {name[len(start) :]: np.asarray(d[name]) for name in d.files if name.startswith(start)}
    heads: dict[str, Any] = {}
    if (weight := given.get('projection_head.weight')) is not None:
        heads = dict(fc1=dict(kernel=weight.T, bias=given['projection_head.bias']))
    elif 'projection_head.0.weight' in given:
        heads = {
            name: dict(kernel=given[f'projection_head.{i}.weight'].T, bias=given[f'projection_head.{i}.bias'])
            for name, i in (('fc1', 0), ('fc2', 3))
        }
        norm = 'projection_head.1'
        heads['batch_norm1'] = dict(scale=given[f'{norm}.weight'], bias=given[f'{norm}.bias'])
        if f'{norm}.running_mean' in given:
            moments = dict(mean=given[f'{norm}.running_mean'], variance=given[f'{norm}.running_var'])
            heads['stats'] = dict(batch_norm1=moments)
    trunk = {name: x for name, x in given.items() if not name.startswith(('projection_head', 'prototypes'))}
    return dict(image=trunk, projector=heads, prototypes=given['prototypes.weight'].T)


def wide(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """A ResNet of the original as our tower. Its bottlenecks are narrower, so their channels are filled up with zeros.

    A channel of zeros stays zero, has no gradient, and adds nothing to a norm.
    """
    state = {name: x for name, x in state.items() if not name.endswith('num_batches_tracked')}
    filled = dict(state)
    for name, x in state.items():
        if '.0.' not in name or 'downsample' in name:
            continue
        block, part, *_ = name.split('.0.')[0], *name.split('.0.')[1].split('.')
        inner = WIDTHS[block]
        if part in ('conv1', 'conv2') or part in ('bn1', 'bn2'):
            x = np.pad(x, [(0, inner - len(x))] + [(0, 0)] * (x.ndim - 1))
        if part in ('conv2', 'conv3'):
            x = np.pad(x, [(0, 0), (0, inner - x.shape[1]), (0, 0), (0, 0)])
        filled[name] = x
    if 'bn1.running_mean' not in filled:  # gradients have no statistics
        norms = [name for name in filled if name.endswith('.weight') and filled[name].ndim == 1]
        for norm in norms:
            for what in ('running_mean', 'running_var'):
                filled[norm.replace('weight', what)] = np.zeros_like(filled[norm])
    return export.unflatten(load.of_state(filled).flat('towers/image'))


WIDTHS = {f'layer{i + 1}': 8 * 2**i for i in range(4)}  # of our bottlenecks behind a stem of 8 channels


def started(d: Any, hp: dict[str, Any]) -> tuple[Objective, Any, TrainState]:
    objective = compose(recipe(d, hp))
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    lr = hp['lr'].tolist()
    cfg = dict(lr=1.0, schedule=lr, weight_decay=float(hp['wd']), rule='lars', no_decay=[])
    built = call(optimizer, cfg, 'optim', params=shapes, total_steps=100)
    state = jax.jit(lambda key: create(objective, built, key))(jax.random.key(0))
    given = tree(d, 'w/')
    towers = {'image': wide(given['image'])} if given['image'] else {'image': {}}
    params = dict(
        towers={name: {k: v for k, v in x.items() if k != 'stats'} for name, x in towers.items()},
        heads=dict(projector={k: v for k, v in given['projector'].items() if k != 'stats'}),
        terms=dict(swav=dict(prototypes=given['prototypes'])),
    )
    params = objective.project(jax.tree.map(jnp.asarray, params))  # as the original before its first pass
    assert jax.tree.structure(params) == jax.tree.structure(state.params), 'the mapped names are not the parameters'
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), params, state.params)
    stats = dict(state.aux['stats']['student'])
    if 'stats' in given['projector']:
        stats['heads'] = dict(projector=given['projector']['stats'])
    if 'stats' in towers['image']:
        stats['towers'] = dict(image=towers['image']['stats'])
    stats = jax.tree.map(jnp.asarray, stats)
    assert jax.tree.structure(stats) == jax.tree.structure(state.aux['stats']['student'])
    return objective, built, state._replace(params=params, aux={**state.aux, 'stats': {'student': stats}})


def views_of(d: Any, hp: dict[str, Any], step: int) -> dict[str, View]:
    """The crops of one step, image-major."""
    views = {}
    for name, which in crops_of(d, hp).items():
        crops = [np.asarray(d[f'in/crop{i}'][step]) for i in which]
        if crops[0].ndim == 4:
            x = np.stack([np.moveaxis(x, 1, -1) for x in crops], axis=1)[:, :, None]  # [B,V,1,h,w,C]
        else:
            x = np.stack(crops, axis=1)[:, :, None, None, None]
        rows = len(x)
        views[name] = View(jnp.asarray(x), jnp.arange(rows, dtype=jnp.uint32), jnp.ones(x.shape[:2], bool), None, {})
    return views


def in_our_order(x: np.ndarray, d: Any, hp: dict[str, Any]) -> np.ndarray:
    """Crop-major rows [S*B,…] of the original -> [B,S,…] with our order of crops."""
    order = [i for which in crops_of(d, hp).values() for i in which]
    return np.moveaxis(x.reshape(len(order), -1, *x.shape[1:])[order], 0, 1)


def check_swav(path: Path) -> None:
    """head_* and lockstep_*: the steps of the original, with their gradients and the weights at the end."""
    d = np.load(path)
    hp = settings(d)
    bounds = RESNET if 'size_crops' in hp else GIVEN
    objective, built, state = started(d, hp)
    step = make_step(objective, built, None)
    term = objective.terms['swav']
    steps = len(d['loss/per_step'])
    features = [f.name for f in term.of]

    def inspect(state, views):
        """Loss, gradients, and what the term computes on the way."""
        loss, metrics, _, grads = gradients(objective, state, (views, {}), lambda rows: rows, state.key, 1)
        computed, _ = objective.features(state.params, state.aux, views, {}, state.key, state.step)
        z = numerics.unit(jnp.concatenate([computed.features[name] for name in features], axis=1))
        own, logits = (
            state.params['terms']['swav']['prototypes'],
            term.scores(state.params['terms']['swav']['prototypes'], state.step),
        )
        t = term.assigned
        potential = term.potentials(state.aux['terms']['swav'], logits, z[:, :t], jnp.ones(z[:, :t].shape[:2], bool))
        assign = jax.nn.softmax(logits(z[:, :t]) / term.epsilon + potential)
        return loss, metrics, grads, z, logits(z), assign, own

    inspect, advance = jax.jit(inspect), jax.jit(step.step_on_views)
    for i in range(steps):
        views = views_of(d, hp, i)
        loss, metrics, grads, z, scores, assign, own = inspect(state, views)
        close(own.T, d['mid/prototypes_used'][i], bounds['end'] if i else 1e-6, f'prototypes of step {i}')
        close(z, in_our_order(d['out/embedding'][i], d, hp), bounds['forward'], f'embeddings of step {i}')
        close(scores, in_our_order(d['out/scores'][i], d, hp), bounds['forward'], f'scores of step {i}')
        close(assign, np.moveaxis(d['out/assign'][i], 0, 1), bounds['forward'], f'assignments of step {i}')
        close(loss, d['loss/per_step'][i], bounds['loss'], f'loss of step {i}')
        if term.queue:
            used = d['out/rows_in_sinkhorn'][i] > len(z)
            full = np.asarray(state.aux['terms']['swav']['queue']['present']).all(1)
            np.testing.assert_array_equal(full, used)
        for start, when in (('g/', 0), ('g_last/', steps - 1)):
            if i == when and any(name.startswith(start) for name in d.files):
                check_gradients(grads, d, start, hp, bounds['gradient'])
        state, _ = advance(state, views, {})
    check_end(state, d, hp, bounds['end'])


def check_gradients(grads: Any, d: Any, start: str, hp: dict[str, Any], bound: float) -> None:
    given = tree(d, start)
    ours = [grads['terms']['swav']['prototypes'], grads['heads']['projector']]
    theirs = [given['prototypes'], given['projector']]
    if 'in_dim' not in hp:
        ours.append(grads['towers']['image'])
        theirs.append({k: v for k, v in wide(given['image']).items() if k != 'stats'})
    noise = set(map(str, hp.get('noise_gradient', ())))
    most = max(np.abs(x).max() for x in jax.tree.leaves(theirs))
    pairs = zip(jax.tree_util.tree_flatten_with_path(theirs)[0], jax.tree.leaves(ours), strict=True)
    for (place, expected), found in pairs:
        where = jax.tree_util.keystr(place)
        if "['fc1']['bias']" in where and 'projection_head.0.bias' in noise:
            continue
        allowed = bound * max(np.abs(expected).max(), 1e-3 * most)
        worst = np.abs(np.asarray(found) - expected).max()
        assert worst <= allowed, f'{start} of {where}: {worst:.2e}, allowed {allowed:.2e}'


def check_end(state: TrainState, d: Any, hp: dict[str, Any], bound: float) -> None:
    """Weights and statistics after the last step. The original normalises the prototypes at the next step."""
    given, noise = tree(d, 'end/'), set(map(str, hp.get('noise_gradient', ())))
    stats = state.aux['stats']['student']
    unit = given['prototypes'] / np.linalg.norm(given['prototypes'], axis=0)
    pairs = [('prototypes', state.params['terms']['swav']['prototypes'], unit)]
    expected = dict(given['projector'])
    if 'stats' in expected:
        pairs += same(stats['heads']['projector'], expected.pop('stats'), 'statistics of the head')
    pairs += same(state.params['heads']['projector'], expected, 'head')
    if given['image']:
        theirs = wide_stats(given['image'], stats['towers']['image'])
        pairs += same(stats['towers']['image'], theirs, 'statistics')
    for name, ours, theirs in pairs:
        if "head['fc1']['bias']" in name and 'projection_head.0.bias' in noise:
            continue
        worst = np.abs(np.asarray(ours) - theirs).max()
        assert worst <= bound, f'end of {name}: {worst:.2e}, allowed {bound:.0e}'
    if 'end_queue/queue' in d.files:
        close(state.aux['terms']['swav']['queue']['z'], d['end_queue/queue'], bound, 'queue')


def same(ours: Any, theirs: Any, name: str) -> list[tuple[str, Any, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(theirs)[0]
    return [(name + jax.tree_util.keystr(path), x, y) for (path, y), x in zip(flat, jax.tree.leaves(ours), strict=True)]


def wide_stats(state: dict[str, np.ndarray], ours: Any) -> Any:
    """The running statistics of the original as our tree. Channels of zeros take ours: they have no counterpart."""
    flat = export.flatten(jax.device_get(ours))
    found = {}
    for path, own in flat.items():
        block = path.removesuffix('/norm/mean').removesuffix('/norm/variance')
        name = {'stem': 'bn1'}.get(block) or block.replace('stage', 'layer').replace('/first/', '.0.').replace(
            'shortcut', 'downsample.1'
        ).replace('conv', 'bn')
        theirs = state[f'{name}.running_mean' if path.endswith('mean') else f'{name}.running_var']
        found[path] = np.concatenate([theirs, np.ravel(own)[len(theirs) :]]).reshape(own.shape)
    return export.unflatten(found)
