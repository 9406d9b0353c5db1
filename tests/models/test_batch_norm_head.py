"""The head `mlp` with a BatchNorm against torch, and its statistics in a recipe."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.models.heads import mlp
from medjax.objectives.compose import compose
from medjax.training.step import make_step

WIDTH, HIDDEN, OUT = 7, 6, 5


def torch_head():
    """Linear, BN, ReLU, Linear with random weights and statistics; the same parameters for ours."""
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, HIDDEN), torch.nn.BatchNorm1d(HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, OUT)
    )
    for p in model.parameters():
        p.data = torch.randn_like(p)
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 1.5)
    return model


def params_of(model, read):
    """Our tree of some arrays of torch's modules: their values, or their gradients."""
    fc1, norm, _, fc2 = model
    return dict(
        fc1=dict(kernel=read(fc1.weight).T, bias=read(fc1.bias)),
        batch_norm1=dict(scale=read(norm.weight), bias=read(norm.bias)),
        fc2=dict(kernel=read(fc2.weight).T, bias=read(fc2.bias)),
    )


def stats_of(model):
    norm = model[1]
    return dict(batch_norm1=dict(mean=norm.running_mean.numpy().copy(), variance=norm.running_var.numpy().copy()))


def value(tensor):
    return tensor.detach().numpy().copy()


def close(got, expected, share=2e-5):
    """Differences are shares of the largest value of all arrays: the bias before a BatchNorm has the gradient 0."""
    most = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=share * most), got, expected)


@pytest.mark.parametrize('absent', [False, True])
def test_values_gradients_and_statistics_equal_torch(absent):
    """Absent rows do not count: torch gets the present rows alone."""
    torch = pytest.importorskip('torch')
    model = torch_head()
    rng = np.random.default_rng(0)
    x, cotangent = (rng.normal(size=(6, 2, n)).astype(np.float32) for n in (WIDTH, OUT))
    present = np.ones((6, 2), bool)
    if absent:
        present[1, 0] = present[4] = False
    head = mlp.build(WIDTH, OUT, hidden=HIDDEN, batch_norm=True)
    params, stats = params_of(model, value), stats_of(model)
    start = jax.eval_shape(head.init, jax.random.key(0))
    assert jax.tree.structure(params | dict(stats=stats)) == jax.tree.structure(start)
    names = jax.tree.structure(head.axes, is_leaf=lambda a: isinstance(a, tuple))
    assert names == jax.tree.structure(start)

    def ours(params, x):
        y, new = head.apply(params | dict(stats=stats), x, present=present, train=True)
        return jnp.where(present[..., None], y * cotangent, 0).sum(), (y, new)

    grads, (y, new) = run(jax.grad(ours, (0, 1), has_aux=True), params, x)
    theirs_x = torch.tensor(x[present], requires_grad=True)
    theirs = model(theirs_x)
    (theirs * torch.tensor(cotangent[present])).sum().backward()
    close(y[present], value(theirs))
    close(new, stats_of(model))
    close(grads[0], params_of(model, lambda p: p.grad.numpy()), 1e-4)
    close(grads[1][present], theirs_x.grad.numpy(), 1e-4)
    assert not np.asarray(grads[1])[~present].any()

    model.eval()  # outside of training: the running statistics
    result = run(head.apply, params | dict(stats=stats_of(model)), x)
    close(result, value(model(torch.tensor(x.reshape(-1, WIDTH)))).reshape(6, 2, OUT))


