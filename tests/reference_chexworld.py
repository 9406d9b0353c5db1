"""Checks of files that the original code of CheXWorld made; each takes the path of one file.

The keys of the files are those of tests/reference_mae.py. A row has two crops: the view `clean` shows them as they are,
and `altered` after the changes. The original knows where one crop lies relative to the other; here both have boxes, of
which the first is made up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from programs import run
from reference_ijepa import check_decayed, of_file, recorded, started, tower
from reference_losses import close
from reference_mae import FORWARD, GRADIENT, LOSS, close_trees, settings, without_key_bias

from medjax.models import relative
from medjax.models.towers.vit import sincos_positions
from medjax.objectives.compose import Objective
from medjax.objectives.schedules import schedule
from medjax.objectives.terms import TermContext, TermInputs, token_deviation
from medjax.objectives.terms.regress import Regress
from medjax.objectives.trees import at_mask
from medjax.training.step import gradients, make_step
from medjax.types import Input, Mask, TrainState, View
from medjax.views.masks import positions
from medjax.weights.families.vit import CHANGES

END = 5e-5
FOURIER_GRADIENT = 2e-4  # with the code of changes
SETTINGS = {
    'embed_dim', 'depth', 'num_heads', 'pred_depth', 'pred_emb_dim', 'batch', 'img_size', 'patch_size',
    'enc_mask_scale', 'pred_mask_scale', 'nenc', 'npred', 'min_keep', 'merge', 'ssl_type', 'cond_type', 'unify_embed',
    'loss_type', 'target_last_k', 'extra_loss_weight', 'extra_mean', 'reg_weight',
}  # fmt: skip
LOCKSTEP_SETTINGS = SETTINGS | {
    'lr', 'min_lr', 'wd', 'wd_end', 'ema', 'epochs', 'ipe', 'warmup', 'clip_grad', 'first_it', 'decayed', 'beta1',
    'beta2', 'eps',
}  # fmt: skip
POSITIONS = {'iwm_dual_easy': 'relative', 'iwm_dual': 'relative_scale'}
CONDITIONS = {'feat': 'replace', 'feat_res': 'add', 'token': 'token'}
OWN, OTHERS = (f'student/predictor/altered~block/{output}@block' for output in ('patches', 'others'))


def recipe(hp: dict[str, Any], momentum: Any = 0.9) -> dict[str, Any]:
    """The recipe of a file. Its images come as they are, so mean and deviation have no effect."""
    size, heads, last = int(hp['img_size']), int(hp['num_heads']), int(hp['target_last_k'])
    target = 'patches' if last == 1 else f'mean{last}/patches'
    regress = dict(
        term='regress', teacher=f'teacher/image/clean/{target}@block',
        loss={'l1': 'smooth_l1', 'l2': 'mse'}[str(hp['loss_type'])],
    )  # fmt: skip
    extra = float(hp['extra_loss_weight'])
    whole = 1 + extra if hp['extra_mean'] else 1.0
    return dict(
        total_steps=20,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3, mean=0.5, std=0.25),
        views=dict(
            clean=dict(view='crop', part='images', size=size, count=2),
            altered=dict(view='crop', part='images', size=size, count=2, boxes='clean'),
        ),
        masks={
            'altered~block': dict(
                mask='multiblock', family='chexworld', targets=int(hp['npred']), contexts=int(hp['nenc']),
                target_area=hp['pred_mask_scale'].tolist(), context_area=hp['enc_mask_scale'].tolist(),
                min_keep=int(hp['min_keep']), merge=bool(hp['merge']),
            )
        },
        towers=dict(
            image=dict(
                tower='vit', variant=f'S/{int(hp["patch_size"])}', family='ijepa', width=int(hp['embed_dim']),
                depth=int(hp['depth']), heads=heads,
            ),
            predictor=dict(
                tower='predictor', reads=['image'], width=int(hp['pred_emb_dim']), depth=int(hp['pred_depth']),
                heads=heads, positions=POSITIONS[str(hp['ssl_type'])], one_code=bool(hp['unify_embed']),
                condition=CONDITIONS[str(hp['cond_type'])], told=list(CHANGES),
            ),
        ),
        heads={},
        teachers=dict(teacher=dict(of=['towers/image'], rule='ema', momentum=momentum)),
        terms=[
            dict(regress, name='intra', student=OWN, weight=1 / whole),
            dict(regress, name='extra', student=OTHERS, weight=extra / whole),
            dict(
                term='token_deviation', of=[OWN, OTHERS] if extra > 0 else [OWN], weight=float(hp['reg_weight'])
            ),
        ],
    )  # fmt: skip


def boxes_of(relative_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n,2,4] and flips [n,2] of two crops, of which the first is the unit square and the second lies so to it.

    A relative position is (top, left, flip, left if flipped), or (top, left, height, width, flip, left if flipped), in
    sides of the first crop. A mirrored second crop ends at the last of these.
    """
    n = len(relative_position)
    top, left, *size, flip, end = np.moveaxis(relative_position, -1, 0)
    height, width = size or (np.ones(n), np.ones(n))
    second = np.stack([top, np.where(flip > 0, end - width, left), height, width], axis=-1)
    boxes = np.stack([np.broadcast_to(np.array([0, 0, 1, 1]), (n, 4)), second], axis=1)
    return boxes.astype(np.float32), np.stack([np.zeros(n, bool), flip > 0], axis=1)


