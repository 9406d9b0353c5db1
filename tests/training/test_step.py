"""The train step: micro-batches, skipped steps, copies, and what the terms in the config decide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.parallel.groups import check_rows
from medjax.training.step import gradients


@pytest.fixture(scope='module')
def trained():
    """A recipe with drop path and chance everywhere, its parts, its start and a batch."""
    recipe = recipes.tiny(rows_per_group=2, drop_path=0.25)
    objective, optim, step = recipes.parts(recipe)
    return recipe, objective, optim, step, recipes.start(objective, optim), recipes.batch(8)


@pytest.fixture(scope='module')
def run(trained):
    """The step as one program for all tests."""
    *_, step, _, _ = trained
    return jax.jit(step.train_step)


@pytest.mark.slow
def test_micro_batches_give_one_gradient(trained):
    recipe, objective, optim, step, state, batch = trained
    make_views = recipes.views(recipe, objective)

    def run(micro_batches):
        f = lambda state, batch: gradients(  # noqa: E731
            objective, state, batch, lambda rows: make_views(rows, state.key, state.step), state.key, micro_batches
        )
        return jax.jit(f)(state, batch)

    loss, metrics, carry, whole = run(1)
    for micro_batches in (2, 4):
        split_loss, split_metrics, split_carry, split = run(micro_batches)
        assert abs(split_loss - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(split, whole) <= 1e-5
        assert recipes.worst(split_carry, carry) <= 1e-5
        assert set(split_metrics) == set(metrics)


@pytest.mark.slow
def test_a_bfloat16_step_is_nearly_the_float32_step():
    """Without KoLeo, which is ill-conditioned while CLS tokens nearly coincide: losses, and directions of gradients.

    The bias of the keys has no gradient at all (softmax ignores it), so that of qkv is compared less closely.
    """
    found = {}
    for dtype in ('float32', 'bfloat16'):
        recipe = recipes.tiny(rows_per_group=2, prototypes=64, dtype=dtype)
        recipe['terms'] = [term for term in recipe['terms'] if term['term'] != 'koleo']
        recipe['towers']['image'] |= dict(width=64, layerscale=1.0)
        objective, optim, _ = recipes.parts(recipe)
        make_views = recipes.views(recipe, objective)
        state = recipes.start(objective, optim)

        @jax.jit
        def run(state, batch, objective=objective, make_views=make_views):
            views = lambda rows: make_views(rows, state.key, state.step)  # noqa: E731
            loss, _, _, grads = gradients(objective, state, batch, views, state.key, 1)
            return loss, grads

        found[dtype] = run(state, recipes.batch(16))
    (loss, grads), (half_loss, half_grads) = found['float32'], found['bfloat16']
    assert abs(half_loss - loss) <= 1e-3 * abs(loss)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    for (path, a), b in zip(paths, jax.tree.leaves(half_grads), strict=True):
        name = jax.tree_util.keystr(path)
        cosine = float((a * b).sum() / jnp.sqrt((a * a).sum() * (b * b).sum()))
        assert cosine > (0.99 if "'qkv']['bias']" in name else 0.999), (name, cosine)


def test_a_step_is_a_function_of_state_and_batch_alone(trained, run):
    *_, state, batch = trained
    one, metrics = run(state, batch)
    two, _ = run(state, batch)
    assert recipes.worst(one, two) == 0
    assert int(one.step) == 1 and jnp.all(jax.random.key_data(one.key) == jax.random.key_data(state.key))
    later, other = run(state._replace(step=state.step + 5), batch)  # another step, other views and masks
    assert float(other['loss']) != float(metrics['loss'])


def test_a_step_that_is_not_finite_advances_the_clock_alone(trained, run):
    *_, state, batch = trained
    broken = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(jnp.nan) if 'bias' in str(path[-1]) else x, state.params
    )
    after, metrics = run(state._replace(params=broken), batch)
    assert int(after.step) == 1 and int(after.skipped['total']) == 1 and int(after.skipped['in_a_row']) == 1
    for before, now in ((broken, after.params), (state.opt, after.opt), (state.aux, after.aux)):
        jax.tree.map(np.testing.assert_array_equal, before, now)
    again, _ = run(after._replace(params=state.params), batch)
    assert int(again.skipped['total']) == 1 and int(again.skipped['in_a_row']) == 0
    # the optimiser counts its own updates: the skipped step does not age its moments
    assert int(again.step) == 2 and int(jax.tree.leaves(again.opt)[0]) == 1


def test_teacher_follows_the_new_student(trained, run):
    *_, state, batch = trained
    after, _ = jax.device_get(run(state, batch))
    state = jax.device_get(state)
    for kind in ('towers', 'heads'):
        expected = jax.tree.map(
            lambda t, s: 0.9 * t + 0.1 * s,
            state.aux['teachers']['teacher'][kind],
            after.params[kind],
        )
        assert recipes.worst(after.aux['teachers']['teacher'][kind], expected) <= 1e-6


@pytest.mark.slow
def test_start_values_are_the_losses_of_uniform_outputs():
    recipe = recipes.tiny(prototypes=64)
    objective, optim, step = recipes.parts(recipe)
    state = recipes.start(objective, optim)
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if 'gain' in jax.tree_util.keystr(path) else x, state.params
    )
    aux = {**state.aux, 'teachers': {'teacher': {k: zero[k] for k in ('towers', 'heads')}}}
    _, metrics = jax.jit(step.train_step)(state._replace(params=zero, aux=aux), recipes.batch(4))
    for term, share in (('distill_cls', 1.0), ('distill_patch', 0.5)):
        assert float(metrics[f'term/{term}/start']) == pytest.approx(share * np.log(64), rel=1e-5)
        assert float(metrics[f'term/{term}/loss']) == pytest.approx(float(metrics[f'term/{term}/start']), rel=1e-5)
        assert float(metrics[f'term/{term}/entropy']) == pytest.approx(np.log(64), rel=1e-5)
    views = [float(metrics[f'term/distill_cls/loss/{v}']) for v in ('global~block', 'local')]
    assert views[0] / views[1] == pytest.approx(2 / 4)  # 2 crossed global pairs, 2 x 2 local ones


def test_only_what_the_terms_name_is_computed():
    seen = []

    def watched(recipe):
        objective = compose(recipe)
        for name, tower in objective.towers.items():

            class Watched(type(tower)):
                def encode(self, params, inputs, options):
                    seen.append((inputs[0].view.image.shape[2], inputs[0].mask is not None, options.train))
                    return super().encode(params, inputs, options)

            objective.towers[name] = Watched(**vars(tower))
        return objective

    def trace(recipe):
        objective = watched(recipe)
        seen.clear()
        key, step = jax.random.key(0), jnp.zeros((), jnp.int32)

        def features(batch):
            views, masks = recipes.views(whole, objective)(batch, key, step)
            return objective.features(*objective.init(key), views, masks, key, step)

        jax.eval_shape(features, recipes.batch(2))
        return sorted(seen)

    whole = recipes.tiny()
    # the student sees the masked global view, for CLS too; the teacher the unmasked one
    assert trace(whole) == [(16, False, True), (32, False, False), (32, True, True)]
    assert trace({**whole, 'terms': [whole['terms'][2]], 'heads': {}, 'teachers': {}}) == [(32, True, True)]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda r: r['terms'][0].update(teacher='teacher/image/globl/cls>dino'), "'globl'; did you mean 'global'"),
        (lambda r: r['terms'][0].update(teacher='tutor/image/global/cls>dino'), "no network 'tutor'"),
        (lambda r: r['terms'][0].update(teacher='teacher/image/global/cls>dinno'), "'dinno'; did you mean 'dino'"),
        (lambda r: r['terms'][2].update(of='student/image/cls'), 'is not the name of a feature'),
        (lambda r: r['terms'][2].update(wieght=2), "unknown key 'wieght'"),
        (lambda r: r['terms'][2].update(term='kolleo'), "did you mean 'koleo'"),
        (lambda r: r['terms'].append(dict(r['terms'][2])), 'give one of them another `name`'),
        (lambda r: r['terms'][0].update(centring='center'), "'sinkhorn' or 'centre'"),
        (lambda r: r['terms'][0].update(teacher_temperature=dict(rule='cosin')), "did you mean 'cosine'"),
        (lambda r: r['teachers']['teacher'].update(of=['towers/image']), "does not hold 'heads/dino'"),
        (lambda r: r['heads'].update(spare=r['heads']['dino']), 'no term names this head'),
        (lambda r: r['towers']['image'].update(widht=3), "unknown key 'widht'; did you mean 'width'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_sentences(change, words):
    recipe = recipes.tiny()
    change(recipe)
    with pytest.raises(UserError) as error:
        compose(recipe)
    assert words in str(error.value)


def test_rows_that_do_not_divide():
    check_rows({'cxr': 16}, 2, 2, 4)
    with pytest.raises(UserError, match='multiple of 16.* 16 or 32 would work'):
        check_rows({'cxr': 24}, 2, 2, 4)
    with pytest.raises(UserError, match=r'; 16 would work$'):
        check_rows({'cxr': 15}, 2, 2, 4)
