"""Checks of whole training steps of the original DINOv2 code, through the objective, the optimiser and the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import published_names
from reference_losses import close, crop_major, image_major, original_groups

from medjax.objectives.compose import Objective, compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import gradients, make_step
from medjax.types import Mask, TrainState, View
from medjax.views.masks import from_bits


def recipe_of(
    d: Any, temperature: Any, momentum: Any, global_size: int, local_size: int, channels: int
) -> dict[str, Any]:
    """The recipe of a reference file, as a config would hold it."""
    separate, registers = bool(d['hp/separate_head']), int(d['hp/registers'])
    one = {name.split('/', 2)[2]: d[name] for name in d.files if name.startswith('student/backbone/')}
    layers = len({name.split('.')[1] for name in one if name.startswith('blocks.')})
    count, bottleneck = d['student/dino_head/last_layer.weight_v'].shape
    hidden = d['student/dino_head/mlp.0.weight'].shape[0]
    head = dict(head='dino_head', prototypes=count, hidden=hidden, bottleneck=bottleneck)
    patches = 'ibot' if separate else 'dino'
    targets = dict(
        teacher_temperature=temperature, centring={'centering': 'centre'}.get(str(d['hp/centering']), 'sinkhorn')
    )
    return dict(
        total_steps=20,
        rows_per_group=int(d['hp/batch']),
        dtype='float32',
        image=dict(channels=channels, mean=0.0, std=1.0),
        views={
            'global': dict(view='crop', part='images', count=2, size=global_size),
            'local': dict(view='crop', part='images', count=int(d['hp/n_local_crops']), size=local_size),
        },
        masks={'global~block': dict(mask='blocks')},
        towers=dict(
            image=dict(
                tower='vit', variant=f'S/{int(d["hp/patch_size"])}', native_size=global_size,
                width=one['cls_token'].shape[-1], depth=layers, heads=int(d['hp/num_heads']), registers=registers,
                ffn='swiglu' if any('w12' in name for name in one) else 'mlp',
                layerscale=1e-5 if any('gamma' in name for name in one) else None,
            )
        ),
        heads={'dino': head, **({'ibot': head} if separate else {})},
        teachers=dict(
            teacher=dict(
                of=['towers/image', 'heads/dino', *(['heads/ibot'] if separate else [])], rule='ema', momentum=momentum
            )
        ),
        terms=[
            dict(
                term='distill_cls', teacher='teacher/image/global/cls>dino',
                student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'], **targets,
            ),
            dict(
                term='distill_patch', student=f'student/image/global~block/patches@block>{patches}',
                teacher=f'teacher/image/global/patches@block>{patches}', **targets,
            ),
            dict(term='koleo', of='student/image/global~block/cls', weight=float(d['hp/koleo_loss_weight'])),
        ],
    )  # fmt: skip


def parts_of(d: Any, prefix: str) -> dict[str, Any]:
    """{'towers', 'heads'} of the arrays under `prefix`, mapped from torch's names."""

    def state(part: str) -> dict[str, np.ndarray]:
        start = f'{prefix}/{part}/'
        return {name[len(start) :]: np.asarray(d[name]) for name in d.files if name.startswith(start)}

    heads = {short: published_names.head(s) for short in ('dino', 'ibot') if (s := state(f'{short}_head'))}
    return {
        'towers': {'image': published_names.backbone(state('backbone'), heads=int(d['hp/num_heads']))},
        'heads': heads,
    }


