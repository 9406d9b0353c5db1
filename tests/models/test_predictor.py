"""The tower `predictor`: what each prediction depends on. Arrays of the originals have its numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.types import Input, Mask, View
from medjax.views import masks
from medjax.weights import export, load, names
from medjax.weights.families import vit

SIDE, KEPT, ROOM, SETS, D = 4, 5, 3, 2, 16
ROWS = ('as it is', 'gamma of crop 0', 'box of crop 1', 'flip of crop 1', 'context of crop 0')


def inputs(own_sets):
    """Rows of two crops with two contexts each that differ in what their names say."""
    rng, b, v, contexts = np.random.default_rng(0), len(ROWS), 2, 2
    meta = dict(
        boxes=np.array([[[4, 6, 20, 30], [8, 2, 20, 30]]], np.float32).repeat(b, 0),
        flip=np.zeros((b, v), bool), gamma=np.full((b, v), 1.2, np.float32), blur=np.full((b, v), 0.4, np.float32),
    )  # fmt: skip
    meta['gamma'][1, 0] = 0.7
    meta['boxes'][2, 1, 0] = 11
    meta['flip'][3, 1] = True
    tokens = rng.normal(size=(1, v, contexts, KEPT, D)).repeat(b, 0).astype(np.float32)
    tokens[4, 0] += 1
    count = SETS * contexts if own_sets else SETS
    bits = np.zeros((count, b, v, SIDE**2), bool)
    for k in range(count):
        bits[k, :, :, rng.permutation(SIDE**2)[:ROOM]] = True
    index, weight = (jnp.stack(x, 1) for x in zip(*(masks.positions(one, v * ROOM, ROOM) for one in bits), strict=True))
    kept = np.arange(KEPT, dtype=np.int32)[None, None, None].repeat(b, 0).repeat(v, 1).repeat(contexts, 2)
    mask = Mask(bits.any(0), index, weight, kept, mode='drop', crop_room=ROOM, own_sets=own_sets)
    view = View(
        np.zeros((b, v, 1, 8 * SIDE, 8 * SIDE, 1), np.float32), np.arange(b, dtype=np.uint32), np.ones((b, v), bool),
        None, meta,
    )  # fmt: skip
    outputs = dict(patches=tokens.reshape(b, v * contexts, KEPT, D), present=np.ones((b, v * contexts), bool))
    return Input(view, mask, outputs)


@pytest.mark.parametrize(
    ('own_sets', 'condition', 'positions'),
    [(True, 'replace', 'relative'), (False, 'add', 'relative_scale'), (False, 'token', 'relative')],
)
def test_what_a_prediction_depends_on(own_sets, condition, positions):
    """Predictions of crop b from crop a read the context and the changes of a, and the place of b relative to a."""
    sizes = dict(width=D, depth=1, heads=2)
    section = dict(
        image=dict(tower='vit', variant='S/8', family='ijepa', **sizes),
        predictor=dict(
            tower='predictor', reads=['image'], positions=positions, condition=condition, told=['gamma', 'blur'],
            **sizes,
        ),
    )  # fmt: skip
    tower, given = build.towers(section, 1)['predictor'], inputs(own_sets)

    def outputs(key, given):
        params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), tower.init(key))
        return tower.apply(params, given, want=['others'])

    found = run(outputs, jax.random.key(0), given)
    shape = (len(ROWS), 2, 2 * SETS, ROOM, D) if own_sets else (len(ROWS), 4, SETS, ROOM, D)
    assert found['cls'].shape == (len(ROWS), 4, D)
    changed = {}
    for name in ('patches', 'others'):
        assert found[name].shape == shape
        x = np.asarray(found[name]).reshape(len(ROWS), 2, -1)  # by the crop of the targets
        changed[name] = np.abs(x - x[:1]).max(-1) > 1e-5  # bool [rows,2]
    assert changed['patches'].tolist() == [[0, 0], [1, 0], [0, 0], [0, 0], [1, 0]]
    assert changed['others'].tolist() == [[0, 0], [0, 1], [1, 1], [1, 1], [0, 1]]
    own = np.asarray(found['patches']).reshape(len(ROWS), 2, 2, SETS * ROOM, D)  # by crop and context, either way
    np.testing.assert_allclose(np.asarray(found['cls']).reshape(len(ROWS), 2, 2, D), own.mean(3), atol=1e-5)


@pytest.mark.parametrize('options', [dict(), dict(positions='relative_scale'), dict(condition='token')], ids=str)
def test_weights_of_chexworld_are_described_and_read(options):
    sizes = dict(width=D, depth=2, heads=2)
    predictor = dict(
        tower='predictor', reads=['image'], mlp_ratio=4.0, positions='relative', condition='replace',
        told=list(vit.CHANGES), **sizes,
    ) | options  # fmt: skip
    section = dict(image=dict(tower='vit', variant='S/8', family='ijepa', **sizes), predictor=predictor)
    tower = build.towers(section, 1)['predictor']
    shapes, rng = jax.eval_shape(tower.init, jax.random.key(0)), np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    state = dict(names.write(vit.CHEXWORLD_PREDICTOR, export.flatten(tree)))
    state['predictor_pos_embed'] = np.zeros((1, 16, D), np.float32)
    weights = load.of_state(state)
    assert weights.modules == ('towers/predictor',) and weights.section('towers/predictor', 2) == predictor
    jax.tree.map(np.testing.assert_array_equal, weights.read('towers/predictor', shapes), tree)
    state['policy_net.0.weight'] = state['policy_net.0.weight'][:, :-1]
    with pytest.raises(UserError, match='not that of the 5 changes of CheXWorld'):
        load.of_state(state).section('towers/predictor', 2)
