"""A meta.json that was edited or damaged: refused before a feature is made, in exports and in folders from them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from medjax import cli
from medjax.errors import UserError
from medjax.models import build
from medjax.probes import encode
from medjax.weights import export, load

VIT = dict(tower='vit', variant='S/4', width=16, depth=1, heads=2, native_size=8)
IMAGE = dict(channels=1, mean=0.4, std=0.2, fit='crop')
LIES = [
    (dict(size='8'), "size='8'"),
    (dict(size=None), 'size=None'),
    (dict(size=10**9), 'size=1000000000'),
    (dict(step='last'), "step='last'"),
    (dict(encoder=['image']), "encoder=.'image'."),
    (dict(towers=[VIT]), '`towers` is no object'),
    (dict(heads=dict(a=3)), '`heads` is no object'),
    (dict(pairs=[{}]), '`pairs` is no list of image and text towers'),
    (dict(image=None), '`image` is no object with channels'),
    (dict(image=dict(mean=0.5, std=1.0)), '`image` is no object with channels'),
    (dict(image=IMAGE | dict(channels='1')), "channels='1'"),
    (dict(image=IMAGE | dict(mean='x')), "mean='x'"),
    (dict(image=IMAGE | dict(mean=[0.1, 0.2])), r'mean=\[0\.1, 0\.2\]'),
    (dict(image=IMAGE | dict(std=0.0)), 'std=0.0'),
    (dict(image=IMAGE | dict(std=float('nan'))), 'std=nan'),
    (dict(image=IMAGE | dict(fit='zoom')), "fit='zoom'"),
    (dict(image=IMAGE | dict(zoom=-1)), 'zoom=-1'),
]


@pytest.fixture
def source(tmp_path):
    params = jax.device_get(build.tower(VIT, 1, 'image').init(jax.random.key(0)))
    meta = dict(step=40, network='teacher', encoder=None, towers=dict(image=VIT), heads={}, pairs=[], size=8,
                image=IMAGE, config_fingerprint='x', seen=None)  # fmt: skip
    return export.save(tmp_path / 'export', {'towers': {'image': params}, 'heads': {}}, meta)


@pytest.mark.parametrize(('change', 'words'), LIES, ids=str)
def test_an_export_whose_meta_has_another_form(change, words, source):
    file = source / 'meta.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=rf'meta\.json: .*{words}'):
        encode.load(source)


def test_an_encoder_needs_mean_and_deviation(source):
    file = source / 'meta.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(image=dict(channels=1, mean=0.5))))
    with pytest.raises(UserError, match=r'meta\.json lacks image\.std: the export is not whole'):
        encode.load(source)


@pytest.fixture
def folder(source, tmp_path):
    assert cli.main(['convert', str(source), '--to', 'huggingface', '--out', str(tmp_path / 'hf')]) == 0
    return tmp_path / 'hf'


def edit(folder, change):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | dict(medjax=config['medjax'] | change)))


@pytest.mark.parametrize(('change', 'words'), [LIES[0], LIES[5], LIES[7], LIES[9], LIES[13]], ids=str)
def test_a_folder_from_an_export_whose_entry_has_another_form(change, words, folder):
    edit(folder, change)
    with pytest.raises(UserError, match=rf'the entry `medjax` is none that medjax wrote: .*{words}'):
        encode.load(folder)


def test_a_public_folder_names_no_code(folder, tmp_path, monkeypatch):
    (tmp_path / 'stranger.py').write_text('raise RuntimeError("the code of a stranger ran")')
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, dict(towers=dict(image=VIT | dict(tower='stranger.tower'))))
    with pytest.raises(UserError, match=r"names the code 'stranger\.tower'; of a public folder no code is imported"):
        encode.load(folder)


def test_channels_that_the_weights_do_not_have(folder):
    edit(folder, dict(image=IMAGE | dict(channels=3)))
    with pytest.raises(UserError, match='of another shape: patch_embed/kernel'):
        encode.load(folder)


def test_an_encoder_of_images_has_an_image_size(source):
    file = source / 'meta.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(size=0)))
    with pytest.raises(UserError, match='nothing says the size of images'):
        encode.load(source)
    assert np.isfinite(load.open(source).flat('towers/image')['cls']).all()