def views_of(global_crops: np.ndarray, local_crops: np.ndarray, bits: np.ndarray, tokens: int) -> tuple[Any, Any]:
    """Crop-major NCHW crops and masks of the original -> views and masks; all rows are one group."""

    def view(x: np.ndarray, rows: int) -> View:
        x = image_major(np.moveaxis(x, 1, -1), len(x) // rows)
        return View(
            jnp.asarray(x[:, :, None]), jnp.arange(rows, dtype=jnp.uint32), jnp.ones(x.shape[:2], bool), None, {}
        )

    rows = len(global_crops) // 2
    mask: Mask = from_bits(jnp.asarray(image_major(bits, 2)), 1, tokens)
    return {'global': view(global_crops, rows), 'local': view(local_crops, rows)}, {'global~block': mask}


def start(d: Any, objective: Objective, optim_cfg: dict[str, Any]) -> tuple[TrainState, Any]:
    """The state before the first step and the optimiser."""
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    optim = call(optimizer, optim_cfg, 'optim', params=shapes, total_steps=20)
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    student = parts_of(d, 'student')
    has_teacher = any(name.startswith('teacher/') for name in d.files)
    teacher = parts_of(d, 'teacher') if has_teacher else student
    same = jax.tree.structure(state.params['towers']) == jax.tree.structure(student['towers'])
    assert same, 'the mapped names are not the parameters of the tower'
    aux = {**state.aux, 'teachers': {'teacher': jax.tree.map(jnp.asarray, teacher)}}
    for term, name in (('distill_cls', 'center/dino_before'), ('distill_patch', 'center/ibot_before')):
        if name in d.files and aux['terms'][term]:
            centre = {'centre': jnp.asarray(d[name]).reshape(-1)}
            aux['terms'] = {**aux['terms'], term: {**aux['terms'][term], **centre}}
    return state._replace(params={**jax.tree.map(jnp.asarray, student), 'terms': state.params['terms']}, aux=aux), optim


def optim_of(d: Any, **rest: Any) -> dict[str, Any]:
    gammas = any('gamma' in name for name in d.files)
    groups = original_groups(
        float(d['hp/layerwise_decay']), float(d['hp/patch_embed_lr_mult']), gammas,
        rest.pop('frozen', 0), bool(d['hp/separate_head']),
    )  # fmt: skip
    return dict(
        b1=float(d['hp/adamw_beta1']), b2=float(d['hp/adamw_beta2']), eps=float(d['hp/adamw_eps']),
        clip=float(d['hp/clip_grad']), groups=groups, **rest,
    )  # fmt: skip


def check_step(path: Path) -> None:
    d = np.load(path)
    crops, locals_ = d['batch/global_crops'], d['batch/local_crops']
    objective = compose(
        recipe_of(
            d,
            float(d['hp/teacher_temp']),
            float(d['hp/teacher_momentum']),
            crops.shape[-1],
            locals_.shape[-1],
            crops.shape[1],
        )
    )
    optim_cfg = optim_of(d, lr=float(d['hp/lr']), weight_decay=float(d['hp/weight_decay']))
    state, optim = start(d, objective, optim_cfg)
    tokens = int(d['batch/upperbound'])
    views, masks = views_of(crops, locals_, d['batch/masks'], tokens)
    m = int(d['batch/masks'].sum())

    # What the towers and heads give, in between.
    (found, *_), _ = objective.features(state.params, state.aux, views, masks, state.key, state.step)
    close(crop_major(found['student/image/global~block/cls']), d['out/student_global_cls'], 2e-5, 'student global CLS')
    close(crop_major(found['student/image/local/cls']), d['out/student_local_cls'], 2e-5, 'student local CLS')

    loss, metrics, carry, grads = jax.jit(
        lambda s, views, masks: gradients(objective, s, (views, masks), lambda part: part, s.key, 1)
    )(state, views, masks)
    close(metrics['term/distill_cls/loss/local'], d['loss/dino_local_crops_loss'], 1e-5, 'local loss')
    close(metrics['term/distill_cls/loss/global~block'], d['loss/dino_global_crops_loss'], 1e-5, 'global loss')
    close(
        metrics['term/koleo/loss'] * float(d['hp/koleo_loss_weight']), d['loss/koleo_total_in_objective'], 1e-5, 'KoLeo'
    )
    close(metrics['term/distill_patch/loss'], d['loss/ibot_in_objective'], 1e-5, 'patch loss')
    close(loss, d['loss/total_objective'], 1e-5, 'objective')
    assert float(metrics['term/distill_patch/rows']) == m

    theirs = parts_of(d, 'grad')
    for kind in ('towers', 'heads'):
        for (where, ours), (_, reference) in zip(_leaves(grads[kind]), _leaves(theirs[kind]), strict=True):
            close(ours, reference, 1e-4, f'gradient of {where}')

    new, moved = jax.jit(make_step(objective, optim, None).step_on_views)(state, views, masks)
    for part in ('backbone', 'dino_head', 'ibot_head'):
        if f'opt/grad_norm/{part}' in d.files:
            close(moved[f'grad_norm/{part}'], d[f'opt/grad_norm/{part}'], 1e-4, f'norm of {part}')
    # A first AdamW step is nearly lr * sign(gradient): rounding of a gradient, some 2e-6 of the largest, moves
    # a small element's parameter: 1e-5 is allowed, and what that rounding makes of it; where it decides the sign, all.
    rate, share = float(d['hp/lr']), 1 - float(d['hp/teacher_momentum'])
    after = {'student': new.params, 'teacher': new.aux['teachers']['teacher']}
    for copy, scale in (('student', 1.0), ('teacher', share)):
        reference, compared = parts_of(d, f'new_{copy}'), 0
        for kind in ('towers', 'heads'):
            trees = (after[copy][kind], reference[kind], theirs[kind])
            for (where, x), (_, y), (_, g) in zip(*map(_leaves, trees), strict=True):
                noise = 2e-6 * np.abs(g).max() / np.maximum(np.abs(g), 1e-30)
                off = np.abs(np.asarray(x) - y) > 1e-5 + scale * rate * np.minimum(noise, 2.0)
                assert not off.any(), f'new {copy} {where}: {off.sum()} of {off.size} elements'
                compared += (noise < 2e-2).sum()  # held to 1e-5 and less than a fiftieth of a step
        assert compared > 10_000, copy
    if 'centre' in new.aux['terms']['distill_cls']:
        close(new.aux['terms']['distill_cls']['centre'][None], d['center/dino_after'], 1e-5, 'centre of CLS')
        close(
            new.aux['terms']['distill_patch']['centre'][None, None], d['center/ibot_after'], 1e-5, 'centre of patches'
        )


def check_lockstep(path: Path) -> None:
    d = np.load(path)
    crops, locals_, bits = d['batch/global_crops'], d['batch/local_crops'], d['batch/masks']
    temperature, momentum = d['schedule/teacher_temp'].tolist(), d['schedule/momentum'].tolist()
    objective = compose(recipe_of(d, temperature, momentum, crops.shape[-1], locals_.shape[-1], crops.shape[2]))
    frozen = int((d['schedule/last_layer_lr'] == 0).argmin())
    optim_cfg = optim_of(
        d, lr=1.0, schedule=d['schedule/lr'].tolist(), weight_decay=d['schedule/wd'].tolist(), frozen=frozen
    )
    state, optim = start(d, objective, optim_cfg)
    step = jax.jit(make_step(objective, optim, None).step_on_views)
    names = {
        'dino_local': 'term/distill_cls/loss/local', 'dino_global': 'term/distill_cls/loss/global~block',
        'ibot': 'term/distill_patch/loss', 'total': 'loss', 'grad_norm_backbone': 'grad_norm/backbone',
    }  # fmt: skip
    tokens = int(bits.sum(axis=(1, 2)).max())
    for i in range(len(crops)):
        state, metrics = step(state, *views_of(crops[i], locals_[i], bits[i], tokens))
        for theirs, ours in names.items():
            close(metrics[ours], d[f'loss/{theirs}'][i], 2e-4, f'step {i} {theirs}')
        koleo = metrics['term/koleo/loss'] * float(d['hp/koleo_loss_weight'])
        close(koleo, d['loss/koleo'][i], 2e-4, f'step {i} KoLeo')
    teacher = parts_of(d, 'end_teacher')
    for kind in ('towers', 'heads'):
        for (where, ours), (_, reference) in zip(
            _leaves(state.aux['teachers']['teacher'][kind]), _leaves(teacher[kind]), strict=True
        ):
            assert np.abs(np.asarray(ours) - reference).max() <= 2e-4, f'end teacher {where}'


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
