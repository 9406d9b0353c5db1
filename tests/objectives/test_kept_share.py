"""An encoder that reads some patches costs their share of the FLOPs, in every recipe that drops patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from medjax import config as configs, recipes
from medjax.models.passes import ordered
from medjax.training.flops import model_flops
from medjax.training.rehearsal import some_rows, without_data
from medjax.types import Input

MASKED = {  # recipe -> kinds of masks; `blocks` and `words` put other tokens in place of the masked ones
    name: kinds
    for name, path in sorted(recipes.shipped().items())
    if (kinds := {mask.mask for mask in configs.read(str(path)).masks.values()} - {'blocks', 'words'})
}


def test_all_masked_autoencoders_and_latent_prediction_are_here():
    assert {'mae_vitb16', 'medical_mae', 'medical_mae_small', 'ijepa_vitb16', 'spark_resnet50'} <= set(MASKED)


@pytest.mark.parametrize('name', MASKED)
def test_an_encoder_costs_the_share_of_the_patches_that_it_reads(name):
    """Products with weights cost the share of the tokens, attention the square of it; all patches are embedded once."""
    config, objective, make_views = without_data(configs.check(configs.resolve(configs.read(name), {})))
    views, masks = jax.eval_shape(
        make_views, some_rows(objective, config, config['rows_per_group']), jax.random.key(0), jnp.int32(0)
    )
    encoders = [
        one
        for one in ordered(objective.passes.values())
        if one.network == 'student' and not objective.towers[one.tower].reads and one.inputs[0].mask
    ]
    assert encoders
    for one in encoders:
        tower, (given,) = objective.towers[one.tower], one.inputs
        view, mask = views[given.view], masks[given.masked_view]

        def flops(view, mask, tower=tower):
            """Of the features of all tokens that the tower gives, forward and backward."""

            def total(params, view, mask):
                outputs = tower.apply(params, Input(view, mask), train=True, key=jax.random.key(0))
                return outputs['patches'].sum()

            return model_flops(total, jax.eval_shape(tower.init, jax.random.key(0)), view, mask)

        whole, masked = flops(view, None), flops(view, mask)
        if mask.mode == 'zero':
            assert masked == whole, 'convolutions run over whole maps'
            continue
        rows, columns = tower.grid(objective.views[given.view].size)
        patches, kept = rows * columns, mask.kept.shape[-1]
        crops, module = view.x.shape[0] * view.x.shape[1], tower.module
        more = int(module.family.cls)
        pixels = view.x.shape[-1] * view.x.shape[-2] * view.x.shape[-3] // patches
        embedding = 2 * 2 * crops * patches * pixels * module.width  # by the weights alone: no pixel has a gradient
        attention = 3 * 2 * 2 * crops * (patches + more) ** 2 * module.width * module.depth
        share = (kept + more) / (patches + more)
        expected = embedding + share * (whole - embedding - attention) + share**2 * attention
        assert masked == pytest.approx(expected, rel=1e-3)
        assert masked - embedding < share * (whole - embedding)