def test_the_heads_of_moco_v3_equal_torch():
    """Three layers without biases and a BatchNorm after each; that of the last has no scale and no bias."""
    torch = pytest.importorskip('torch')
    torch.manual_seed(1)
    sizes, layers = (WIDTH, HIDDEN, HIDDEN, OUT), []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [torch.nn.Linear(a, b, bias=False), torch.nn.BatchNorm1d(b, affine=i < 2), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    for p in model.parameters():
        p.data = torch.randn_like(p)
    head = mlp.build(WIDTH, OUT, hidden=HIDDEN, bias=False, batch_norm=True, layers=3, last_batch_norm=True)
    params = {f'fc{i}': dict(kernel=value(model[3 * i - 3].weight).T) for i in (1, 2, 3)}
    params |= {
        f'batch_norm{i}': dict(scale=value(model[3 * i - 2].weight), bias=value(model[3 * i - 2].bias)) for i in (1, 2)
    }
    start = run(head.init, jax.random.key(0))
    assert jax.tree.structure(params | dict(stats=start['stats'])) == jax.tree.structure(start)
    names = jax.tree.structure(head.axes, is_leaf=lambda a: isinstance(a, tuple))
    assert names == jax.tree.structure(start)
    x = np.random.default_rng(0).normal(size=(6, 2, WIDTH)).astype(np.float32)
    y, new = run(head.apply, params | dict(stats=start['stats']), x, train=True)
    close(y.reshape(-1, OUT), value(model(torch.tensor(x.reshape(-1, WIDTH)))))
    norms = {f'batch_norm{i}': model[3 * i - 2] for i in (1, 2, 3)}
    close(new, {name: dict(mean=value(n.running_mean), variance=value(n.running_var)) for name, n in norms.items()})
    with pytest.raises(
        UserError, match="mlp: layers=1: must be a whole number of at least 2; one layer is head='linear'"
    ):
        mlp.build(WIDTH, OUT, layers=1)


def test_without_present_elements_nothing_moves():
    head = mlp.build(WIDTH, OUT, batch_norm=True)
    params, x = run(head.init, jax.random.key(0)), np.ones((3, WIDTH), np.float32)
    y, stats = run(head.apply, params, x, present=np.zeros(3, bool), train=True)
    assert recipes.worst(stats, params['stats']) == 0
    np.testing.assert_array_equal(y, run(head.apply, params, x))


def recipe(**changes):
    """Two crops of a student whose head normalises over the batch, and a teacher, as in MoCo v3."""
    tiny = recipes.tiny(masks={})
    rows = 'student/image/local/cls>projector'
    return (
        tiny
        | dict(
            towers=dict(image=tiny['towers']['image'] | dict(depth=1, width=16)),
            heads=dict(projector=dict(head='mlp', out=8, hidden=12, batch_norm=True)),
            teachers=dict(teacher=dict(of=['towers/image', 'heads/projector'], rule='ema', momentum=0.9)),
            terms=[dict(term='pair_softmax', rows=rows, columns='teacher/image/global/cls>projector')],
        )
        | changes
    )


def test_statistics_move_in_a_step_and_the_teacher_follows():
    objective, optim, step = recipes.parts(recipe())
    assert objective.batch_statistics == ('heads.projector',)
    state = recipes.start(objective, optim)
    assert 'stats' not in state.params['heads']['projector'], 'neither gradient nor optimiser may see them'
    batch = recipes.batch(4)
    batch['cxr']['image/present'][1] = False
    run = jax.jit(step.train_step)
    after, metrics = run(state, batch)
    assert np.isfinite(metrics['loss'])
    old, new = (s.aux['stats']['student']['heads']['projector'] for s in (state, after))
    assert recipes.worst(new, old) > 0.01
    expected = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, state.aux['stats']['teacher']['heads']['projector'], new)
    assert recipes.worst(after.aux['stats']['teacher']['heads']['projector'], expected) <= 1e-5
    exported = objective.export(after.params, after.aux, 'student', ('heads/projector',))
    assert recipes.worst(exported['heads']['projector']['stats'], new) == 0
    # the picture of an absent row does not count
    batch['cxr']['image'][1] = 255 - batch['cxr']['image'][1]
    noisy, _ = run(state, batch)
    assert recipes.worst(noisy, after) <= 1e-6


def test_micro_batches_are_refused_with_the_name_of_the_head():
    objective, optim, step = recipes.parts(recipe())
    with pytest.raises(UserError, match=r'micro_batches=2: heads\.projector normalises by the statistics of the whole'):
        make_step(objective, optim, step.make_views, 2)


def test_a_term_cannot_run_such_a_head_itself():
    """Its statistics would not move: it must stand in the name of a feature."""
    cfg = recipe()
    cfg['heads'] = dict(match=dict(head='mlp', out=1, batch_norm=True))
    cfg['teachers'] = {}
    of = 'student/image/local/cls'
    cfg['terms'] = [dict(term='fusion.own_head', of=of, head='match')]
    with pytest.raises(
        UserError, match=r'^terms\[0\] \(fusion.own_head\).head: heads\.match normalises .*in a feature'
    ):
        compose(cfg)
