"""What is left of version 1: its runs are refused with a sentence, and old names of keys say the new ones."""

from __future__ import annotations

import json

import pytest

from medjax import config as configs
from medjax.errors import UserError
from medjax.plugins import call
from medjax.train import check_folder


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


@pytest.mark.parametrize(
    ('old', 'new'), [('layout', 'family'), ('rate', 'lr_scale'), ('decay', 'wd_scale'), ('parts', 'take')]
)
def test_a_section_with_old_keys(old, new):
    namespace: dict = {}
    exec(f'def build({new}=None): pass', namespace)
    with pytest.raises(UserError, match=f"towers.image: unknown key '{old}'; it was renamed to '{new}'"):
        call(namespace['build'], {old: 1}, 'towers.image')
