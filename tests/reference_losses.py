"""Checks of the loss files of the original DINOv2 code; each takes the path of one file (see its README's format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import published_names
from mask_statistics import compare, generate
from programs import run

from medjax.objectives import numerics
from medjax.objectives.features import parse
from medjax.objectives.schedules import schedule
from medjax.objectives.terms import Networks, Term, TermContext, TermInputs, distill_cls, distill_patch, koleo
from medjax.training.optimizer import parameter_groups
from medjax.types import Head, View
from medjax.views.masks import MaskContext, blocks, from_bits


def close(ours, theirs, relative: float, what: str) -> None:
    """Equal within `relative` of the tensor's largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f'{what}: shape {ours.shape} is not {theirs.shape}'
    assert np.isfinite(ours).all(), f'{what}: not finite'
    scale = max(np.abs(theirs).max(), 1e-30)
    worst = np.abs(ours - theirs).max() / scale
    assert worst <= relative, f'{what}: {worst:.2e} of the largest value {scale:.3g}, allowed {relative:.0e}'


def image_major(x: np.ndarray, crops: int) -> np.ndarray:
    """Crop-major rows [V*B,…] of the original -> [B,V,…]."""
    return np.swapaxes(x.reshape(crops, x.shape[0] // crops, *x.shape[1:]), 0, 1)


def crop_major(x: np.ndarray) -> np.ndarray:
    x = np.swapaxes(np.asarray(x), 0, 1)
    return x.reshape(-1, *x.shape[2:])


class IdentityHead(Head):
    def apply(self, params, x, *, present=None, train=False):
        return x

    def prototypes(self, params):
        return lambda z: z


def identity_head(count: int) -> Head:
    return IdentityHead(axes={}, prototype_count=count)


NETWORKS = Networks({}, {'dino': identity_head(0)}, {name: {'heads': {'dino': {}}} for name in ('student', 'teacher')})


def context(count: int, **heads: Head) -> TermContext:
    return TermContext('test', 100, 1, heads or {'dino': identity_head(count)})


def plain_view(rows: int, crops: int) -> View:
    return View(None, jnp.arange(rows, dtype=jnp.uint32), jnp.ones((rows, crops), bool), None, {})


def presence(features, views: Mapping[str, View]) -> dict[str, Any]:
    """Which elements of features with one input count: those of their view that are present."""
    return {name: views[parse(name, 'test').view].present for name in features}


def loss_of(term: Term, features, views, masks=None, params=None, state=None, step=0):
    """Loss, metrics with the start value, and carry of a term whose features are the logits of its heads."""
    out = term.loss(
        TermInputs(
            params or {}, state or {}, features, presence(features, views), views, masks or {}, NETWORKS,
            jnp.asarray(step, jnp.int32), None,
        )
    )  # fmt: skip
    return out.loss, out.metrics | ({} if out.start is None else {'start': out.start}), out.carry


def softmax_of(term_aux, d, temperature, logits):
    return run(lambda z, centre: jax.nn.softmax(z / temperature - centre / temperature), logits, term_aux['centre'])


def balanced(logits, weight, temperature, count, iterations):
    """The targets of Sinkhorn."""

    def targets(z, weight, temperature):
        return jax.nn.softmax(
            z / temperature + numerics.sinkhorn_potential(lambda z: z, z, weight, temperature, count, iterations)
        )

    return run(targets, logits, weight, np.float32(temperature))


def check_dino_loss(path: Path) -> None:
    d = np.load(path)
    k, n_local, rows = d['student_global'].shape[1], int(d['n_local_crops']), d['student_global'].shape[0] // 2
    temperature = float(d['teacher_temp'])
    inputs = {
        'student/image/local/cls>dino': image_major(d['student_local'], n_local),
        'student/image/global/cls>dino': image_major(d['student_global'], 2),
    }
    views = {'global': plain_view(rows, 2), 'local': plain_view(rows, n_local)}
    name = 'teacher/image/global/cls>dino'

    for iterations in (1, 3, 5):
        z = d['teacher_logits_step1']
        q = balanced(z, np.ones(len(z), np.float32), temperature, k, iterations)
        close(q, d[f'sinkhorn_it{iterations}'], 2e-5, f'sinkhorn {iterations}')

    for centring in ('center', 'sinkhorn'):
        term: Term = distill_cls.build(
            context(k), list(inputs), name, temperature, float(d['student_temp']),
            {'center': 'centre'}.get(centring, centring), float(d['center_momentum']),
        )  # fmt: skip
        _, aux = term.init(jax.random.key(0))
        first = d['teacher_logits_step1']
        if centring == 'center':  # the losses of this case are those of the second call
            close(softmax_of(aux, d, temperature, first), d['softmax_center_step1'], 2e-5, 'targets 1')
            aux = run(term.update, aux, (first.mean(0), aux['target'], np.float32(len(first))), 0)
            close(aux['centre'][None], d['center_after_step1'], 1e-5, 'centre 1')
        # The teacher's CLS tokens are swapped in the original, so that crop A stands at B's place: undo it.
        logits = d['teacher_logits_step2'] if centring == 'center' else first
        teacher = image_major(logits, 2)[:, ::-1]

        def loss(inputs, aux=aux, term=term, teacher=teacher):
            features = {**inputs, name: jnp.asarray(teacher)}
            total, metrics, carry = loss_of(term, features, views, state=aux)
            return total, (metrics, carry)

        (_, (metrics, carry)), grads = run(jax.value_and_grad(loss, has_aux=True), inputs)
        local, glob = d[f'{centring}/local_loss_scaled'], d[f'{centring}/global_loss_scaled']
        close(metrics['loss/local'], local, 1e-5, f'{centring} local loss')
        close(metrics['loss/global'], glob, 1e-5, f'{centring} global loss')
        pairs = 2 * n_local + 2
        close(metrics['loss/local'] * pairs, d[f'{centring}/local_loss_raw'], 1e-5, f'{centring} raw local loss')
        close(metrics['loss/global'] * pairs / 2, d[f'{centring}/global_loss_raw'], 1e-5, f'{centring} raw global loss')
        for which in ('local', 'global'):
            ours = crop_major(grads[f'student/image/{which}/cls>dino'])
            close(ours, d[f'{centring}/grad_student_{which}'], 1e-4, f'{centring} gradient of {which}')
        if centring == 'center':
            close(softmax_of(aux, d, temperature, logits), d['softmax_center_step2'], 2e-5, 'targets 2')
            aux = run(term.update, aux, carry, 0)
            close(aux['centre'][None], d['center_after_step2'], 1e-5, 'centre 2')


def check_sinkhorn_overflow(path: Path) -> None:
    d = np.load(path)
    z = d['teacher_logits']
    q = balanced(z, np.ones(len(z), np.float32), d['teacher_temp'], z.shape[1], 3)
    close(q, d['own_logdomain_float64_it3'], 1e-4, 'sinkhorn in the log domain')


def check_ibot_loss(path: Path) -> None:
    d = np.load(path)
    k, m, crops = d['student_masked_logits'].shape[1], int(d['n_masked_patches']), d['masks'].shape[0]
    temperature, zero = float(d['teacher_temp']), jnp.zeros((), jnp.int32)
    student_name, name = 'student/image/global~block/patches@block>dino', 'teacher/image/global/patches@block>dino'
    # Every row of `masks` is a crop here: one crop a row, all in one group, with the padding of the original's buffer.
    mask = run(lambda bits: from_bits(bits, 1, int(d['upperbound'])), d['masks'][:, None])
    close(np.asarray(mask.weight)[0, 0, :m], d['masks_weight'], 1e-6, 'weights of the masked tokens')
    np.testing.assert_array_equal(np.asarray(mask.index)[0, 0, :m], d['mask_indices_list'])
    views = {'global': plain_view(crops, 1)}

    def padded(x):
        return jnp.full((1, 1, mask.index.shape[-1], k), 7.0).at[0, 0, :m].set(x)  # padding must not count

    for centring in ('center', 'sinkhorn'):
        term = distill_patch.build(
            context(k), student_name, name, temperature, float(d['student_temp']),
            {'center': 'centre'}.get(centring, centring), float(d['center_momentum']),
        )  # fmt: skip
        _, aux = term.init(jax.random.key(0))

        if centring == 'center':  # the losses of this case are those of the second call
            first = d['teacher_masked_logits']
            close(softmax_of(aux, d, temperature, first), d['softmax_center_step1'], 2e-5, 'targets 1')
            aux = run(term.update, aux, (first.mean(0), aux['target'], np.float32(m)), zero)
            close(aux['centre'][None, None], d['center_after_step1'], 1e-5, 'centre')
        logits = d['teacher_masked_logits_step2' if centring == 'center' else 'teacher_masked_logits']

        def loss(student, teacher=logits, aux=aux, term=term):
            features = {student_name: padded(student), name: padded(teacher)}
            total, metrics, carry = loss_of(term, features, views, {'global~block': mask}, state=aux)
            return total, (metrics, carry)

        (total, (_, carry)), grad = run(jax.value_and_grad(loss, has_aux=True), d['student_masked_logits'])
        for which in ('forward_masked', 'forward_masked_no_weight_arg', 'dense_forward'):
            close(total, d[f'{centring}/{which}'], 1e-5, f'{centring} {which}')
        close(grad, d[f'{centring}/grad_student'], 1e-4, f'{centring} gradient')
        if centring == 'center':
            close(softmax_of(aux, d, temperature, logits), d['softmax_center_step2'], 2e-5, 'targets 2')
            close(carry[0], logits.mean(0), 1e-5, 'the mean that the centre follows')
        else:
            z = np.asarray(padded(d['teacher_masked_logits']))[0, 0]
            q = balanced(z, np.asarray(mask.weight)[0, 0], temperature, k, 3)
            close(q[:m], d['sinkhorn_it3'], 2e-5, 'sinkhorn')


def check_koleo(path: Path) -> None:
    d = np.load(path)
    of = 'student/image/global/cls'
    term = koleo.build(context(1), of)
    cases = sorted({name.split('/')[0] for name in d.files})
    assert cases
    for case in cases:
        x = d[f'{case}/x'][:, None]

        def loss(x):
            views = {'global': plain_view(len(x), 1)}
            return loss_of(term, {of: x}, views)[0]

        value, grad = run(jax.value_and_grad(loss), x)
        close(value, d[f'{case}/loss'], 1e-5, f'{case} loss')
        if case == 'b1' or 'duplicates' in case:  # the original's own gradient there is rounding noise over 1e-8
            assert np.isfinite(np.asarray(grad)).all(), case
        else:
            close(grad[:, 0], d[f'{case}/grad'], 1e-4, f'{case} gradient')


def check_schedules(path: Path) -> None:
    d = np.load(path)
    runs = sorted({name.rsplit('/', 1)[0] for name in d.files})
    assert runs
    for name in runs:
        args = {key.split('/arg_')[1]: d[key].item() for key in d.files if key.startswith(f'{name}/arg_')}
        steps = args['total_iters']
        values = schedule(
            dict(
                rule='cosine', start=args['base_value'], end=args['final_value'], warmup=args.get('warmup_iters', 0),
                warmup_start=args.get('start_warmup_value', 0.0), frozen=args.get('freeze_iters', 0), steps=steps,
            ), steps, name,
        )  # fmt: skip
        stride = int(d[f'{name}/stride'])
        strided = d[f'{name}/values_strided']
        at = np.arange(len(strided)) * stride
        scale = np.abs(strided).max()
        first, last = np.arange(40), np.arange(steps + 3 - 40, steps + 3)  # the last three are past the end
        ours = np.asarray(run(jax.vmap(values), np.concatenate([at, first, last])))
        expected = np.concatenate([strided, d[f'{name}/first40'], d[f'{name}/last40']])
        assert np.abs(ours - expected).max() <= 2e-6 * scale, name


def check_masking_stats(path: Path) -> None:
    """masking_stats.npz and .json: counts and cell frequencies of the original's masks, and ours."""
    if path.suffix == '.json':
        for case in json.loads(path.read_text()):
            if case.get('collate'):
                side = case['grid']
                total = blocks.build(MaskContext('masks', 'image', 2, case['batch'], (side, side))).most
                assert abs(total - case['mean_masked']) <= 0.06 * case['mean_masked'] and total <= case['upperbound'], (
                    case
                )
            else:
                drawn, filled = generate((case['grid'],) * 2, case['target'], min(case['draws'], 1000))
                assert (filled.sum((1, 2)) == case['target']).all()
                counts = drawn.sum((1, 2))
                assert abs(counts.mean() - case['mean_count']) < 0.15, case
                assert abs((counts == case['target']).mean() - case['frac_exact']) < 0.06, case
        return
    stats = np.load(path)
    for prefix in sorted({name.rsplit('/', 1)[0] for name in stats.files if '/target' in name}):
        side, target = (int(piece.lstrip('gridtae')) for piece in prefix.split('/'))
        assert side // 2 * side == stats[f'grid{side}/max_num_patches']
        histogram, frequency = stats[f'{prefix}/count_hist'], stats[f'{prefix}/cell_freq']
        n = 2000 if side < 37 else 500
        drawn, filled = generate((side, side), target, n)
        assert (filled.sum((1, 2)) == target).all()  # always; the original's generator in 85 to 97 % of its draws
        counts = drawn.sum((1, 2))
        assert abs((counts == target).mean() - histogram[-1] / histogram.sum()) < 0.06, prefix
        assert abs(counts.mean() - np.average(np.arange(len(histogram)), weights=histogram)) < 0.15, prefix
        assert compare(filled.mean(0), frequency, n, histogram.sum()) < 5, prefix
        assert np.corrcoef(filled.mean(0).ravel(), frequency.ravel())[0, 1] > 0.9, prefix


RULES = [
    dict(match='*/bias', wd_scale=0.0),
    dict(match='*norm*', wd_scale=0.0),
]


def original_groups(
    layerwise: float, patch_embed: float = 0.2, gammas: bool = True, frozen: int = 0, ibot: bool = False
):
    """The original's parameter groups as our rules."""
    rules = [*RULES, dict(match='towers/image/*', layerwise=layerwise, clip_group='backbone')]
    rules.append(dict(match='towers/image/patch_embed/*', lr_scale=patch_embed))
    rules += [dict(match='*/gamma*', wd_scale=0.0)] if gammas else []
    for head in ('dino', 'ibot') if ibot else ('dino',):
        rules.append(dict(match=f'heads/{head}/*', clip_group=f'{head}_head'))
        rules += [dict(match=f'heads/{head}/prototypes/*', frozen_until=frozen)] if frozen else []
    return rules


def check_param_groups(path: Path) -> None:
    spec = json.loads(path.read_text())
    for one_run, parameters in spec.items():
        if one_run.endswith('n_fused_groups'):
            continue
        zeros = {name: np.zeros(p['shape'], np.float32) for name, p in parameters.items()}
        if one_run == 'dino_head':
            ours = {'heads': {'dino': published_names.head(zeros)}}
            rules = [dict(match='*/bias', wd_scale=0.0)]
        else:
            decay = float(one_run.rsplit('decay', 1)[1])
            ours = {'towers': {'image': published_names.backbone(zeros, heads=1)}}
            rules = original_groups(decay)[:-1]
        table = parameter_groups(ours, rules)
        for factor, theirs in (('lr_scale', 'lr'), ('wd_scale', 'wd')):
            filled = jax.tree.map(
                lambda p, g, factor=factor: np.broadcast_to(np.asarray(getattr(g, factor), np.float32), p.shape),
                ours,
                table,
            )
            is_head = one_run == 'dino_head'
            named = (
                published_names.head_to_meta(filled['heads']['dino'])
                if is_head
                else published_names.to_meta(filled['towers']['image'])
            )
            for name, p in parameters.items():
                mine = named[_unchunk(name)]
                assert np.allclose(mine, p[theirs], rtol=1e-6), (
                    f'{one_run} {name} {theirs}: {mine.ravel()[0]} is not {p[theirs]}'
                )


def _unchunk(name: str) -> str:
    """'blocks.1.4.attn…' (chunked) -> 'blocks.4.attn…'."""
    pieces = name.split('.')
    return '.'.join([*pieces[:1], *pieces[2:]]) if pieces[0] == 'blocks' and pieces[2].isdigit() else name
