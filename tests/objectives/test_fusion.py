"""A recipe with a tower over image and text: it trains, and presence, micro-batches and shared parameters are right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from fusion_recipe import IMAGE, TEXT, batch, fusion, with_noise

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.training.step import gradients
from medjax.types import Input

ROWS = 16
SHARED = dict(
    term='pair_softmax',
    name='studies',
    rows=IMAGE,
    columns=TEXT,
    positives='study',
    temperature=dict(of='pair_softmax'),
)


def gradients_of(recipe, micro_batches=1):
    """(state, batch) -> loss, metrics, carry, gradients of a recipe."""
    objective, _, _ = recipes.parts(recipe)
    make_views = recipes.views(recipe, objective)

    @jax.jit
    def run(state, data):
        return gradients(
            objective, state, data, lambda rows: make_views(rows, state.key, state.step), state.key, micro_batches
        )

    return run


@pytest.fixture(scope='module')
def started():
    objective, optim, step = recipes.parts(fusion())
    return objective, step, recipes.start(objective, optim)


@pytest.fixture(scope='module')
def run():
    return gradients_of(fusion())


@pytest.fixture(scope='module')
def whole(run, started):
    return run(started[2], batch(ROWS))


@pytest.mark.slow
def test_it_trains(started):
    _, step, state = started
    run = jax.jit(step.train_step)
    lines = []
    for _ in range(3):
        state, metrics = run(state, batch(ROWS))
        lines.append({name: float(value) for name, value in metrics.items()})
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[-1]['term/pair_softmax/loss'] < lines[0]['term/pair_softmax/loss']
    for name in ('match', 'words'):
        assert 0 < lines[-1][f'term/{name}/loss'] < 2 * lines[-1][f'term/{name}/start'] + 1


@pytest.mark.slow
def test_every_module_gets_a_gradient(whole):
    *_, grads = whole
    for kind in ('towers', 'heads', 'terms'):
        for name, tree in grads[kind].items():
            unused = ['mask_token'] if name == 'image' else []
            for path, g in jax.tree_util.tree_leaves_with_path(tree):
                if path[-1].key not in unused:
                    assert np.abs(g).max() > 0, (name, path)


@pytest.mark.slow
def test_micro_batches_give_one_gradient(started, whole):
    loss, metrics, carry, grads = whole
    for micro_batches in (2, 4):
        split_loss, split_metrics, split_carry, split = gradients_of(fusion(), micro_batches)(started[2], batch(ROWS))
        assert abs(split_loss - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(split, grads) <= 1e-5
        assert set(split_metrics) == set(metrics)


@pytest.mark.slow
def test_noise_in_absent_rows_changes_nothing(run, started, whole):
    loss, metrics, _, grads = whole
    noisy_loss, noisy_metrics, _, noisy = run(started[2], with_noise(batch(ROWS)))
    assert float(metrics['term/match/rows']) == 10, 'of 16 rows 4 have no text and 2 no image'
    assert abs(noisy_loss - loss) <= 1e-6 * abs(loss)
    assert recipes.worst(noisy, grads) <= 1e-6
    assert recipes.worst(noisy_metrics, metrics) <= 1e-6


@pytest.mark.slow
def test_start_is_the_loss_of_the_best_constant_answer(whole):
    _, metrics, _, _ = whole
    pairs, rows = float(metrics['term/match/pairs']), float(metrics['term/match/rows'])
    p = rows / pairs
    assert pairs == 3 * rows
    assert float(metrics['term/match/start']) == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)), rel=1e-6)
    assert 0 < float(metrics['term/words/start']) < np.log(38)


@pytest.mark.slow
def test_a_row_that_is_alone_in_its_group_has_no_negative(run, started):
    data = batch(ROWS)
    for row in (0, 2):
        data['cxr']['text/report/length'][row] = 0  # of the first group no row has both
    data['cxr']['text/report/length'][4] = 0  # rows 5 and 7 are left in the second
    data['cxr']['text/report/length'][5] = 0
    loss, metrics, _, _ = run(started[2], data)
    assert np.isfinite(loss)
    assert int(metrics['term/match/rows']) == 6 and int(metrics['term/match/pairs']) == 3 * 6 - 2


@pytest.mark.slow
def test_two_terms_share_a_temperature():
    recipe = fusion(masks={}, terms=[fusion()['terms'][0], SHARED])
    for name in ('match', 'words'):
        del recipe['heads'][name]
    objective, optim, _ = recipes.parts(recipe)
    state = recipes.start(objective, optim)
    assert set(state.params['terms']['pair_softmax']) == {'log_scale'} and state.params['terms']['studies'] == {}
    _, metrics, _, both = gradients_of(recipe)(state, batch(ROWS))
    assert float(metrics['term/studies/temperature']) == float(metrics['term/pair_softmax/temperature'])
    temperatures = objective.temperatures(state.params['terms'], state.step)
    assert float(temperatures['studies']) == float(temperatures['pair_softmax'])
    # the positives of both terms are the diagonal, so each gives one half of the gradient
    silent = recipe | dict(terms=[recipe['terms'][0], SHARED | dict(weight=0.0)])
    *_, alone = gradients_of(silent)(state, batch(ROWS))
    slope, single = (float(g['terms']['pair_softmax']['log_scale']) for g in (both, alone))
    assert slope == pytest.approx(2 * single, rel=1e-5) and single != 0


@pytest.mark.slow
def test_the_tied_embedding_gets_both_gradients(started):
    """With respect to one array that both the tower and the head read, the gradient is the sum of both uses."""
    objective, _, state = started
    recipe = fusion()
    make_views = recipes.views(recipe, objective)

    @jax.jit
    def slope(tower_words, head_words):
        """The gradient of the masked words by the embeddings as the tower reads them, and as the head reads them."""

        def loss(tower_words, head_words):
            views, masks = make_views(batch(ROWS), state.key, state.step)
            image, text, fusion = (objective.towers[name] for name in ('image', 'text', 'fusion'))
            params = state.params
            words = params['towers']['text'] | dict(words=tower_words)
            a = image.apply(params['towers']['image'], Input(views['crop']))
            b = text.apply(words, Input(views['report'], masks['report~words']))
            inputs = Input(views['crop'], None, a), Input(views['report'], masks['report~words'], b)
            out = fusion.apply(params['towers']['fusion'], *inputs)
            logits = objective.heads['words'].apply(params['heads']['words'] | dict(tied=head_words), out['tokens'])
            masked = masks['report~words'].bits & out['present'][..., None]
            error = jax.nn.logsumexp(logits, axis=-1)
            error -= jnp.take_along_axis(logits, views['report'].x[..., None], axis=-1)[..., 0]
            return jnp.where(masked, error, 0).sum() / masked.sum()

        return jax.grad(loss, (0, 1))(tower_words, head_words)

    words = state.params['towers']['text']['words']
    by_tower, by_head = slope(words, words)
    silent = recipe | dict(terms=[term | dict(weight=float(term.get('name') == 'words')) for term in recipe['terms']])
    *_, grads = gradients_of(silent)(state, batch(ROWS))
    got = grads['towers']['text']['words']
    assert recipes.worst(got, by_tower + by_head) <= 1e-5
    assert min(float(jnp.abs(x).max()) for x in (by_tower, by_head)) > 1e-3 * float(jnp.abs(got).max())
    assert 'tied' not in grads['heads']['words']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(tie=None), "words: the key 'tie' is missing"),
        (dict(tie='words'), "heads.words.tie: 'words' is no parameter; write its path"),
        (dict(tie='towers/txt/words'), "heads.words.tie: there is no towers/txt; did you mean 'text'"),
        (dict(tie='towers/text/word'), "heads.words.tie: towers/text has no parameter 'word'"),
        (dict(vocabulary=40), 'tied to [38, 20] numbers and is made for [40, 20]; give it vocabulary=38, out=20'),
    ],
)
def test_mistakes_of_a_tied_head_are_sentences(change, words):
    recipe = fusion()
    recipe['heads']['words'] = recipe['heads']['words'] | change
    with pytest.raises(UserError) as error:
        compose(recipe)
    assert words in str(error.value) and 'heads.words' in str(error.value)


def test_a_teacher_holds_the_tower_that_its_head_is_tied_to():
    recipe = fusion(masks={}, teachers=dict(teacher=dict(of=['towers/image', 'heads/words'], rule='ema', momentum=0.9)))
    recipe['heads'] = dict(words=recipe['heads']['words'] | dict(out=20))
    recipe['terms'] = [dict(term='koleo', of='teacher/image/crop/cls>words')]
    with pytest.raises(UserError) as error:
        compose(recipe)
    assert "the teacher 'teacher' does not hold 'towers/text'; add it to teachers.teacher.of" in str(error.value)
    recipe['teachers']['teacher']['of'].append('towers/text')
    assert compose(recipe).teachers['teacher'].of == ('towers/image', 'heads/words', 'towers/text')


@pytest.mark.parametrize('at', ['', '@words'])
def test_padding_of_texts_enters_no_statistics_of_a_head(at):
    """It is refused where the tokens of a whole text go through a head with statistics; those of a mask are right."""
    feature = f'student/text/report~words/tokens{at}>norm'
    recipe = fusion(
        heads=dict(norm=dict(head='mlp', out=3, batch_norm=True)), terms=[dict(term='fusion.mean', of=feature)]
    )
    objective, optim, _ = recipes.parts(recipe)
    make_views = recipes.views(recipe, objective)

    def features():
        state = recipes.start(objective, optim)
        views, masks = make_views(batch(ROWS), state.key, state.step)
        return objective.features(state.params, state.aux, views, masks, state.key, state.step)[0].features

    if at:
        assert jax.eval_shape(features)[feature].shape == (4, 1, 32, 3)
    else:
        with pytest.raises(UserError, match="the head 'norm' .* padding would count .* tokens@mask>norm"):
            jax.eval_shape(features)
