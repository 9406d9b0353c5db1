"""Checks of files that the original code of SparK made; each takes the path of one file.

The keys of the files: w/ weights before, g/ gradients of the loss, after/ running statistics after one pass, end/ all
after the last step, hp/ settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run
from reference_losses import close

from medjax.errors import UserError
from medjax.objectives.compose import Objective, compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import gradients, make_step
from medjax.types import Mask, TrainState, View
from medjax.views import make
from medjax.views.masks import MaskContext, from_bits, random
from medjax.weights import export
from medjax.weights.families import convnext, resnet
from medjax.weights.names import Table

STATISTICS, LOSS, GRADIENT, KINK, END = 2e-4, 5e-5, 2e-3, 1e-2, 1e-4
SETTINGS = {'mask_ratio', 'densify_norm', 'batch', 'layer_scale', 'net', 'channels', 'input_size', 'width'}
LOCKSTEP_SETTINGS = {
    'lr', 'wd', 'wd_end', 'beta1', 'beta2', 'eps', 'first_it', 'warm_it', 'max_it', 'max_grad_norm', 'decayed',
}  # fmt: skip
KINDS = ('w', 'g', 'after', 'end', 'in', 'mask', 'mid', 'out', 'loss', 'schedule', 'hp')
PIXELS = 'student/decoder/crop~random/pixels'
NETS: dict[str, tuple[dict[str, Any], Table]] = {
    'basic': (dict(tower='resnet', variant='18'), resnet.torchvision()),
    'bottleneck': (dict(tower='resnet', variant='50'), resnet.torchvision()),
    'convnext': (dict(tower='convnext'), convnext.original()),
}


def settings(d: Any, known: set[str]) -> dict[str, Any]:
    """All of hp/*; a setting that is not known here fails."""
    given = {name.removeprefix('hp/'): d[name] for name in d.files if name.startswith('hp/')}
    assert given.keys() - {'noise_gradient'} == known, f'settings {sorted(given.keys() ^ known)}'
    strange = [name for name in d.files if name.split('/')[0] not in KINDS]
    assert not strange, f'arrays of no known kind: {strange}'
    return given


def recipe(hp: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a file. Its images come as they are, so mean and deviation have no effect."""
    norm = dict(bn='batch', ln='layer')[str(hp['densify_norm'])]
    widths = hp['channels'].tolist()
    return dict(
        total_steps=20,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='images', size=int(hp['input_size']))),
        masks={'crop~random': dict(mask='random', mode='zero', share=float(hp['mask_ratio']))},
        towers=dict(
            image=dict(NETS[str(hp['net'])][0], widths=widths, depths=[1] * len(widths)),
            decoder=dict(tower='unet_decoder', reads=['image'], width=int(hp['width']), norm=norm),
        ),
        heads={},
        teachers={},
        terms=[dict(term='pixels', of=PIXELS)],
    )


def towers(d: Any, start: str, hp: dict[str, Any]) -> dict[str, Any]:
    """The parameters and statistics of both towers from the arrays whose names begin with `start`."""
    return towers_of({name[len(start) :]: np.asarray(d[name]) for name in d.files if name.startswith(start)}, hp)


def towers_of(arrays: dict[str, np.ndarray], hp: dict[str, Any]) -> dict[str, Any]:
    encoder = {name.removeprefix(ENCODER): x for name, x in arrays.items() if name.startswith(ENCODER)}
    image: dict[str, np.ndarray] = {}
    for line in NETS[str(hp['net'])][1]:
        image |= line.read(encoder, None) if line.there(encoder) else {}  # type: ignore[arg-type]
    if 'stem/norm/scale' in image and 'norm/scale' not in image and str(hp['net']) == 'convnext':
        last = int(hp['channels'][-1])  # the final norm is in no file, because the decoder does not read it
        image |= {'norm/scale': np.zeros(last, np.float32), 'norm/bias': np.zeros(last, np.float32)}
    decoder = dict(decoder_array(name, x) for name, x in arrays.items() if not name.startswith(ENCODER))
    return dict(image=export.unflatten(image), decoder=export.unflatten(decoder))


ENCODER = 'sparse_encoder.sp_cnn.'
MOMENTS = dict(running_mean='mean', running_var='variance')
LEAVES = dict(weight='scale', bias='bias') | MOMENTS


def decoder_array(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """The path of ours for one array of the decoder or of densify, and its values."""
    *module, leaf = name.split('.')
    if module == ['mask_tokens']:
        return f'filled{int(leaf) + 1}/mask_token', x.reshape(-1)
    if module == ['dense_decoder', 'proj']:
        where = 'pixels'
    elif module[0] == 'densify_projs':
        where = f'filled{int(module[1]) + 1}/projection'
    elif module[0] == 'densify_norms':
        where = f'filled{int(module[1]) + 1}/norm'
    else:
        _, _, number, *inner = module
        parts = {
            'up_sample': 'double',
            'conv.0': 'conv1',
            'conv.1': 'conv1/norm',
            'conv.3': 'conv2',
            'conv.4': 'conv2/norm',
        }
        where = f'doubled{int(number) + 1}/{parts[".".join(inner)]}'
    if x.ndim == 4:  # the transposed convolution turns its kernel around
        return f'{where}/kernel', (
            x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1) if where.endswith('double') else x.transpose(2, 3, 1, 0)
        )
    leaf = LEAVES[leaf] if where.endswith('norm') else leaf
    return (f'stats/{where}/{leaf}' if leaf in MOMENTS.values() else f'{where}/{leaf}'), x


def parts(trees: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics of towers apart."""
    params = {tower: {k: v for k, v in tree.items() if k != 'stats'} for tower, tree in trees.items()}
    return params, {tower: tree['stats'] for tower, tree in trees.items() if 'stats' in tree}


def views_of(objective: Objective, cfg: dict[str, Any], images: np.ndarray, noise: np.ndarray) -> Any:
    """The view and the mask of a file."""
    make_views = make.build(objective.views, cfg['masks'], cfg['image'], objective.grids(), 1)
    generator = make_views.generators['crop~random']
    drawn = run(jax.vmap(lambda order: generator.of_order(order[None])), np.argsort(noise, axis=1, kind='stable'))
    mask: Mask = run(lambda bits: from_bits(bits, len(images), generator.most), drawn.bits)
    mask = Mask(mask.bits, mask.index, mask.weight, mode='zero')
    x, rows = np.moveaxis(images, 1, -1)[:, None, None], np.arange(len(images), dtype=np.uint32)
    view = View(jnp.asarray(x), jnp.asarray(rows), jnp.ones((len(images), 1), bool), None, {})
    return {'crop': view}, {'crop~random': mask}


def started(d: Any, hp: dict[str, Any], **optim: Any) -> tuple[Objective, Any, TrainState]:
    objective = compose(recipe(hp))
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    built = call(optimizer, optim, 'optim', params=shapes, total_steps=20)
    state = jax.jit(lambda key: create(objective, built, key))(jax.random.key(0))
    found, stats = parts(jax.tree.map(jnp.asarray, towers(d, 'w/', hp)))
    params = {**state.params, 'towers': found}
    ours = state.aux['stats']['student'].get('towers', {})
    for mapped, own in ((params, state.params), (stats, ours)):
        assert jax.tree.structure(mapped) == jax.tree.structure(own), 'the mapped names are not the parameters'
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), mapped, own)
    aux = {**state.aux, 'stats': {'student': {'towers': stats}}}
    return objective, built, state._replace(params=params, aux=aux)


def worst(ours: Any, theirs: Any, relative: bool) -> dict[str, float]:
    """The largest error of each array: relative to its largest value (a thousandth of that of all at least), or not."""
    most = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    found = {}
    flat = jax.tree_util.tree_flatten_with_path(theirs)[0]
    for (path, reference), value in zip(flat, jax.tree.leaves(ours), strict=True):
        scale = max(np.abs(reference).max(), 1e-3 * most) if relative else 1.0
        found[jax.tree_util.keystr(path)] = float(np.abs(np.asarray(value) - reference).max() / scale)
    return found


def check_spark(path: Path) -> None:
    """resnet_* and convnext_*: the loss, all gradients, and the statistics of all batch norms.

    Together they leave no room for other outputs inside, and a second program of the towers costs as much to compile.
    """
    d = np.load(path)
    hp = settings(d, SETTINGS)
    objective, _, state = started(d, hp, lr=0.0)
    views, masks = views_of(objective, recipe(hp), d['in/images'], d['in/noise'])
    bits = np.asarray(masks['crop~random'].bits)[:, 0]
    np.testing.assert_array_equal(~bits, d['mask/active'].reshape(bits.shape))
    assert int((~bits).sum(1).max()) == int(d['mask/len_keep'])

    program = jax.jit(lambda state, inputs: gradients(objective, state, inputs, lambda x: x, jax.random.key(0), 1))
    loss, _, (_, stats), grads = program(state, (views, masks))
    close(loss, d['loss/total'], LOSS, 'loss')
    check_gradients(grads['towers'], parts(towers(d, 'g/', hp))[0])
    after = parts(towers(d, 'after/', hp))[1]
    errors = worst(stats['towers'], after, relative=True)
    assert max(errors.values()) <= STATISTICS, errors


def check_gradients(ours: Any, theirs: Any) -> None:
    errors = worst(ours, theirs, relative=True)
    beyond = {name: error for name, error in errors.items() if error > GRADIENT}
    assert len(beyond) <= 3 and max(errors.values()) <= KINK, f'gradients: {beyond}'


def check_lockstep(path: Path) -> None:
    """lockstep_*: several steps of LAMB from the original's own start."""
    d = np.load(path)
    hp = settings(d, SETTINGS | LOCKSTEP_SETTINGS)
    rates, decays = schedules(hp, len(d['in/images']))
    close(rates, d['schedule/lr'], 1e-6, 'learning rate')
    close(decays, d['schedule/wd'], 1e-6, 'weight decay')
    objective, built, state = started(
        d, hp, rule='lamb', lr=1.0, schedule=rates.tolist(), weight_decay=decays.tolist(), b1=float(hp['beta1']),
        b2=float(hp['beta2']), eps=float(hp['eps']), clip=float(hp['max_grad_norm']),
        no_decay=['*/bias', '*/scale', '*/gamma?', '*/mask_token'],
    )  # fmt: skip
    check_decayed(built, d, hp)
    step, cfg = jax.jit(make_step(objective, built, None).step_on_views), recipe(hp)
    for i, (images, noise) in enumerate(zip(d['in/images'], d['in/noise'], strict=True)):
        state, metrics = step(state, *views_of(objective, cfg, images, noise))
        close(metrics['loss'], d['loss/per_step'][i], LOSS, f'loss of step {i}')
        close(metrics['grad_norm/all'], d['loss/grad_norm'][i], GRADIENT, f'gradient norm of step {i}')
    params, stats = parts(towers(d, 'end/', hp))
    ours = dict(params=state.params['towers'], stats=state.aux['stats']['student']['towers'])
    errors = worst(ours, dict(params=params, stats=stats), relative=False)
    assert max(errors.values()) <= END, {name: error for name, error in errors.items() if error > END}


