"""Pair losses in a recipe: mistakes in the config, and micro-batches of a whole objective."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from pair_cases import COLUMNS, ROWS, STEP, build_term, evaluate, make_batch
from reference_losses import context

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.terms import pair_softmax
from medjax.training.step import gradients
from medjax.types import TrainState, View


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(positives='identiti'), "'identiti' is no kind of positives; did you mean 'identity'"),
        (dict(positives=[]), 'at most one dict(soft=…, alpha=…)'),
        (dict(positives=dict(soft='labels', alhpa=1)), "unknown key 'alhpa'; did you mean 'alpha'"),
        (dict(row_weight=2), 'row_weight=2: must be a number from 0 to 1'),
        (dict(temperature=0), 'temperature=0: must be a number above 0'),
        (dict(temperature=dict(learned=0.07, low=0.1)), '0 < low <= learned <= high, got 0.1, 0.07, 100.0'),
        (dict(temperature=dict(rule='cosin')), "did you mean 'cosine'"),
        (dict(queue=-1), 'queue=-1: must be a whole number of columns, or 0 for no queue'),
        (dict(queue=8, ring=True), 'every device holds the whole queue, so ring=True saves no memory'),
        (dict(queue=8, positives=dict(soft='teacher')), "needs kinds of positives besides the soft ones"),
        (dict(queue=8, positives=['identity', dict(soft='teacher')]), "network that gives the columns, 'student'"),
        (dict(rows='student/image/crop/patches@block'), 'several tokens a view'),
    ],
)  # fmt: skip
def test_mistakes_in_the_config_are_sentences(change, message):
    with pytest.raises(UserError) as error:
        build_term(pair_softmax, **{'rows': ROWS, **change})
    assert message in str(error.value) and str(error.value).startswith('test')


def test_features_of_a_wrong_shape_are_refused():
    features, views = make_batch()
    with pytest.raises(UserError, match='one crop, which would be its own pair'):
        evaluate(build_term(pair_softmax, columns=ROWS), 'one_device', features, views)
    with pytest.raises(UserError, match=r'a pair needs one vector a view, \[B,V,d\]'):
        evaluate(build_term(pair_softmax), 'one_device', {**features, ROWS: features[ROWS][..., None]}, views)


def test_identity_across_parts_is_refused_by_the_term():
    two_parts = dataclasses.replace(context(1), parts=dict(crop='cxr', report='texts'))
    with pytest.raises(UserError, match="'identity' pairs rows of one part"):
        pair_softmax.build(two_parts, ROWS, COLUMNS)


def test_identity_across_parts_is_refused_by_the_objective():
    recipe = recipes.tiny()
    recipe['views']['local']['part'] = 'other'
    rows, columns = 'student/image/global~block/cls>dino', 'student/image/local/cls>dino'
    recipe['terms'] = [dict(term='pair_sigmoid', rows=rows, columns=columns)]
    with pytest.raises(UserError, match="'global' shows 'cxr' and 'local' shows 'other'"):
        compose(recipe)


def image_and_text():
    """A recipe with a ViT and a BERT: a softmax with a queue and the teacher's soft positives, and a sigmoid."""
    recipe = recipes.tiny(rows_per_group=2)
    image, text = 'student/image/global/cls>vi', 'student/text/report/cls>vt'
    learned = dict(temperature=dict(learned=0.07))
    positives = ['identity', dict(soft='teacher', alpha=0.4)]
    modules = ['towers/image', 'towers/text', 'heads/vi', 'heads/vt']
    towers = {
        'image': recipe['towers']['image'],
        'text': dict(tower='text', width=32, depth=2, heads=2, vocabulary=50, context=6),
    }
    return recipe | dict(
        views={'global': recipe['views']['global'], 'report': dict(view='text', part='cxr', length=6)},
        masks={},
        towers=towers,
        heads={name: dict(head='linear', out=16) for name in ('vi', 'vt')},
        teachers=dict(teacher=dict(of=modules, rule='ema', momentum=0.9)),
        terms=[
            dict(
                term='pair_softmax', rows=image, columns=text.replace('student', 'teacher'),
                positives=positives, queue=12, **learned,
            ),
            dict(term='pair_sigmoid', rows=image, columns=text, **learned),
        ],
    )  # fmt: skip


def random_state(objective, rng):
    """A state of random numbers without a compiled `init`; four of twelve places in the queue are taken."""

    def fill(leaf):
        return (
            np.zeros(leaf.shape, leaf.dtype)
            if leaf.dtype != jnp.float32
            else np.float32(rng.normal(0, 0.3, leaf.shape))
        )

    key = jax.random.key(0)
    params, aux = jax.tree.map(fill, jax.eval_shape(objective.init, key))
    for term in params['terms'].values():
        term['log_scale'] = np.float32(np.log(1 / 0.07))
    aux['terms']['pair_softmax']['queue']['present'] = np.arange(12) < 4
    return TrainState(STEP, params, {}, aux, key, {})


@pytest.mark.slow
def test_micro_batches_give_one_gradient():
    """One, two and four micro-batches of a whole recipe give the same loss, gradients, queue and counts."""
    objective = compose(image_and_text())
    rng = np.random.default_rng(0)
    row = np.arange(8, dtype=np.uint32)
    valid = np.arange(6) < rng.integers(1, 7, (8, 1, 1))
    views = {  # tests/training/test_step.py makes views in micro-batches; here they are given
        'global': View(rng.normal(size=(8, 2, 1, 32, 32, 1)).astype(np.float32), row, np.ones((8, 2), bool), None, {}),
        'report': View(rng.integers(0, 50, (8, 1, 6), np.int32), row, np.ones((8, 1), bool), valid, {}),
    }
    views['global'].present[5] = views['report'].present[2] = False
    state = random_state(objective, rng)

    def run(micro_batches):
        f = lambda state, views: gradients(  # noqa: E731
            objective, state, (views, {}), lambda rows: rows, state.key, micro_batches
        )
        return jax.jit(f)(state, views)

    loss, metrics, carry, whole = run(1)
    assert int(metrics['term/pair_softmax/queue']) == 4
    assert int(metrics['term/pair_sigmoid/rows']) == 6 and int(metrics['term/pair_sigmoid/left_out']) == 2
    for kind in ('terms', 'heads'):
        assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(whole[kind]))
    for micro_batches in (2, 4):
        split_loss, split_metrics, split_carry, split = run(micro_batches)
        assert abs(split_loss - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(split, whole) <= 1e-5
        assert recipes.worst(split_carry, carry) <= 1e-5
        assert set(split_metrics) == set(metrics)
