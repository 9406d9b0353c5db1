"""Public folders of every family: what they describe, and their features against the original classes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from programs import run
from public_models import FAMILIES, shaken

from medjax.models import build
from medjax.types import Input, View
from medjax.weights import load

torch = pytest.importorskip('torch')


QUICK = ('dinov2 registers', 'timm siglip', 'timm dinov3 bias', 'resnet')
PARAMS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope='module', params=PARAMS, ids=str)
def published(request, tmp_path_factory):
    family = FAMILIES[request.param]
    model = shaken(family.make())
    folder = tmp_path_factory.mktemp('public') / request.param.replace(' ', '-')
    family.save(model, folder)
    return family, model, folder


def test_features_equal_the_original(published):
    """The tower that the folder describes gives the features of the original class, at other sizes too."""
    family, model, folder = published
    params, meta = load.as_export(folder)
    tower = build.tower(meta['towers']['image'], meta['image']['channels'], 'towers.image')
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    assert jax.tree.structure(wanted) == jax.tree.structure(params['towers']['image'])
    for height, width in family.sizes:
        x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            cls, patches = family.features(model, torch.from_numpy(x).permute(0, 3, 1, 2))
        view = View(x[:, None, None], np.arange(2, dtype=np.uint32), np.ones((2, 1), bool), None, {})
        out = run(tower.apply, params['towers']['image'], Input(view))
        for got, expected in ((out['cls'][:, 0], cls), (out['patches'][:, 0], patches)):
            assert got.shape == tuple(expected.shape)
            np.testing.assert_allclose(got, expected.numpy(), atol=2e-5 * np.abs(expected.numpy()).max())
