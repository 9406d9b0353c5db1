"""Checks of files that the original code of I-JEPA made; each takes the path of one file.

The keys of the files are those of tests/reference_mae.py. Each file is run twice: with the room that it needs, and with
more room, which is padding.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from mask_statistics import compare
from programs import run
from reference_losses import close
from reference_mae import END, FORWARD, GRADIENT, LOSS, close_trees, settings, without_key_bias

from medjax.models import build as models
from medjax.models.layers import LayerNorm
from medjax.models.towers import predictor as predictors
from medjax.models.towers.vit import Seen, embed, sincos_positions
from medjax.objectives.compose import Objective, compose
from medjax.objectives.terms.regress import Regress
from medjax.objectives.trees import at_mask
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import gradients, make_step
from medjax.types import Input, Mask, TrainState, View
from medjax.views.masks import MaskContext, multiblock, positions
from medjax.weights import export, load
from medjax.weights.families import vit

MASKS = {
    'enc_mask_scale', 'pred_mask_scale', 'aspect_ratio', 'nenc', 'npred', 'min_keep', 'allow_overlap', 'img_size',
    'patch_size', 'batch',
}  # fmt: skip
SETTINGS = MASKS | {'embed_dim', 'depth', 'num_heads', 'pred_depth', 'pred_emb_dim'}
LOCKSTEP_SETTINGS = SETTINGS | {
    'ipe', 'num_epochs', 'warmup', 'start_lr', 'lr', 'final_lr', 'wd', 'final_wd', 'ipe_scale', 'ema', 'decayed',
    'beta1', 'beta2', 'eps',
}  # fmt: skip
STUDENT, TEACHER = 'student/predictor/crop~block/patches@block', 'teacher/image/crop/patches@block'


def mask_options(hp: dict[str, Any]) -> dict[str, Any]:
    return dict(
        targets=int(hp['npred']), contexts=int(hp['nenc']), target_area=hp['pred_mask_scale'].tolist(),
        target_aspect=hp['aspect_ratio'].tolist(), context_area=hp['enc_mask_scale'].tolist(),
        min_keep=int(hp['min_keep']), overlap=bool(hp['allow_overlap']),
    )  # fmt: skip


def recipe(hp: dict[str, Any], momentum: Any = 0.9) -> dict[str, Any]:
    """The recipe of a file. Its images come as they are, so mean and deviation have no effect."""
    heads = int(hp['num_heads'])
    return dict(
        total_steps=20,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='images', size=int(hp['img_size']))),
        masks={'crop~block': dict(mask='multiblock', **mask_options(hp))},
        towers=dict(
            image=dict(
                tower='vit', variant=f'S/{int(hp["patch_size"])}', family='ijepa', width=int(hp['embed_dim']),
                depth=int(hp['depth']), heads=heads,
            ),
            predictor=dict(
                tower='predictor', reads=['image'], width=int(hp['pred_emb_dim']), depth=int(hp['pred_depth']),
                heads=heads,
            ),
        ),
        heads={},
        teachers=dict(teacher=dict(of=['towers/image'], rule='ema', momentum=momentum)),
        terms=[dict(term='regress', student=STUDENT, teacher=TEACHER, loss='smooth_l1')],
    )  # fmt: skip


def tower(d: Any, start: str, name: str, heads: int) -> dict[str, Any]:
    """The parameters of one tower from the arrays whose names begin with `start`. Fixed tables of positions go."""
    state = {key[len(start) :]: np.asarray(d[key]) for key in d.files if key.startswith(start)}
    if name == 'image' and 'pos_embed' not in state:  # gradients and ends have no fixed table
        state['pos_embed'] = sincos_positions((1, 1), state['norm.weight'].shape[0])[None]
    flat = load.of_state(state).flat(f'towers/{name}', heads)
    return export.unflatten({path: array for path, array in flat.items() if not path.startswith('pos_')})


def towers(d: Any, start: str, hp: dict[str, Any]) -> dict[str, Any]:
    heads = int(hp['num_heads'])
    return dict(
        image=tower(d, f'{start}encoder.', 'image', heads), predictor=tower(d, f'{start}predictor.', 'predictor', heads)
    )


def started(d: Any, hp: dict[str, Any], cfg: dict[str, Any], **optim: Any) -> tuple[Objective, Any, TrainState]:
    objective = compose(cfg)
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    built = call(optimizer, optim, 'optim', params=shapes, total_steps=20)
    state = jax.jit(lambda key: create(objective, built, key))(jax.random.key(0))
    own = any(name.startswith('w/target_encoder.') for name in d.files)
    teacher = tower(d, 'w/target_encoder.' if own else 'w/encoder.', 'image', int(hp['num_heads']))
    params = {**state.params, 'towers': jax.tree.map(jnp.asarray, towers(d, 'w/', hp))}
    aux = {**state.aux, 'teachers': {'teacher': {'towers': {'image': jax.tree.map(jnp.asarray, teacher)}}}}
    for ours, given in ((state.params, params), (state.aux['teachers'], aux['teachers'])):
        assert jax.tree.structure(given) == jax.tree.structure(ours), 'the mapped names are not the parameters'
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), given, ours)
    return objective, built, state._replace(params=params, aux=aux)


def views_of(hp: dict[str, Any], images: np.ndarray, masks: dict[str, np.ndarray], longest: int, room: int) -> Any:
    """The view and the mask of a file, with room for `longest` patches of a context and `room` targets of a block."""
    b, n = len(images), (int(hp['img_size']) // int(hp['patch_size'])) ** 2
    kept = np.stack([masks[f'enc{i}'] for i in range(int(hp['nenc']))], axis=1)
    targets = np.stack([masks[f'pred{j}'] for j in range(int(hp['npred']))])
    bits = np.zeros((len(targets), b, n), bool)
    np.put_along_axis(bits, targets, True, axis=2)
    padding = longest - kept.shape[-1]
    by_set = [run(positions, one[:, None], most=room, crop_room=room) for one in bits]
    index, weight = (jnp.stack(x, 1) for x in zip(*by_set, strict=True))
    length = jnp.full((b, 1, kept.shape[1]), kept.shape[-1], jnp.int32) if padding else None
    kept = np.pad(kept, ((0, 0), (0, 0), (0, padding)), constant_values=n - 1)[:, None].astype(np.int32)
    mask = Mask(
        jnp.asarray(bits.any(0)[:, None]), index, weight, jnp.asarray(kept), length, mode='drop', crop_room=room
    )
    x = np.moveaxis(images, 1, -1)[:, None, None]
    view = View(jnp.asarray(x), jnp.arange(b, dtype=jnp.uint32), jnp.ones((b, 1), bool), None, {})
    return {'crop': view}, {'crop~block': mask}


def of_file(d: Any, start: str = 'mask/') -> dict[str, np.ndarray]:
    return {name[len(start) :]: d[name] for name in d.files if name.startswith(start)}


def check_ijepa(path: Path) -> None:
    """ijepa_*: the forward pass, the loss and all gradients."""
    d = np.load(path)
    hp = settings(d, SETTINGS)
    objective, _, state = started(d, hp, recipe(hp), lr=0.0)
    term = objective.terms['regress']
    assert isinstance(term, Regress)
    b, contexts, sets = int(hp['batch']), int(hp['nenc']), int(hp['npred'])

    def context_major(x: np.ndarray) -> np.ndarray:
        return np.asarray(x).reshape(b, contexts, *x.shape[1:]).swapaxes(0, 1).reshape(-1, *x.shape[1:])

    def target_major(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x).reshape(b, contexts, sets, *x.shape[1:])
        return np.moveaxis(x, 0, 2).swapaxes(0, 1).reshape(-1, *x.shape[3:])

    for padding in (0, 5):
        ke, kp = d['mask/enc0'].shape[1], d['mask/pred0'].shape[1]
        views, masks = views_of(hp, d['in/images'], of_file(d), ke + padding, kp + padding)

        def forward_and_back(state, views, masks):
            loss, _, _, grads = gradients(objective, state, (views, masks), lambda rows: rows, state.key, 1)
            return forward(objective, state, views, masks), loss, grads

        mid, loss, grads = run(forward_and_back, state, views, masks)
        close(context_major(mid['encoder_in'])[:, :ke], d['mid/encoder_in'], FORWARD, 'input of the encoder')
        context = mid['context'].reshape(b * contexts, *mid['context'].shape[2:])
        close(context_major(context)[:, :ke], d['out/context'], FORWARD, 'context')
        # without padding the sequences are those of the original; with it, padding stands behind
        close(target_major(mid['sequences'])[:, : ke + kp], d['mid/predictor_in'], FORWARD, 'input of the predictor')
        close(target_major(mid['norm'])[:, :kp], d['mid/predictor_norm'][:, ke:], FORWARD, 'norm of the predictor')
        predicted = target_major(mid['predicted'].reshape(-1, *mid['predicted'].shape[3:]))[:, :kp]
        close(predicted, d['out/pred'], FORWARD, 'predictions')
        close(mid['raw'][:, 0], d['target/raw'], FORWARD, 'features of the teacher')
        normed = run(term.target, mid['raw'])
        close(normed[:, 0], d['target/normed'], FORWARD, 'targets')
        cut = run(at_mask, normed, masks['crop~block']).reshape(b, sets, -1, normed.shape[-1])
        cut = np.repeat(np.asarray(cut), contexts, axis=0).reshape(-1, *cut.shape[2:])
        cut = target_major(cut)[:, :kp]
        close(cut, d['target/cut'], FORWARD, 'targets of the mask')
        distance = np.abs(predicted - cut)
        per_token = np.where(distance < 1, distance**2 / 2, distance - 0.5).mean(-1)
        close(per_token, d['loss/per_token'], LOSS, 'loss of each token')
        close(per_token.mean(-1), d['loss/per_row'], LOSS, 'loss of each row')
        close(loss, d['loss/total'], LOSS, 'loss')
        close((distance**2).mean(), d['loss/mse_of_same'], LOSS, 'loss of squares')
        theirs = towers(d, 'g/', hp)
        theirs['image']['mask_token'] = np.zeros_like(theirs['image']['mask_token'])
        close_trees(grads['towers'], theirs, GRADIENT, f'gradient (padding {padding})')


def forward(objective: Objective, state: TrainState, views: Any, masks: Any) -> dict[str, Any]:
    """What stands between images and predictions."""
    params, mask, image = state.params['towers'], masks['crop~block'], objective.towers['image']
    module = image.module
    kept = mask.kept.reshape(-1, *mask.kept.shape[2:])
    encoder_in = embed(params['image'], views['crop'].image[:, 0], Seen(kept=kept), False, 0.0, sincos=True)
    context = image.apply(params['image'], Input(views['crop'], mask))
    predictor = objective.towers['predictor']
    with recorded('sequences') as given:
        out = predictor.apply(params['predictor'], Input(views['crop'], mask, context))
    tokens = context['patches'].reshape(-1, *context['patches'].shape[2:])
    grid = (views['crop'].image.shape[2] // module.patch,) * 2
    _, kept_mid = predictor.module.apply(
        {'params': params['predictor']}, tokens, predictor.places_of(views['crop'], mask, 1), grid,
        capture_intermediates=lambda m, _: isinstance(m, LayerNorm), mutable='intermediates',
    )  # fmt: skip
    teacher = image.apply(state.aux['teachers']['teacher']['towers']['image'], Input(views['crop']))
    return dict(
        encoder_in=encoder_in, context=context['patches'], sequences=given[0][0], predicted=out['patches'],
        norm=kept_mid['intermediates']['norm']['__call__'][0], raw=teacher['patches'],
    )  # fmt: skip


@contextlib.contextmanager
def recorded(name: str) -> Iterator[list[Any]]:
    """What a function of the module of the predictor gives, call by call, while a program is traced."""
    results, original = [], getattr(predictors, name)

    def recording(*args: Any) -> Any:
        results.append(original(*args))
        return results[-1]

    with mock.patch.object(predictors, name, recording):
        yield results


def check_lockstep(path: Path) -> None:
    """lockstep_*: several steps of AdamW from the original's own start, and the teacher after them."""
    d = np.load(path)
    hp = settings(d, LOCKSTEP_SETTINGS)
    momentum = d['schedule/momentum'].tolist()
    for name, ours in schedules(hp, len(momentum)).items():
        close(ours, d[f'schedule/{name}'], 1e-6, name)
    cfg = recipe(hp, momentum=momentum)
    objective, built, state = started(
        d, hp, cfg, lr=1.0, schedule=d['schedule/lr'].tolist(), weight_decay=d['schedule/wd'].tolist(),
        b1=float(hp['beta1']), b2=float(hp['beta2']), eps=float(hp['eps']),
    )  # fmt: skip
    check_decayed(built, hp)
    step = jax.jit(make_step(objective, built, None).step_on_views)
    masks = [of_file(d, f'mask/step{i}/') for i in range(len(momentum))]
    longest, room = (
        max(one[kind].shape[1] for one in masks) for kind in ('enc0', 'pred0')
    )  # one program for all steps
    for i, (images, mask) in enumerate(zip(d['in/images'], masks, strict=True)):
        state, metrics = step(state, *views_of(hp, images, mask, longest + 1, room))
        close(metrics['loss'], d['loss/per_step'][i], LOSS, f'loss of step {i}')
        close(metrics['momentum'], momentum[i], 1e-6, 'momentum')
    ends = towers(d, 'end/', hp)
    target = tower(d, 'end/target_encoder.', 'image', int(hp['num_heads']))
    for ours, theirs in (
        (state.params['towers'], ends), (state.aux['teachers']['teacher']['towers'], dict(image=target)),
    ):  # fmt: skip
        flat = jax.tree_util.tree_flatten_with_path(without_key_bias(theirs))[0]
        for (where, reference), value in zip(flat, jax.tree.leaves(without_key_bias(ours)), strict=True):
            if 'mask_token' in jax.tree_util.keystr(where) and 'image' in jax.tree_util.keystr(where):
                continue  # the original has no such token
            worst = np.abs(value - reference).max()
            assert worst <= END, f'end of {jax.tree_util.keystr(where)}: {worst:.2e}'


