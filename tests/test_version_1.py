"""What is left of version 1: its runs are refused with a sentence, and old names of keys say the new ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import recipes

from medjax import config as configs
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.plugins import call
from medjax.train import check_folder
from medjax.training.optimizer import optimizer
from medjax.training.state import start_from


def test_a_run_of_version_1_is_refused(tmp_path):
    config = dict(total_steps=2, copies={}, export=dict(copy='student'))
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'medjax 0\.1.*init_from=.*exports/STEP') as error:
        check_folder(tmp_path, configs.load_json(tmp_path / 'config.json'), {})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'old', 'new'),
    [
        ('dict(copies={})', 'copies', 'teachers'),
        ("dict(export=dict(copy='student'))", 'copy', 'network'),
    ],
)
def test_a_config_file_with_old_keys(tmp_path, text, old, new):
    keys = 'total_steps=1, batch_size=1, views={}, towers={}, terms=[], optim={}, '
    (tmp_path / 'old.py').write_text(f'def get_config():\n    return {text.replace("dict(", f"dict({keys}", 1)}\n')
    with pytest.raises(UserError, match=f"'{old}'; it was renamed to '{new}'"):
        configs.read(str(tmp_path / 'old.py'))


@pytest.mark.parametrize(('old', 'new'), [('rate', 'lr_scale'), ('decay', 'wd_scale'), ('clip', 'clip_group')])
def test_rules_of_the_optimizer_with_old_keys(old, new):
    params = {'towers': {'image': {'kernel': np.zeros(2)}}}
    with pytest.raises(UserError, match=rf"optim\.groups\[0\]: unknown key '{old}'; it was renamed to '{new}'"):
        optimizer(params, 10, lr=0.1, groups=[{'match': '*', old: 1}])


def test_a_tower_with_an_old_key():
    recipe = recipes.tiny()
    recipe['towers']['image']['layout'] = 'clip'
    with pytest.raises(UserError, match=r"towers\.image: unknown key 'layout'; it was renamed to 'family'"):
        compose(recipe)


def test_init_from_with_old_keys():
    with pytest.raises(UserError, match="init_from: unknown key 'parts'; it was renamed to 'take'"):
        call(start_from, dict(path='x.safetensors', parts=['towers/image']), 'init_from', state=None)


def test_an_override_with_old_keys():
    overrides = ['init_from=dict(path="x")', 'init_from.parts=[]']
    with pytest.raises(UserError, match="'parts'; it was renamed to 'take'"):
        configs.read('tiny', overrides)
    with pytest.raises(UserError, match="'rate'; it was renamed to 'lr_scale'"):
        configs.read('tiny', ['optim.groups=[dict(match="*")]', 'optim.groups.0.rate=1'])
