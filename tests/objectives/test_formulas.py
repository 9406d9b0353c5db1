"""The plain formulas against loops in float64, the terms against the plain formulas, and the docstrings' examples."""

from __future__ import annotations

import doctest
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair_cases import COLUMNS, ROWS, STEP
from programs import run
from reference_losses import close, context, loss_of, plain_view

from medjax.objectives import formulas, numerics
from medjax.objectives.terms import distill_cls, distill_patch, koleo, pair_sigmoid, pair_softmax
from medjax.views.masks import from_bits

B, D = 6, 4  # rows, length of an embedding
S, T, K = 4, 2, 5  # crops that the student sees, crops that the teacher sees, prototypes


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_examples_in_the_docstrings():
    public = [name for name, f in inspect.getmembers(formulas, inspect.isfunction)
              if f.__module__ == formulas.__name__ and not name.startswith('_')]  # fmt: skip
    documented = [test.name.split('.')[-1] for test in doctest.DocTestFinder().find(formulas) if test.examples]
    assert sorted(documented) == sorted(public) != []
    results = doctest.testmod(formulas)
    assert results.failed == 0 and results.attempted >= 2 * len(public)


# The definitions, as loops over float64 numbers.


def unit_rows(x):
    return [row / math.sqrt(sum(value**2 for value in row)) for row in x]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def cross_entropy(q, logits, temperature):
    p = softmax([x / temperature for x in logits])
    return -sum(q[k] * math.log(p[k]) for k in range(len(q)))


def clip_by_loops(image, text, scale):
    x, y, n = unit_rows(image), unit_rows(text), len(image)
    total = 0.0
    for i in range(n):
        to_texts = softmax([scale * dot(x[i], y[j]) for j in range(n)])
        to_images = softmax([scale * dot(x[j], y[i]) for j in range(n)])
        total -= math.log(to_texts[i]) + math.log(to_images[i])
    return total / (2 * n)


def siglip_by_loops(image, text, scale, bias):
    x, y, n = unit_rows(image), unit_rows(text), len(image)
    total = 0.0
    for i in range(n):
        for j in range(n):
            s = scale * dot(x[i], y[j]) + bias
            total += math.log(1 + math.exp(-s if i == j else s))
    return total / n


def koleo_by_loops(x):
    x = unit_rows(x)
    total = 0.0
    for b in range(len(x)):
        nearest = max((j for j in range(len(x)) if j != b), key=lambda j: dot(x[b], x[j]))
        distance = math.sqrt(sum((x[b][d] - x[nearest][d] + 1e-8) ** 2 for d in range(len(x[b]))))
        total -= math.log(distance + 1e-8)
    return total / len(x)


def sinkhorn_by_loops(logits, temperature, iterations):
    rows, columns = range(len(logits)), range(len(logits[0]))
    q = [[math.exp(x / temperature) for x in row] for row in logits]
    for _ in range(iterations):
        for k in columns:
            total = sum(q[r][k] for r in rows)
            for r in rows:
                q[r][k] /= total * len(columns)
        for r in rows:
            total = sum(q[r][k] for k in columns)
            for k in columns:
                q[r][k] /= total * len(rows)
    return [[value * len(rows) for value in row] for row in q]


def dino_by_loops(student, targets, temperature, same_crops):
    total, pairs = 0.0, 0
    for s in range(student.shape[1]):
        for t in range(targets.shape[1]):
            if same_crops and s == t:
                continue
            pairs += 1
            for b in range(len(student)):
                total += cross_entropy(targets[b, t], student[b, s], temperature) / len(student)
    return total / pairs


def ibot_by_loops(student, targets, mask, temperature):
    total = 0.0
    for c in range(len(student)):
        masked = [i for i in range(student.shape[1]) if mask[c, i]]
        for i in masked:
            total += cross_entropy(targets[c, i], student[c, i], temperature) / len(masked)
    return total / len(student)


def slopes(f, arguments, argument, step=1e-5):
    """The gradient of `f` by one of its arguments: central differences in float64, exact to about 1e-9."""
    x = np.array(arguments[argument], np.float64)
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            values.append(f(*arguments[:argument], moved, *arguments[argument + 1 :]))
        out[index] = (values[0] - values[1]) / (2 * step)
    return out