def views_of(
    hp: dict[str, Any], d: dict[str, np.ndarray], masks: dict[str, np.ndarray], longest: int, room: int
) -> Any:
    """The views and the mask of a file, with room for `longest` patches of a context and `room` targets of a set."""
    b, n = len(d['image1']), (int(hp['img_size']) // int(hp['patch_size'])) ** 2

    def both(name: str) -> np.ndarray:
        """[B,2,…]: the second crop has the masks of the first one with the images in another order."""
        return np.stack([masks[name], masks[name][d['shuffle']]], axis=1)

    kept = np.stack([both(f'enc{i}') for i in range(int(hp['nenc']))], axis=2)  # [B,2,C,M']
    sets = int(hp['nenc']) * (1 if hp['merge'] else int(hp['npred']))
    targets = np.stack([both(f'pred{k}') for k in range(sets)])  # [K,B,2,M]
    bits = np.zeros((*targets.shape[:-1], n), bool)
    np.put_along_axis(bits, targets.astype(int), True, axis=-1)
    padding = longest - kept.shape[-1]
    by_set = [positions(one, most=2 * room, crop_room=room) for one in bits]
    index, weight = (jnp.stack(x, 1) for x in zip(*by_set, strict=True))
    length = jnp.full(kept.shape[:-1], kept.shape[-1], jnp.int32) if padding else None
    kept = np.pad(kept, ((0, 0), (0, 0), (0, 0), (0, padding)), constant_values=n - 1).astype(np.int32)
    mask = Mask(bits.any(0), index, weight, jnp.asarray(kept), length, mode='drop', crop_room=room, own_sets=True)
    boxes, flips = boxes_of(d['rel_pos_21'])
    changes = dict(zip(CHANGES, np.moveaxis(np.stack([d['aug_params1'], d['aug_params2']], 1), -1, 0), strict=True))

    def view(name: str, meta: dict[str, np.ndarray]) -> View:
        x = np.stack([d[f'{name}1'], d[f'{name}2']], axis=1)
        x = np.moveaxis(x, 2, -1)[:, :, None]
        return View(x, np.arange(b, dtype=np.uint32), np.ones((b, 2), bool), None, dict(boxes=boxes, flip=flips) | meta)

    return dict(clean=view('image', {}), altered=view('image_aug', changes)), {'altered~block': mask}


def inputs_of(d: Any, step: int | None = None) -> dict[str, np.ndarray]:
    found = of_file(d, 'in/') | dict(shuffle=d['mask/shuffle'])
    return found if step is None else {name: x[step] for name, x in found.items()}


def towers(d: Any, start: str, hp: dict[str, Any]) -> dict[str, Any]:
    heads = int(hp['num_heads'])
    trees = {name: tower(d, f'{start}{theirs}.', name, heads) for name, theirs in
             dict(image='encoder', predictor='predictor').items()}  # fmt: skip
    trees['image'].setdefault('mask_token', np.zeros(int(hp['embed_dim']), np.float32))  # the original has none
    return trees


def check_geometry(d: Any, hp: dict[str, Any]) -> None:
    """Both relative positions of a file are those of its crops, and of the boxes that the test makes of them."""
    crops, (_, source_width) = d['in/crops_ijhw'].astype(float), d['in/source_hw']
    side, width = 5, 16
    patches = np.arange(side * side)[None]
    for a, b, name in ((0, 1, 'in/rel_pos_21'), (1, 0, 'in/rel_pos_12')):
        given = d[name]
        flip = given[:, -2] > 0
        # crops are given in the picture as it was flipped for each; a flipped crop begins at the right border
        boxes, flips = crops.copy(), np.zeros((len(crops), 2), bool)
        boxes[flip, b, 1] = source_width - crops[flip, b, 1] - crops[flip, b, 3]
        flips[:, b] = flip
        made, made_flips = boxes_of(d['in/rel_pos_21'])
        codes = [
            run(relative.code, np.repeat(patches, len(x), 0), relative.between(x[:, a], f[:, a], x[:, b], f[:, b]),
                grid=(side, side), width=width)
            for x, f in ((boxes, flips), (made, made_flips))
        ]  # fmt: skip
        close(codes[1], codes[0], 2e-5, f'{name} of crops and of made-up boxes')


def check_dual(path: Path) -> None:
    """dual_*: the forward passes, the losses and all gradients."""
    d = np.load(path)
    hp = settings(d, SETTINGS)
    check_geometry(d, hp)
    objective, _, state = started(d, hp, recipe(hp), lr=0.0)
    b, contexts = int(hp['batch']), int(hp['nenc'])
    gradient = FOURIER_GRADIENT if str(hp['cond_type']) == 'token' else GRADIENT

    def set_major(x: np.ndarray) -> np.ndarray:
        """[B,K,…] -> [K B,…]"""
        x = np.asarray(x).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[2:])

    ke, kp = d['mask/enc0'].shape[1], d['mask/pred0'].shape[1]
    padding = 3  # more room than the file needs; steps in a row have none for their longest targets
    views, masks = views_of(hp, inputs_of(d), of_file(d), ke + padding, kp + padding)

    def forward_and_back(state, views, masks):
        loss, metrics, _, grads = gradients(objective, state, (views, masks), lambda rows: rows, state.key, 1)
        return forward(objective, state, views, masks), loss, metrics, grads

    mid, loss, metrics, grads = run(forward_and_back, state, views, masks)
    context = np.asarray(mid['context']).reshape(b, 2, contexts, ke + padding, -1)[:, :, :, :ke]
    predicted, targets = {}, {}
    for crop in (0, 1):
        close(set_major(context[:, crop]), d[f'out/context{crop + 1}'], FORWARD, f'context {crop + 1}')
        targets[crop] = set_major(mid['target'][:, :, crop, :kp])
        close(targets[crop], d[f'target/h{crop + 1}'], FORWARD, f'targets {crop + 1}')
        for name, output, other in (('patches', mid['own'], crop), ('others', mid['others'], 1 - crop)):
            pair = f'{crop + 1}{other + 1}'
            predicted[pair] = set_major(np.asarray(output)[:, crop, :, :kp])
            close(predicted[pair], d[f'out/pred_{pair}'], FORWARD, f'predictions {pair} ({name})')
    sequences = np.asarray(mid['sequences'])  # [S K,M'+M,d] of rows, target crops, own or other context, contexts
    sequences = sequences.reshape(b, 2, 2, -1, *sequences.shape[1:])
    extra = int(str(hp['cond_type']) == 'token')  # one token more, which is the last one in the original
    for pair, target, shift in (('11', 0, 0), ('21', 1, 1)):
        ours = set_major(sequences[:, target, shift])[:, : ke + kp + extra]
        ours = np.concatenate([ours[:, extra:], ours[:, :extra]], axis=1)
        close(ours, d[f'mid/predictor_in_{pair}'], FORWARD, f'input of the predictor {pair}')
    for pair in predicted:
        distance = np.abs(predicted[pair] - targets[int(pair[0]) - 1])
        error = distance**2 if str(hp['loss_type']) == 'l2' else np.where(
            distance < 1, distance**2 / 2, distance - 0.5
        )  # fmt: skip
        close(error.mean(), d[f'loss/l{pair}'], LOSS, f'loss {pair}')
    for name in ('intra', 'extra'):
        close(metrics[f'term/{name}/loss'], d[f'loss/{name}'], LOSS, name)
    close(metrics['term/token_deviation/deviation'], d['loss/pred_std'], LOSS, 'deviation of predictions')
    close(loss, d['loss/total'], LOSS, 'loss')
    close_trees(grads['towers'], towers(d, 'g/', hp), gradient, 'gradient')


