"""Programs of recipes and of probes, compiled for this machine, and the overrides that give a recipe a few rows."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from medjax import recipes
from medjax.aot import probes, programs
from medjax.aot.hlo import Program

ROOT = Path(__file__).parents[2]
SMALL = ('towers.image.width=32', 'towers.image.depth=4', 'towers.image.heads=2')


@pytest.mark.parametrize('name', probes.FITS)
def test_the_fits_of_probes(name):
    """One device takes them, however many there are; shapes are those of the records."""
    lowered = probes.lower(name, jax.devices(), records=60)
    arguments = [x.shape for x in jax.tree.leaves(lowered.in_avals)]
    assert (60, probes.WIDTH) in arguments or (probes.WIDTH, 60) in arguments
    assert Program(lowered.compile().as_text()).summary().collectives == []


def test_the_encoders_of_probes():
    image = probes.lower('images', jax.devices()[:2], programs.prepare('tiny', SMALL, canvas=64))
    given = image.in_avals[0]
    assert given[1].shape == (2 * 32, 64, 64, 1) and set(given[0]) == {'image'}
    assert {name: x.shape for name, x in image.out_info.items()} == {'cls': (64, 4, 32), 'patches': (64, 32)}
    small = ('towers.text.width=32', 'towers.text.depth=1', 'towers.text.heads=2')
    text = probes.lower('texts', jax.devices()[:1], programs.prepare('chexzero', small))
    assert text.in_avals[0][1].shape[1] == probes.LENGTH and text.out_info.shape[1] == 32


@pytest.mark.parametrize('name', sorted(recipes.shipped()))
def test_every_recipe_with_a_few_rows(name):
    """Whole groups, in every part of the batch."""
    config = programs.prepare(name, programs.few_rows(name, 32)).config
    rows = [part['rows'] for part in config['data'].values()]
    assert sum(rows) == config['batch_size'] and all(0 < n < 32 + config['rows_per_group'] for n in rows)
    assert all(n % config['rows_per_group'] == 0 for n in rows)


def test_a_term_can_be_left_out():
    terms = programs.prepare('tiny', without='koleo').config['terms']
    assert len(terms) == 2 and len(programs.prepare('tiny').config['terms']) == 3
