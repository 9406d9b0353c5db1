"""Convolutional towers under a mask: they see nothing of masked cells, and batch norms count the other places alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.models.convolution import BatchNorm, Places
from medjax.types import Input, Mask, View
from medjax.views import make

RESNET = dict(tower='resnet', variant='18', stem=4, depths=[1, 1])  # cells of 8 px
CONVNEXT = dict(tower='convnext', depths=[1, 1], widths=[4, 8])
ACTIVE = np.float32([[[1, 0], [0, 1]], [[0, 1], [0, 0]], [[1, 1], [1, 1]]])


def pictures(rows: int, size: tuple[int, int] = (16, 16)) -> View:
    x = np.random.default_rng(0).normal(size=(rows, 1, 1, *size, 1)).astype(np.float32)
    return View(x, np.arange(rows, dtype=np.uint32), np.ones((rows, 1), bool), None, {})


def masked(active: np.ndarray) -> Mask:
    bits = (active == 0).reshape(len(active), 1, -1)
    return Mask(bits, np.zeros((len(active), 1, 1), np.int32), np.zeros((len(active), 1, 1), np.float32), mode='zero')


def test_batch_norm_under_a_mask_equals_float64_over_the_places_that_stay():
    """The last image is absent: its places do not count. The running variance is the unbiased one."""
    x = np.random.default_rng(0).normal(2, 3, (3, 4, 4, 2)).astype(np.float32)
    places = Places(np.float32([1, 1, 0]), ACTIVE)
    module = BatchNorm(True, np.float32)
    params = dict(params=dict(scale=np.float32([2, 3]), bias=np.float32([1, -1])))
    stats = dict(stats=dict(mean=np.zeros(2, np.float32), variance=np.ones(2, np.float32)))
    y, moved = run(lambda: module.apply(params | stats, x, places, mutable=['stats']))
    at = np.stack([[[ACTIVE[s, i // 2, j // 2] for j in range(4)] for i in range(4)] for s in range(3)]) > 0
    seen = np.float64(x)[at & np.array([True, True, False])[:, None, None]]  # [places,C]
    mean, variance = seen.mean(0), seen.var(0)
    expected = np.where(at[..., None], (x - mean) / np.sqrt(variance + 1e-5) * [2, 3] + [1, -1], 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved['stats']['mean'], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(moved['stats']['variance'], 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize('cfg', [RESNET, CONVNEXT], ids=['resnet', 'convnext'])
def test_what_is_masked_changes_nothing(cfg):
    tower = build.tower(cfg, 1, 'towers.image')
    params, seen = jax.tree.map(lambda p: p + 0.1, tower.init(jax.random.key(0))), pictures(3)
    hidden = np.kron(ACTIVE, np.ones((8, 8)))[:, None, None, :, :, None] == 0
    noise = np.random.default_rng(1).normal(size=seen.x.shape).astype(np.float32)

    @jax.jit
    def outputs(x):
        want = ('levels/1', 'levels/2')
        return tower.apply(params, Input(seen._replace(x=x), masked(ACTIVE)), train=True, want=want)

    first, second = outputs(seen.x), outputs(np.where(hidden, noise, seen.x))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    level = np.asarray(first['levels/1'])[:, 0]
    at = np.kron(ACTIVE, np.ones((2, 2))) > 0
    assert (level[~at] == 0).all() and (level[at] != 0).any()
    patches = np.asarray(first['levels/2'])[:, 0].reshape(3, 4, -1)
    mean = [patches[s][ACTIVE[s].reshape(-1) > 0].mean(0) for s in range(3)]
    if cfg == CONVNEXT:  # its norm, of which all weights are 1.1 and all biases .1
        mean = [1.1 * (x - x.mean()) / np.sqrt(x.var() + 1e-6) + 0.1 for x in mean]
    np.testing.assert_allclose(first['cls'][:, 0], mean, rtol=1e-4, atol=1e-5)


def test_every_crop_has_a_mask_of_its_own():
    views = make.kinds(dict(crop=dict(view='crop', part='images', size=56, count=2)))
    masks = {'crop~random': dict(mask='random', mode='zero', share=0.6)}
    makes = make.build(views, masks, dict(channels=1, mean=0.5, std=0.25), {'crop': (7, 7)}, 2)
    view = View(np.zeros((4, 2, 1, 1, 1, 1)), np.arange(4, dtype=np.uint32), np.ones((4, 2), bool), None, {})
    mask = run(lambda key: makes.mask('crop~random', makes.drawn('crop~random', view, key, {})), jax.random.key(0))
    bits = np.asarray(mask.bits)
    assert mask.mode == 'zero' and (bits.sum(-1) == 49 - 20).all()  # round(19.6) stay
    assert len(np.unique(bits.reshape(8, 49), axis=0)) == 8


def decoder(**options):
    cfg = dict(image=RESNET, decoder=dict(tower='unet_decoder', reads=['image'], width=16) | options)
    return build.towers(cfg, 1)['decoder']


@pytest.mark.parametrize(
    ('mistake', 'words'),
    [
        (lambda: decoder(width=12), 'unet_decoder: width=12: it is halved 3 times .* a multiple of 8'),
        (lambda: decoder(norm='group'), "unet_decoder: unknown norm 'group'; known: batch, layer"),
        (
            lambda: build.towers(dict(text=dict(tower='text'), decoder=dict(tower='unet_decoder', reads=['text'])), 1),
            r"unet_decoder: it reads one convolutional tower, such as a ResNet: reads=\['image'\]",
        ),
        (lambda: apply(size=(16, 20)), 'sides of an image must be multiples of 8, .* this view has 16 x 20 px'),
        (lambda: apply(mode='drop'), "it takes those of mode 'zero' alone, .*; this one has the mode 'drop'"),
        (lambda: build.tower(RESNET | dict(widths=[4]), 1, 'x'), r'resnet: widths=\(4,\): there are 2 stages'),
        (lambda: build.tower(CONVNEXT | dict(widths=[4]), 1, 'x'), r'convnext: widths=\(4,\): there are 2 stages'),
        (lambda: apply(CONVNEXT, size=(7, 16)), '7 x 16 px are too few; an image needs 8 x 8 px at least'),
        (lambda: build.tower(RESNET | dict(widths=[4, 0]), 1, 'x'), 'must be whole numbers of at least 1'),
    ],
)
def test_mistakes_are_sentences(mistake, words):
    with pytest.raises(UserError, match=words):
        mistake()


def apply(cfg=RESNET, size=(16, 16), mode='zero'):
    tower = build.tower(cfg, 1, 'towers.image')
    mask = Mask(np.zeros((1, 1, 4), bool), None, None, mode=mode)
    params = jax.eval_shape(tower.init, jax.random.key(0))
    return jax.eval_shape(lambda params: tower.apply(params, Input(pictures(1, size=size), mask)), params)