def forward(objective: Objective, state: TrainState, views: Any, masks: Any) -> dict[str, Any]:
    """What stands between images and losses."""
    params, mask, image = state.params['towers'], masks['altered~block'], objective.towers['image']
    context = image.apply(params['image'], Input(views['altered'], mask))
    with recorded('sequences') as given:
        out = objective.towers['predictor'].apply(
            params['predictor'], Input(views['altered'], mask, context), want=['others']
        )
    term = objective.terms['intra']
    assert isinstance(term, Regress)
    output = term.teacher.output
    teacher = state.aux['teachers']['teacher']['towers']['image']
    raw = image.apply(teacher, Input(views['clean']), want=[output])[output]
    target = at_mask(term.target(raw), mask)
    target = target.reshape(*target.shape[:2], 2, mask.crop_room, -1)
    return dict(
        context=context['patches'], own=out['patches'], others=out['others'], sequences=given[0][0], target=target
    )


def check_lockstep(path: Path) -> None:
    """lockstep_*: several steps of AdamW from the original's own start, and the teacher after them."""
    d = np.load(path)
    hp = settings(d, LOCKSTEP_SETTINGS)
    momentum = d['schedule/momentum'].tolist()
    for name, ours in schedules(hp, len(momentum)).items():
        close(ours, d[f'schedule/{name}'], 1e-6, name)
    objective, built, state = started(
        d, hp, recipe(hp, momentum), lr=1.0, schedule=d['schedule/lr'].tolist(),
        weight_decay=d['schedule/wd'].tolist(), b1=float(hp['beta1']), b2=float(hp['beta2']), eps=float(hp['eps']),
        clip=float(hp['clip_grad']),
    )  # fmt: skip
    check_decayed(built, hp)
    # mask lengths differ from step to step: all get the room of the longest, so that one program serves
    masks = [of_file(d, f'mask/step{i}/') for i in range(len(momentum))]
    longest, room = (max(one[kind].shape[1] for one in masks) for kind in ('enc0', 'pred0'))
    step = jax.jit(make_step(objective, built, None).step_on_views)
    for i, mask in enumerate(masks):
        state, metrics = step(state, *views_of(hp, inputs_of(d, i), mask, longest + 1, room))
        for ours, theirs in dict(
            loss='per_step', **{'term/intra/loss': 'intra', 'term/extra/loss': 'extra'},
            **{'term/token_deviation/deviation': 'pred_std'},
        ).items():  # fmt: skip
            close(metrics[ours], d[f'loss/{theirs}'][i], LOSS, f'{theirs} of step {i}')
        close(metrics['grad_norm/all'], d['loss/grad_norm'][i], GRADIENT, f'gradient norm of step {i}')
        close(metrics['momentum'], momentum[i], 1e-6, 'momentum')
    target = tower(d, 'end/target_encoder.', 'image', int(hp['num_heads']))
    for ours, theirs in (
        (state.params['towers'], towers(d, 'end/', hp)),
        (state.aux['teachers']['teacher']['towers'], dict(image=target)),
    ):
        flat = jax.tree_util.tree_flatten_with_path(without_key_bias(theirs))[0]
        for (where, reference), value in zip(flat, jax.tree.leaves(without_key_bias(ours)), strict=True):
            name = jax.tree_util.keystr(where)
            if "['image']['mask_token']" in name:
                continue  # the original has no such token
            worst = np.abs(value - reference).max()
            assert worst <= END, f'end of {name}: {worst:.2e}'


