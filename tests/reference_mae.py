"""Checks of files that the original code of MAE and Medical MAE made; each takes the path of one file.

The keys of the files: w/ weights before, g/ gradients of the loss, end/ weights after the last step, hp/ settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from programs import run
from reference_losses import close

from medjax.models.towers.vit import resize_grid, sincos_positions
from medjax.objectives.compose import Objective, compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import gradients, make_step
from medjax.types import Mask, TrainState, View
from medjax.views import make
from medjax.views.masks import from_bits
from medjax.weights import export, load
from medjax.weights.families import vit

FORWARD, LOSS, GRADIENT, END = 2e-5, 1e-5, 1e-4, 2e-5
SETTINGS = {
    'embed_dim', 'depth', 'num_heads', 'decoder_embed_dim', 'decoder_depth', 'decoder_num_heads', 'mlp_ratio', 'batch',
    'img_size', 'patch_size', 'mask_ratio', 'norm_pix_loss',
}  # fmt: skip
LOCKSTEP_SETTINGS = {
    'lr', 'min_lr', 'weight_decay', 'warmup_epochs', 'epochs', 'steps_per_epoch', 'start_epoch', 'decayed', 'beta1',
    'beta2', 'eps',
}  # fmt: skip
KINDS = ('w', 'g', 'end', 'in', 'mask', 'mid', 'out', 'target', 'loss', 'schedule', 'hp')
PIXELS = 'student/decoder/crop~random/pixels'


def settings(d: Any, known: set[str]) -> dict[str, Any]:
    """All of hp/*; a setting that is not known here fails."""
    given = {name.removeprefix('hp/'): d[name] for name in d.files if name.startswith('hp/')}
    assert given.keys() - {'noise_gradient'} == known, f'settings {sorted(given.keys() ^ known)}'
    strange = [name for name in d.files if name.split('/')[0] not in KINDS]
    assert not strange, f'arrays of no known kind: {strange}'
    return given


def recipe(hp: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a file. Its images come as they are, so mean and deviation have no effect."""
    ratio = float(hp['mlp_ratio'])
    return dict(
        total_steps=20,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='images', size=int(hp['img_size']))),
        masks={'crop~random': dict(mask='random', share=float(hp['mask_ratio']))},
        towers=dict(
            image=dict(
                tower='vit', variant=f'S/{int(hp["patch_size"])}', family='mae',
                width=int(hp['embed_dim']), depth=int(hp['depth']), heads=int(hp['num_heads']), mlp_ratio=ratio,
                positions='sincos', start='xavier',
            ),
            decoder=dict(
                tower='decoder', reads=['image'], width=int(hp['decoder_embed_dim']), depth=int(hp['decoder_depth']),
                heads=int(hp['decoder_num_heads']), mlp_ratio=ratio,
            ),
        ),
        heads={},
        teachers={},
        terms=[dict(term='pixels', of=PIXELS, normalise=bool(hp['norm_pix_loss']))],
    )  # fmt: skip


def towers(d: Any, start: str, hp: dict[str, Any]) -> dict[str, Any]:
    """The parameters of both towers from the arrays whose names begin with `start`."""
    return towers_of({name[len(start) :]: np.asarray(d[name]) for name in d.files if name.startswith(start)}, hp)


def towers_of(state: dict[str, np.ndarray], hp: dict[str, Any]) -> dict[str, Any]:
    weights = load.of_state(state)
    image = weights.flat('towers/image', int(hp['num_heads']))
    image = {path: array for path, array in image.items() if not path.startswith('pos_')}  # ours are fixed
    decoder = weights.flat('towers/decoder', int(hp['decoder_num_heads']))
    return {name: export.unflatten(flat) for name, flat in dict(image=image, decoder=decoder).items()}


def views_of(objective: Objective, cfg: dict[str, Any], images: np.ndarray, noise: np.ndarray, order: str) -> Any:
    """The view and the mask of a file. `order` of the kept patches: 'raster', or 'shuffled' as in the original."""
    x = np.moveaxis(images, 1, -1)[:, None, None]
    rows = len(x)
    make_views = make.build(objective.views, cfg['masks'], cfg['image'], objective.grids(), 1)
    generator = make_views.generators['crop~random']
    ids = np.argsort(noise, axis=1, kind='stable')
    drawn = run(jax.vmap(lambda order: generator.of_order(order[None])), ids)
    kept = drawn.kept if order == 'raster' else jnp.asarray(ids[:, None, None, : generator.kept])
    mask: Mask = run(lambda bits: from_bits(bits, rows, generator.most), drawn.bits)
    mask = Mask(mask.bits, mask.index, mask.weight, kept, mode='drop')
    view = View(jnp.asarray(x), jnp.arange(rows, dtype=jnp.uint32), jnp.ones((rows, 1), bool), None, {})
    return {'crop': view}, {'crop~random': mask}


def started(d: Any, hp: dict[str, Any], **optim: Any) -> tuple[Objective, Any, TrainState]:
    objective = compose(recipe(hp))
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    built = call(optimizer, optim, 'optim', params=shapes, total_steps=20)
    state = jax.jit(lambda key: create(objective, built, key))(jax.random.key(0))
    params = {**state.params, 'towers': jax.tree.map(jnp.asarray, towers(d, 'w/', hp))}
    assert jax.tree.structure(params) == jax.tree.structure(state.params), 'the mapped names are not the parameters'
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), params, state.params)
    return objective, built, state._replace(params=params)


def close_trees(ours: Any, theirs: Any, relative: float, what: str) -> None:
    """Each array within `relative` of its largest value, or of a thousandth of the largest of all arrays."""
    most = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    flat = jax.tree_util.tree_flatten_with_path(theirs)[0]
    for (path, reference), value in zip(flat, jax.tree.leaves(ours), strict=True):
        bound = relative * max(np.abs(reference).max(), 1e-3 * most)
        worst = np.abs(np.asarray(value) - reference).max()
        assert worst <= bound, f'{what} of {jax.tree_util.keystr(path)}: {worst:.2e}, allowed {bound:.2e}'


def without_key_bias(tree: Any) -> Any:
    """The biases of keys have no gradient in theory, and Adam makes steps of their rounding: they are set to 0."""

    def one(path: Any, leaf: Any) -> np.ndarray:
        leaf = np.array(leaf)
        if jax.tree_util.keystr(path).endswith("['qkv']['bias']"):
            leaf[:, 1] = 0
        return leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def noise_of(d: Any, hp: dict[str, Any]) -> Any:
    """Trees like the towers: 0 for the weights in hp/noise_gradient, whose gradient is rounding alone, else 1."""
    noise = set(map(str, hp.get('noise_gradient', ())))
    weights = {name.removeprefix('w/'): d[name].shape for name in d.files if name.startswith('w/')}
    return towers_of({name: np.full(shape, name not in noise, np.float32) for name, shape in weights.items()}, hp)


def check_mae(path: Path) -> None:
    """mae_* and medical_*: the forward pass, the loss and all gradients."""
    d = np.load(path)
    hp = settings(d, SETTINGS)
    objective, _, state = started(d, hp, lr=0.0)
    cfg = recipe(hp)
    for order in ('raster', 'shuffled'):
        views, masks = views_of(objective, cfg, d['in/images'], d['in/noise'], order)
        kept = np.asarray(masks['crop~random'].kept)[:, 0, 0]
        assert kept.shape[1] == int(d['mask/len_keep'])
        np.testing.assert_array_equal(np.sort(kept), np.sort(d['mask/ids_keep']))
        np.testing.assert_array_equal(masks['crop~random'].bits[:, 0], d['mask/removed'] == 1)

        def forward_and_back(state, views, masks):
            outputs = forward(objective, state, views, masks)
            return outputs, gradients(objective, state, (views, masks), lambda rows: rows, state.key, 1)

        outputs, (loss, metrics, _, grads) = run(forward_and_back, state, views, masks)
        latent = d['out/latent']
        if order == 'raster':
            latent = np.take_along_axis(latent[:, 1:], np.argsort(d['mask/ids_keep'])[..., None], axis=1)
            close(outputs['image']['patches'][:, 0], latent, FORWARD, 'latent')
        else:
            close(outputs['image']['patches'][:, 0], latent[:, 1:], FORWARD, 'latent')
        close(outputs['image']['cls'][:, 0], d['out/latent'][:, 0], FORWARD, 'latent CLS')
        close(outputs['decoder']['patches'][:, 0], d['mid/decoder_norm'][:, 1:], FORWARD, 'decoder')
        close(outputs['decoder']['pixels'][:, 0], d['out/pred'], FORWARD, 'predictions')
        close(loss, d['loss/total'], LOSS, 'loss')
        removed = d['mask/removed'] == 1
        close(metrics['term/pixels/loss'], d['loss/per_patch'][removed].mean(), LOSS, 'loss of the masked patches')
        noise = noise_of(d, hp)
        ours, theirs = (jax.tree.map(np.multiply, tree, noise) for tree in (grads['towers'], towers(d, 'g/', hp)))
        close_trees(ours, theirs, GRADIENT, f'gradient ({order})')


def forward(objective: Objective, state: TrainState, views: Any, masks: Any) -> dict[str, Any]:
    """The outputs of both towers by name."""
    from medjax.models import passes

    def apply(one: passes.Pass, inputs: Any) -> Any:
        return objective.towers[one.tower].apply(state.params['towers'][one.tower], *inputs)

    outputs = passes.run(objective.passes.values(), apply, views, masks)
    return {one.tower: found for one, found in outputs.items()}


def check_lockstep(path: Path) -> None:
    """lockstep_*: several steps of AdamW from the original's own start."""
    d = np.load(path)
    hp = settings(d, SETTINGS | LOCKSTEP_SETTINGS)
    steps = len(d['in/images'])
    close(schedule(hp, steps), d['schedule/lr'], 1e-6, 'learning rate')
    objective, built, state = started(
        d, hp, lr=1.0, schedule=d['schedule/lr'].tolist(), weight_decay=float(hp['weight_decay']),
        b1=float(hp['beta1']), b2=float(hp['beta2']), eps=float(hp['eps']),
    )  # fmt: skip
    check_decayed(built, hp)
    step, cfg = jax.jit(make_step(objective, built, None).step_on_views), recipe(hp)
    for i in range(steps):
        state, metrics = step(state, *views_of(objective, cfg, d['in/images'][i], d['in/noise'][i], 'raster'))
        close(metrics['loss'], d['loss/per_step'][i], LOSS, f'loss of step {i}')
        close(metrics['grad_norm/all'], d['loss/grad_norm'][i], GRADIENT, f'gradient norm of step {i}')
    noise = noise_of(d, hp)
    ours, theirs = (
        jax.tree.map(np.multiply, without_key_bias(tree), noise)
        for tree in (state.params['towers'], towers(d, 'end/', hp))
    )
    flat = jax.tree_util.tree_flatten_with_path(theirs)[0]
    for (where, reference), value in zip(flat, jax.tree.leaves(ours), strict=True):
        worst = np.abs(value - reference).max()
        assert worst <= END, f'end of {jax.tree_util.keystr(where)}: {worst:.2e}'


def schedule(hp: dict[str, Any], steps: int) -> np.ndarray:
    """The learning rate by step: linear warm-up, then half a cosine, in fractions of an epoch."""
    epochs = int(hp['start_epoch']) + np.arange(steps) / int(hp['steps_per_epoch'])
    warm, total, low = float(hp['warmup_epochs']), float(hp['epochs']), float(hp['min_lr'])
    cosine = low + (float(hp['lr']) - low) * 0.5 * (1 + np.cos(np.pi * (epochs - warm) / (total - warm)))
    return np.where(epochs < warm, float(hp['lr']) * epochs / warm, cosine)


def check_decayed(built: Any, hp: dict[str, Any]) -> None:
    """Weight decay acts on the same arrays as in the original."""
    marked = {name: np.ones(1, np.float32) for name in hp['decayed'].tolist()}
    leaves = jax.tree_util.tree_flatten_with_path(built.groups, is_leaf=lambda x: hasattr(x, 'wd_scale'))[0]
    decayed = {'/'.join(str(k.key) for k in path) for path, group in leaves if np.any(group.wd_scale)}
    tables = dict(image=vit.TIMM, decoder=vit.MAE_DECODER)
    for name in marked:
        tower = 'decoder' if name.startswith('decoder_') or name == 'mask_token' else 'image'
        plain = re.sub(r'\.\d+\.', '.{}.', name)
        (inner,) = [line.path for line in tables[tower] if hasattr(line, 'path') and plain in line.names]
        assert f'towers/{tower}/{inner}' in decayed, name
    outside = {path for path in decayed if '/blocks/' not in path} - {'towers/image/mask_token'}
    assert len(outside) == len([name for name in marked if 'blocks.' not in name])


def check_tables(path: Path) -> None:
    """sincos_tables: the fixed table of positions, and the resizing of a learned one."""
    d = np.load(path)
    for name in d.files:
        kind, _, rest = name.partition('/')
        if kind == 'table':
            width, side = (int(word.lstrip('dimgr')) for word in rest.split('_'))
            ours = np.concatenate([np.zeros((1, width), np.float32), sincos_positions((side, side), width)])
            theirs = d[name]
            close(ours if len(theirs) == len(ours) else ours[::9], theirs, FORWARD, name)
        elif rest.startswith('to'):
            source = d['interp/src7'][0]
            side, target = round((len(source) - 1) ** 0.5), int(rest[2:])
            grid = source[1:].reshape(side, side, -1)
            ours = np.asarray(resize_grid(grid, (target, target), antialias=False, offset=0.0)).reshape(target**2, -1)
            close(np.concatenate([source[:1], ours]), d[name][0], FORWARD, name)
        else:
            assert name == 'interp/src7', f'{name} is of no known kind'