def schedules(hp: dict[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The learning rate and the weight decay by step."""
    i = int(hp['first_it']) + np.arange(steps)
    warm, last = int(hp['warm_it']), int(hp['max_it']) - 1
    cosine = 0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * (i - warm) / (last - warm)))
    rates = float(hp['lr']) * np.where(i < warm, 0.005 + 0.995 * i / warm, cosine)
    first, end = float(hp['wd']), float(hp['wd_end'])
    return rates, end + (first - end) * 0.5 * (1 + np.cos(np.pi * i / last))


def check_decayed(built: Any, d: Any, hp: dict[str, Any]) -> None:
    """Weight decay acts on the same arrays as in the original."""
    names = [name.removeprefix('w/') for name in d.files if name.startswith('w/')]
    marks = {name: np.full(d[f'w/{name}'].shape, name in hp['decayed'].tolist(), np.float32) for name in names}
    theirs = parts(towers_of(marks, hp))[0]
    groups = built.groups['towers']
    jax.tree.map(
        lambda mark, group: np.testing.assert_array_equal(mark, np.full_like(mark, group.wd_scale)), theirs, groups
    )


def check_len_keep(path: Path) -> None:
    """len_keep: how many cells stay, by the side of the grid and the ratio; what keeps none or all is refused."""
    d = np.load(path)
    for grid, ratio, stay in zip(d['table/grid'], d['table/ratio'], d['table/len_keep'], strict=True):
        context = MaskContext('masks.a', 'image', 1, 1, (int(grid), int(grid)))
        options = dict(share=round(float(ratio), 6), mode='zero')
        if 0 < stay < grid**2:
            generator: Any = call(random.build, options, 'masks.a', context=context)
            assert generator.kept == stay, (grid, ratio)
        else:
            with pytest.raises(UserError, match='would stay'):
                call(random.build, options, 'masks.a', context=context)