def schedules(hp: dict[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Learning rate, weight decay and momentum by step from the rules that the recipe uses."""
    total, warmup = (int(hp['ipe']) * int(hp[name]) for name in ('epochs', 'warmup'))
    t = int(hp['first_it']) + np.arange(steps)
    rules = dict(
        lr=dict(start=float(hp['lr']), end=float(hp['min_lr']), warmup=warmup),
        wd=dict(start=float(hp['wd']), end=float(hp['wd_end'])),
        momentum=dict(start=float(hp['ema']), end=1.0),
    )
    return {
        name: np.asarray(schedule(dict(rule='cosine', **rule), total, name)(jnp.asarray(t)))
        for name, rule in rules.items()
    }


def check_tables(path: Path) -> None:
    """tables: the codes of positions, the Fourier code of changes, and the deviation of predictions."""
    d = np.load(path)
    known = {'fourier/x', 'fourier/y'} | {name for name in d.files if name.startswith('reg/')}
    close(run(relative.fourier, d['fourier/x']), d['fourier/y'], 5 * FORWARD, 'Fourier code')
    for name in sorted({name.rpartition('/')[0] for name in d.files if name.startswith('table/')}):
        known |= {f'{name}/{key}' for key in ('plain', 'easy', 'general', 'easy_rel_pos', 'general_rel_pos')}
        width, side = (int(word.lstrip('dimgr')) for word in name.partition('/')[2].split('_'))
        close(sincos_positions((side, side), width), d[f'{name}/plain'], FORWARD, f'{name}/plain')
        for kind in ('easy', 'general'):
            boxes, flips = boxes_of(d[f'{name}/{kind}_rel_pos'])
            patches = np.repeat(np.arange(side * side)[None], len(boxes), 0)

            def codes(boxes, flips, patches, side=side, width=width):
                affine = relative.between(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1])
                scale = relative.scale_code(affine, width)[:, None]
                code = relative.code(patches, affine, (side, side), width)
                return code, jnp.concatenate([code, jnp.broadcast_to(scale, code.shape)], axis=-1)

            ours = run(codes, boxes, flips, patches)[kind == 'general']
            close(ours, d[f'{name}/{kind}'], FORWARD, f'{name}/{kind}')
    assert set(d.files) == known, f'{set(d.files) ^ known}'
    check_deviation([d[f'reg/z{i}'] for i in range(4)], d['reg/std'], d['reg/loss'])


def check_deviation(predicted: list[np.ndarray], deviation: np.ndarray, loss: np.ndarray) -> None:
    """The term over two features of two crops: the four predictions z [rows,M,D]."""
    names = [OWN, OTHERS]
    term = token_deviation.build(TermContext('terms[0]', 10, 1), names)
    rows, m, width = predicted[0].shape
    index = np.arange(2 * m)[None, None].repeat(rows, 0)
    mask = Mask(np.ones((rows, 2, m), bool), index, np.full(index.shape, 1 / m, np.float32), crop_room=m)
    features = {
        name: np.stack(predicted[2 * i : 2 * i + 2], 1).reshape(rows, 1, 2 * m, width) for i, name in enumerate(names)
    }
    presence = {name: np.ones((rows, 2), bool) for name in names}

    def run_term(features):
        x = TermInputs({}, {}, features, presence, {}, {'altered~block': mask}, None, jnp.int32(0), None)
        per_row = term.per_row(x)
        sums = [term.deviations(x, feature) for feature in term.of]
        mean = sum(total for total, _ in sums) / sum(count for _, count in sums)[..., None]
        x = TermInputs({}, {}, features, presence, {}, {}, None, jnp.int32(0), None, per_row)
        return mean, term.loss(x).loss

    mean, ours = run(run_term, features)
    close(mean[:, 0, 0], deviation, FORWARD, 'deviations')
    close(ours, loss, LOSS, 'loss of deviations')
