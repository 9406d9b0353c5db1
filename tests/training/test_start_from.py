"""Weights to start from: parts of a stack, and towers that a recipe takes from a published folder."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import recipes
from fusion_recipe import fusion
from public_models import FAMILIES, shaken

from medjax import config as configs
from medjax.errors import UserError
from medjax.models import build
from medjax.training.state import start_from
from medjax.weights import export

BERT = dict(tower='text', family='bert', width=20, depth=6, heads=2, mlp_ratio=2.0, vocabulary=38, context=8)


@pytest.fixture(scope='module')
def text_export(tmp_path_factory):
    """An export of a text tower of six layers; the layer i of every stack holds the number i."""
    params = build.tower(BERT, 1, 'x').init(jax.random.key(3))
    params['blocks'] = jax.tree.map(
        lambda x: np.zeros(x.shape) + np.arange(6.0).reshape(6, *[1] * (x.ndim - 1)), params['blocks']
    )
    folder = tmp_path_factory.mktemp('text') / '7'
    meta = dict(step=7, towers=dict(text=BERT), image=dict(channels=1))
    return export.save(folder, {'towers': {'text': jax.tree.map(np.asarray, params)}}, meta)


@pytest.fixture(scope='module')
def started():
    """A recipe whose fusion tower is a text tower of three layers with attention to images."""
    objective, optim, _ = recipes.parts(fusion())
    return objective, recipes.start(objective, optim)


def test_layers_of_a_stack(text_export, started):
    objective, state = started
    ours = state.params['towers']['fusion']
    assert 'cross' in ours['blocks'], 'the blocks of the fusion tower have more than those of a text tower'
    depth = len(jax.tree.leaves(ours['blocks'])[0])
    take = [f'towers/fusion/blocks=towers/text/blocks[{6 - depth}:6]']
    loaded, notes = start_from(str(text_export), state, objective.towers, take=take)
    for name in ('attn', 'mlp', 'norm1', 'norm2'):
        for leaf in jax.tree.leaves(loaded.params['towers']['fusion']['blocks'][name]):
            np.testing.assert_array_equal(np.asarray(leaf).reshape(depth, -1)[:, 0], np.arange(6 - depth, 6))
    jax.tree.map(
        np.testing.assert_array_equal, loaded.params['towers']['fusion']['blocks']['cross'], ours['blocks']['cross']
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.params['towers']['text'], state.params['towers']['text'])
    (note,) = notes
    new = sorted(
        name
        for name in export.flatten(ours)
        if not name.startswith(('blocks/attn', 'blocks/mlp', 'blocks/norm1', 'blocks/norm2'))
    )
    assert sorted(note.partition('new in towers/fusion stay ')[2].split(', ')) == new


@pytest.mark.parametrize(
    ('take', 'words'),
    [
        ('towers/fusion/blocks=towers/text/blocks[4:9]', 'has 6 layers, not 4 to 9'),
        ('towers/fusion/blocks=towers/text/blocks', r'of another shape: blocks/.* \(6, '),
        ('towers/fusion/blocks[0:1]=towers/text/blocks[0:1]', 'only the side of the file can be cut'),
        ('towers/fusion/blocs=towers/text/blocks', "towers/fusion has nothing under 'blocs'"),
        ('towers/fusion/blocks=towers/text[0:2]', 'layers are cut from a stack, such as towers/text/blocks'),
        ('towers/fusion/blocks=towers/text/', "is no place; write 'towers/image', or"),
        ('towers/text/words=towers/text/blocks', 'no place for attn'),
    ],
)
def test_parts_that_do_not_fit(take, words, text_export, started):
    objective, state = started
    with pytest.raises(UserError, match=words):
        start_from(str(text_export), state, objective.towers, take=[take])


def test_a_single_array(text_export, started):
    objective, state = started
    loaded, notes = start_from(str(text_export), state, objective.towers, take=['towers/text/words'])
    words = export.load(text_export)[0]['towers']['text']['words']
    np.testing.assert_array_equal(loaded.params['towers']['text']['words'], words)
    assert 'new in towers/text stay' in notes[0]


# Towers of a recipe.


@pytest.fixture(scope='module')
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp('public') / 'dinov2-tiny'
    FAMILIES['dinov2'].save(shaken(FAMILIES['dinov2'].make()), folder)
    return folder


def test_a_tower_is_the_path_of_a_folder(dinov2):
    """The recipe gets the tower that the folder describes, and starts from its weights; other options may follow."""
    config = configs.read('configs/tiny.py', [f'towers.image={dinov2}', 'towers.image.unroll=2'])
    assert config.towers.image.to_dict() == dict(
        tower='vit', variant='S/4', family='dinov2', width=16, depth=2, ffn='mlp', heads=2, mlp_ratio=4.0,
        native_size=12, offset=0.0, unroll=2, drop_path=0.0,
    )  # fmt: skip
    assert [dict(start) for start in config.init_from] == [dict(path=str(dinov2), take=['towers/image=towers/image'])]
    more = configs.read('configs/tiny.py', ['init_from=dict(path="first/")', f'towers.image={dinov2}'])
    assert [start['path'] for start in more.init_from] == ['first/', str(dinov2)]


def test_a_run_that_goes_on_does_not_need_its_public_weights_any_more(dinov2, tmp_path):
    folder = tmp_path / 'public'
    shutil.copytree(dinov2, folder) if dinov2.is_dir() else shutil.copy(dinov2, folder)
    overrides = [f'towers.image={folder}', 'towers.image.unroll=2']
    before = configs.frozen(configs.read('configs/tiny.py', overrides))
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert configs.frozen(configs.read('configs/tiny.py', overrides, before=before)) == before
    with pytest.raises(UserError, match='there is no such file or folder'):  # weights that the run never had
        configs.read('configs/tiny.py', [f'towers.image={folder}-2'], before=before)


def test_a_recipe_file_may_name_the_path(dinov2, tmp_path):
    recipe = tmp_path / 'mine.py'
    tiny = configs.read('configs/tiny.py').to_dict() | dict(towers=dict(image=str(dinov2)))
    recipe.write_text(f'def get_config():\n    return {tiny!r}\n')
    assert configs.read(str(recipe)).towers.image.width == 16


@pytest.mark.parametrize('path', ['nowhere/', 'vit'])
def test_a_tower_that_is_no_path(path):
    with pytest.raises(UserError, match=r'a tower is a dict.*or a path of weights; .* there is no such file or folder'):
        configs.read('configs/tiny.py', [f'towers.image={path}'])


def test_a_folder_without_such_a_tower(text_export):
    with pytest.raises(UserError, match="holds towers/text, and no tower for 'image'"):
        configs.read('configs/tiny.py', [f'towers.image={text_export}'])