def check_formula(formula, by_loops, arguments, differentiable):
    """Value and gradients of a plain formula are those of the loops."""
    plain = jax.jit(jax.value_and_grad(lambda *inputs: formula(*inputs, *arguments[differentiable:]),
                                       tuple(range(differentiable))))  # fmt: skip
    value, gradients = plain(*[jnp.float32(x) for x in arguments[:differentiable]])
    close(value, by_loops(*arguments), 1e-5, 'value')
    for i, gradient in enumerate(gradients):
        close(gradient, slopes(by_loops, arguments, i), 1e-5, f'gradient by argument {i}')


def test_clip_loss_by_loops():
    check_formula(formulas.clip_loss, clip_by_loops, [normal(B, D), normal(B, D, seed=1), 5.0], 3)


def test_siglip_loss_by_loops():
    check_formula(formulas.siglip_loss, siglip_by_loops, [normal(B, D), normal(B, D, seed=1), 5.0, -3.0], 4)


def test_koleo_by_loops():
    check_formula(formulas.koleo, koleo_by_loops, [normal(B, D)], 1)


def test_koleo_of_duplicates_and_of_one_row_is_finite():
    for x in (np.ones((3, D), np.float32), np.ones((1, D), np.float32), np.zeros((3, D), np.float32)):
        value, gradient = run(jax.value_and_grad(formulas.koleo), x)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('iterations', [1, 3])
def test_sinkhorn_by_loops(iterations):
    logits = normal(B, K)
    sinkhorn = jax.jit(lambda x: formulas.sinkhorn(x, 0.5, iterations))
    close(sinkhorn(logits), sinkhorn_by_loops(logits, 0.5, iterations), 1e-5, 'targets')
    gradient = run(jax.grad(lambda x: (sinkhorn(x) ** 2).sum()), np.float32(logits))
    assert not gradient.any()
    assert np.isfinite(sinkhorn(1000.0 * logits)).all()  # exp(logits / temperature) would overflow


def test_centred_softmax_by_loops():
    logits, centre = normal(B, K), normal(K, seed=1)
    expected = [softmax([(x - c) / 0.5 for x, c in zip(row, centre)]) for row in logits]
    close(formulas.centred_softmax(logits, 0.5, centre), expected, 1e-5, 'targets')
    assert not run(jax.grad(lambda x: (formulas.centred_softmax(x, 0.5) ** 2).sum()), np.float32(logits)).any()


@pytest.mark.parametrize('same_crops', [True, False])
def test_dino_loss_by_loops(same_crops):
    targets = np.float64(run(formulas.centred_softmax, normal(B, T, K, seed=1), 0.5))
    check_formula(formulas.dino_loss, dino_by_loops, [normal(B, S, K), targets, 0.2, same_crops], 1)


def test_one_crop_alone_has_no_dino_loss():
    x = jnp.ones((B, 1, K))
    with pytest.raises(ValueError, match='same_crops=False'):
        formulas.dino_loss(x, x)


MASK = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]], bool)  # the second crop is not masked


def test_ibot_loss_by_loops():
    targets = np.float64(run(formulas.centred_softmax, normal(*MASK.shape, K, seed=1), 0.5))
    check_formula(formulas.ibot_loss, ibot_by_loops, [normal(*MASK.shape, K), targets, MASK, 0.2], 1)


# The terms on their simple case.


def check_term(formula, term_loss, *inputs):
    """Value and gradients of a term are those of the plain formula."""
    inputs = [jnp.float32(x) for x in inputs]
    numbers = tuple(range(len(inputs)))
    value, gradients = jax.jit(jax.value_and_grad(formula, numbers))(*inputs)
    term_value, term_gradients = jax.jit(jax.value_and_grad(term_loss, numbers))(*inputs)
    close(term_value, value, 1e-5, 'value')
    for i in numbers:
        close(term_gradients[i], gradients[i], 1e-5, f'gradient by input {i}')


def pair_features(image, text):
    return {ROWS: image[:, None], COLUMNS: text[:, None]}


PAIR_VIEWS = {'crop': plain_view(B, 1), 'report': plain_view(B, 1)}


def test_pair_softmax_is_clip_loss():
    term = pair_softmax.build(context(1), ROWS, COLUMNS, temperature=dict(learned=0.07))

    def term_loss(image, text, log_scale):
        return loss_of(term, pair_features(image, text), PAIR_VIEWS, params={'log_scale': log_scale})[0]

    def formula(image, text, log_scale):
        return formulas.clip_loss(image, text, jnp.exp(log_scale))

    check_term(formula, term_loss, normal(B, D), normal(B, D, seed=1), math.log(5.0))