def schedules(hp: dict[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Learning rate, weight decay and momentum by step, as the original sets them: it steps before the first update."""
    t, ipe = np.arange(1, steps + 1), int(hp['ipe'])
    warm, whole = int(hp['warmup']) * ipe, int(float(hp['ipe_scale']) * int(hp['num_epochs']) * ipe)
    lr, low = float(hp['lr']), float(hp['final_lr'])
    cosine = low + (lr - low) * 0.5 * (1 + np.cos(np.pi * (t - warm) / (whole - warm)))
    rising = float(hp['start_lr']) + t / warm * (lr - float(hp['start_lr']))
    wd, end = float(hp['wd']), float(hp['final_wd'])
    first, last = hp['ema']
    return dict(
        lr=np.where(t < warm, rising, np.maximum(low, cosine)),
        wd=end + (wd - end) * 0.5 * (1 + np.cos(np.pi * t / whole)),
        momentum=first + (t - 1) * (last - first) / (ipe * int(hp['num_epochs']) * float(hp['ipe_scale'])),
    )


def check_decayed(built: Any, hp: dict[str, Any]) -> None:
    """Weight decay acts on the same arrays as in the original."""
    leaves = jax.tree_util.tree_flatten_with_path(built.groups, is_leaf=lambda x: hasattr(x, 'wd_scale'))[0]
    ours = {'/'.join(str(k.key) for k in path) for path, group in leaves if np.any(group.wd_scale)}
    tables = dict(encoder=('image', vit.TIMM_IJEPA), predictor=('predictor', vit.CHEXWORLD_PREDICTOR))
    theirs = set()
    for name in hp['decayed'].tolist():
        network, _, plain = name.partition('.')
        tower, table = tables[network]
        names = {plain, re.sub(r'\.\d+\.', '.{}.', plain)}
        (inner,) = [x.path for x in table if hasattr(x, 'path') and names & set(x.names)]
        theirs.add(f'towers/{tower}/{inner}')
    assert ours - {'towers/image/mask_token'} == theirs


def check_mask_statistics(path: Path, batches: int = 600) -> None:
    """mask_stats_*: lengths, sizes of blocks, and how often each cell is context or target."""
    d = np.load(path)
    hp = {name.removeprefix('hp/'): d[name] for name in d.files if name.startswith('hp/')}
    assert hp.keys() == MASKS | {'calls'}
    batch, side, calls = int(hp['batch']), int(hp['img_size']) // int(hp['patch_size']), int(hp['calls'])
    context = MaskContext('masks.crop~block', 'image', 1, batch, (side, side))
    generator = multiblock.build(context, **mask_options(hp))
    targets, contexts = run(jax.vmap(generator.blocks), jax.random.split(jax.random.key(0), batches))
    targets, contexts = np.asarray(targets)[:, :, 0], np.asarray(contexts)  # [batches,crops,blocks,N]
    lengths = contexts.sum(-1)
    # the original cuts all contexts of a batch to the shortest: the first patches, row by row
    shortest = lengths.min((1, 2))
    cut = contexts & (contexts.cumsum(-1) <= shortest[:, None, None, None])
    near(lengths.mean(), d['stats/enc_length_uncut_mean'], lengths.mean((1, 2)), calls, 'length of a context')
    near(shortest.mean(), d['stats/enc_length'].mean(), shortest, calls, 'length of a context after cutting')
    near(shortest.std(), d['stats/enc_length'].std(), shortest, calls, 'spread of the length')
    for blocks, kind in ((targets, 'pred'), (cut, 'enc')):
        theirs = d[f'stats/{kind}_cell_frequency']
        ours = blocks.mean((0, 1, 2)).reshape(side, side)
        assert ours[-1].max() == theirs[-1].max() == 0 and ours[:, -1].max() == theirs[:, -1].max() == 0
        draws = blocks[..., 0].size
        assert compare(ours, theirs, draws, draws * calls / batches) < 5, f'cells of {kind}'
    sizes = [sizes_of(blocks.reshape(-1, side, side)).reshape(*blocks.shape[:3], 2) for blocks in (targets, cut)]
    assert (sizes[0] == sizes[0][:, :1, :1]).all(), 'one size of targets in a group'
    ours, theirs = (np.unique(x, axis=0, return_counts=True) for x in (sizes[0][:, 0, 0], d['stats/pred_block_hw']))
    np.testing.assert_array_equal(ours[0], theirs[0])
    compare_counts(ours[1] / batches, theirs[1] / calls, batches, calls)
    assert {tuple(x) for x in generator.context_sizes} >= {tuple(x) for x in d['stats/enc_block_hw'].tolist()}
    np.testing.assert_array_equal(np.unique(d['stats/pred_length']), np.unique(sizes[0].prod(-1)))


def sizes_of(blocks: np.ndarray) -> np.ndarray:
    """Height and width of blocks bool [n,h,w]."""
    return np.stack([blocks.any(2).sum(1), blocks.any(1).sum(1)], axis=1)


def near(ours: float, theirs: float, values: np.ndarray, draws: int, what: str) -> None:
    """Within five standard errors of the file's mean, from the spread of ours."""
    assert abs(ours - theirs) <= 5 * values.std() * (1 / draws + 1 / len(values)) ** 0.5, f'{what}: {ours}, {theirs}'


def compare_counts(ours: np.ndarray, theirs: np.ndarray, draws: int, reference_draws: int) -> None:
    assert compare(ours, theirs, draws, reference_draws) < 5, 'sizes of targets'


def check_start(path: Path) -> None:
    """start_spread: the deviation with which each matrix starts. The published start has no rescaling by depth."""
    d = np.load(path)
    ours = {}
    for name, depth in (('image', 6), ('predictor', 4)):
        section = dict(image=dict(tower='vit', variant='S/16', family='ijepa', width=384, depth=depth, heads=6))
        section |= dict(predictor=dict(tower='predictor', reads=['image'], width=384, depth=depth, heads=6))
        tree = export.flatten(
            jax.tree.map(np.asarray, models.towers(section, 3, 'float32')[name].init(jax.random.key(0)))
        )
        table = vit.TIMM_IJEPA if name == 'image' else vit.IJEPA_PREDICTOR
        for line in table:
            for written in getattr(line, 'names', ()):
                ours[('encoder.' if name == 'image' else 'predictor.') + written] = tree[line.path]
    for name in d.files:
        kind, _, weight = name.removeprefix('std/').partition('/')
        if kind != 'init_model':
            assert kind == 'constructor', f'{name} is of no known kind'
            continue
        layer = re.search(r'\.(\d+)\.', weight)
        array = ours[re.sub(r'\.\d+\.', '.{}.', weight)]
        found = (array if layer is None else array[int(layer[1])]).std()
        few = 0.1 if array.size < 1000 else 0.02
        assert abs(found / d[name] - 1) < few, f'{weight}: {found}, {d[name]}'