def test_pair_sigmoid_is_siglip_loss():
    term = pair_sigmoid.build(context(1), ROWS, COLUMNS)

    def term_loss(image, text, log_scale, bias):
        params = {'log_scale': log_scale, 'bias': bias}
        return loss_of(term, pair_features(image, text), PAIR_VIEWS, params=params)[0]

    def formula(image, text, log_scale, bias):
        return formulas.siglip_loss(image, text, jnp.exp(log_scale), bias)

    check_term(formula, term_loss, normal(B, D), normal(B, D, seed=1), math.log(5.0), -3.0)


def test_koleo_term_is_koleo():
    of = 'student/image/global/cls'
    term = koleo.build(context(1), of)

    def term_loss(x):
        return loss_of(term, {of: x}, {'global': plain_view(B, 2)})[0]

    def formula(x):  # the term adds up the views
        return formulas.koleo(x[:, 0]) + formulas.koleo(x[:, 1])

    check_term(formula, term_loss, normal(B, 2, D))


def test_numerics_sinkhorn_is_sinkhorn():
    logits = np.float32(normal(B, K))
    for iterations in (1, 3):

        def both(z, n=iterations):
            potential = numerics.sinkhorn_potential(lambda z: z, z, jnp.ones(B), jnp.float32(0.5), K, n)
            return jax.nn.softmax(z / 0.5 + potential), formulas.sinkhorn(z, 0.5, n)

        probabilities, expected = run(both, logits)
        close(probabilities, expected, 1e-5, f'{iterations} iterations')


def targets_of(centring, logits, centre):
    """The plain targets of teacher logits [...,K], at the temperature 0.5."""
    if centring == 'centre':
        return formulas.centred_softmax(logits, 0.5, centre)
    return formulas.sinkhorn(logits.reshape(-1, K), 0.5).reshape(logits.shape)


@pytest.mark.parametrize('centring', ['centre', 'sinkhorn'])
@pytest.mark.parametrize('same_crops', [True, False])
def test_distill_cls_is_dino_loss(centring, same_crops):
    student_views = ['global', 'local'] if same_crops else ['local']
    names = [f'student/image/{view}/cls>dino' for view in student_views]
    teacher_name = 'teacher/image/global/cls>dino'
    teacher, centre = jnp.float32(normal(B, T, K, seed=1)), jnp.float32(normal(K, seed=2))
    term = distill_cls.build(context(K), names, teacher_name, 0.5, 0.2, centring)
    state = term.init(jax.random.key(0))[1] | ({'centre': centre} if centring == 'centre' else {})
    views = {'global': plain_view(B, T), 'local': plain_view(B, S - T if same_crops else S)}

    def term_loss(student):
        crops = jnp.split(student, [T], axis=1) if same_crops else [student]
        features = {**dict(zip(names, crops)), teacher_name: teacher}
        return loss_of(term, features, views, state=state, step=STEP)[0]

    def formula(student):
        return formulas.dino_loss(student, targets_of(centring, teacher, centre), 0.2, same_crops)

    check_term(formula, term_loss, normal(B, S, K))


@pytest.mark.parametrize('centring', ['centre', 'sinkhorn'])
def test_distill_patch_is_ibot_loss(centring):
    student_name = 'student/image/global~block/patches@block>dino'
    teacher_name = 'teacher/image/global/patches@block>dino'
    teacher, centre = jnp.float32(normal(*MASK.shape, K, seed=1)), jnp.float32(normal(K, seed=2))
    term = distill_patch.build(context(K), student_name, teacher_name, 0.5, 0.2, centring)
    state = term.init(jax.random.key(0))[1] | ({'centre': centre} if centring == 'centre' else {})
    mask = run(lambda bits: from_bits(bits, 1, int(MASK.sum())), MASK[:, None])

    def term_loss(student):
        features = {student_name: student[MASK][None, None], teacher_name: teacher[MASK][None, None]}
        views = {'global': plain_view(len(MASK), 1)}
        return loss_of(term, features, views, {'global~block': mask}, state=state, step=STEP)[0]

    def formula(student):
        masked = targets_of(centring, teacher[MASK], centre)  # Sinkhorn balances the masked tokens alone
        targets = jnp.zeros_like(teacher).at[MASK].set(masked)
        return formulas.ibot_loss(student, targets, jnp.asarray(MASK), 0.2)

    check_term(formula, term_loss, normal(*MASK.shape, K))
