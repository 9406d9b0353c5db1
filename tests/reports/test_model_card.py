"""The model card: what it takes from a run, and what it says where the run is not there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Entry, Example, Source
from medjax.models import build
from medjax.probes import program
from medjax.reports import model_card
from medjax.weights import export, load, to_huggingface, to_meta

VIT = dict(tower='vit', variant='S/4', width=16, depth=2, heads=2, mlp_ratio=2.0, native_size=8, registers=3)
STEP = 1000


def make_run(place: Any) -> Any:
    """A run with one export, results, and a data set in which some records have licences of their own."""
    home = place / 'anna'
    pictures = np.random.default_rng(0).integers(0, 255, (20, 16, 16), np.uint8)
    entries = [Entry(f'{i}', f'p{i // 2}', f's{i}', 'train' if i < 16 else 'test') for i in range(20)]
    source = Source(
        'clinic|<b>',
        '3',
        'clinic',
        (),
        'CC-BY-4.0; CC0-1.0',
        entries,
        lambda i: [],
        lambda i: Example(pictures[i], attributes={'license': 'CC0-1.0'} if i % 4 == 0 else {}),
    )
    write.write(source, home / 'data')
    data = records.open(home / 'data')
    run = home / 'runs' / 'chest *1*'
    params = {'towers': {'image': build.tower(VIT, 1, 'x').init(jax.random.key(0))}}
    meta = dict(
        step=STEP,
        network='teacher',
        encoder=None,
        towers=dict(image=VIT),
        heads={},
        pairs=[],
        size=8,
        image=dict(channels=1, mean=0.25, std=0.5, fit='crop'),
        config_fingerprint='ab12',
        seen=None,
    )
    export.save(run / 'exports' / str(STEP), jax.device_get(params), meta)
    config = dict(
        total_steps=2000, batch_size=32, data_paths=dict(main=str(home / 'data')), towers=dict(image=VIT),
        views={'global': dict(view='crop', count=2, size=8)}, terms=[dict(term='koleo', weight=0.5)],
        optim=dict(lr=0.002, weight_decay=dict(rule='cosine', start=0.04, end=0.2)),
        init_from=dict(path='/home/anna/models/dinov2-base/'),
    )  # fmt: skip
    (run / 'config.json').write_text(json.dumps(config))
    (run / 'data').mkdir()
    noted = dict(main=dict(name=data.name, fingerprint=data.fingerprint, key=data.key_fingerprint))
    (run / 'data' / 'sources.json').write_text(json.dumps(noted))
    for encoder, value in ((500, 0.911), (STEP, 0.822), ('random', 0.533), ('pixels', 0.644), ('rad-dino', 0.855)):
        write_result(run, encoder, value)
    return run


def write_result(run: Any, encoder: int | str, value: float) -> None:
    mean = dict(value=value, low=value - 0.05, high=value + 0.05, labels=2)
    content = dict(
        probe='knn', data='other_clinic', data_fingerprint='f0', encoder=dict(step=encoder),
        records=dict(train=50, test=40), results=dict(auroc=dict(mean=mean)), skipped_labels=dict(hernia='no positive'),
        bootstrap=dict(patients=30, level=0.95), overlap=dict(patient=0.25, image=0.0, comparable=True), scores='x.npz',
    )  # fmt: skip
    folder = run / 'probes' / str(encoder)
    folder.mkdir(parents=True)
    (folder / 'other_clinic.knn.json').write_text(json.dumps(content))


def card_of(path: Any, out: Any, write: Any = program.write, layout: str = 'stablehlo') -> str:
    weights = load.open(path)
    out.mkdir()
    return model_card.card(weights, layout, write(weights, out), out)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('cards'))


@pytest.fixture(scope='module')
def card(run, tmp_path_factory):
    return card_of(run, tmp_path_factory.mktemp('out') / 'out')


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run, tmp_path / 'own')


def section(card: str, title: str) -> str:
    return re.search(rf'^#+ {title}\n(.*?)(?=^#+ |^---$|\Z)', card, re.MULTILINE | re.DOTALL)[1]


def test_the_head_is_what_the_hub_reads(card):
    head = re.match(r'---\n(.*?)\n---\n', card, re.DOTALL)[1]
    values = {key: json.loads(value) for key, value in (line.split(': ', 1) for line in head.splitlines())}
    assert values == dict(
        library_name='jax', pipeline_tag='image-feature-extraction', tags=['medjax', 'medical-imaging', 'vit']
    )
    assert '# chest \\*1\\*, step 1,000' in card and 'It is no medical device' in card


def test_towers_and_data(card):
    size = sum(int(x.size) for x in jax.tree.leaves(build.tower(VIT, 1, 'x').init(jax.random.key(0))))
    row = f'| tower image | ViT: 2 blocks of width 16, 2 heads, patches of 4 px, 3 registers | {size:,} |'
    assert row in section(card, 'What it is')
    assert 'centre square of an image, at 8 x 8 px' in card and 'minus 0.25, divided by 0.5' in card
    data = section(card, 'Training data')
    assert '**clinic\\|\\<b\\>**' in data and '- records: 16 train, 4 test' in data
    assert '- patients: 8 train, 2 test' in data and '- licence: CC-BY-4.0; CC0-1.0' in data
    assert '- licences of the training records: not stated 12, CC0-1.0 4' in data


def test_the_recipe(card):
    text = section(card, 'Recipe')
    for line in ('step: 1,000 of 2,000', 'batch: 32; 32,000 examples until this step', 'views: 2 x global 8 px',
                 'terms: koleo x 0.5', 'learning rate: 0.002', 'weight decay: 0.04 to 0.2 (cosine)',
                 'started from: dinov2-base', 'weights: of the teacher'):  # fmt: skip
        assert f'- {line}\n' in text, line


def test_an_export_that_was_chosen_says_by_what(own, card, tmp_path):
    """The figure, its value, the split, and among how many exports; nothing where another export is the best."""
    assert '- chosen:' not in card
    content = dict(step=STEP, figure='linear.auroc', probe='linear', metric='auroc', data='other_clinic', value=0.84,
                   low=0.8, high=0.88, steps={'500': {}, str(STEP): {}})  # fmt: skip
    (own / 'best.json').write_text(json.dumps(content))
    (row,) = [
        line
        for line in card_of(own / 'exports' / str(STEP), tmp_path / 'out').splitlines()
        if line.startswith('- chosen:')
    ]
    assert 'the best of 2 exports by linear AUROC on validation of' in row and '0.840' in row and str(STEP) in row
    (own / 'best.json').write_text(json.dumps(content | dict(step=500)))
    assert '- chosen:' not in card_of(own / 'exports' / str(STEP), tmp_path / 'other')


def test_results_of_this_step_and_of_what_it_is_compared_with(card):
    text = section(card, 'Results')
    assert 'other_clinic, test split: 40 records of 30 patients' in text
    for title, value in (('step 1000', '.822† [.772, .872]'), ('random init', '.533 [.483, .583]'),
                         ('raw pixels', '.644 [.594, .694]'), ('rad-dino', '.855† [.805, .905]')):  # fmt: skip
        assert f'| {title} | knn | {value} |' in text
    assert '.911' not in card, 'the result of another step'
    overlap = section(card, 'Overlap of training and test data')
    assert 'other_clinic: pretraining saw the patient of 25.0 %' in overlap
    assert 'started from other weights (dinov2-base). Whether these have seen test data is not known' in overlap
    limits = section(card, 'Limits')
    assert (
        'tested on the test split of other_clinic, and on nothing else' in limits and 'hernia (no positive)' in limits
    )
    assert 'data clinic\\|\\<b\\>: CC-BY-4.0' in section(card, 'Licences')


def test_no_path_of_the_machine(card, run, tmp_path):
    """Neither the folder of the run, nor that of the data, nor that of the weights it began with."""
    assert not re.search(r'anna|/home|/tmp|cards0', card)


def test_an_export_without_its_run(run, tmp_path):
    moved = shutil.copytree(run / 'exports' / str(STEP), tmp_path / 'anna' / str(STEP))
    card = card_of(moved, tmp_path / 'out')
    for title in ('Training data', 'Recipe', 'Results'):
        assert section(card, title).strip() == model_card.UNKNOWN
    assert '# An encoder of step 1,000' in card and 'No test of it is known here.' in card
    assert 'Of the training data: not known here.' in card and 'anna' not in card and '.822' not in card


def test_an_export_in_the_folder_of_another_run(own, tmp_path):
    config = json.loads((own / 'config.json').read_text())
    config['towers']['image'] = dict(VIT, depth=3)
    (own / 'config.json').write_text(json.dumps(config))
    assert section(card_of(own, tmp_path / 'out'), 'Results').strip() == model_card.UNKNOWN


@pytest.mark.parametrize('change', ['moved', 'rebuilt'])
def test_data_that_are_no_longer_those_of_the_training(own, tmp_path, change):
    if change == 'moved':
        config = json.loads((own / 'config.json').read_text())
        config['data_paths']['main'] = '/home/anna/nowhere'
        (own / 'config.json').write_text(json.dumps(config))
    else:
        noted = json.loads((own / 'data' / 'sources.json').read_text())
        noted['main']['fingerprint'] = 'another'
        (own / 'data' / 'sources.json').write_text(json.dumps(noted))
    card = card_of(own, tmp_path / 'out')
    assert 'The data set clinic\\|\\<b\\> is no longer where it was at training' in card and '16 train' not in card
    assert 'Of the training data clinic\\|\\<b\\>: not known here.' in card and 'anna' not in card


def test_a_step_without_results(own, tmp_path):
    shutil.rmtree(own / 'probes' / str(STEP))
    card = card_of(own, tmp_path / 'out')
    assert section(card, 'Results').startswith('\nNo probe has been run on this step.')
    assert 'No test of it is known here.' in card and '.533' not in card


def test_results_that_lack_a_part(own, tmp_path):
    """A user's own probe may have no mean, and a file may be damaged: the card is written without them."""
    folder = own / 'probes' / str(STEP)
    whole = json.loads((folder / 'other_clinic.knn.json').read_text())
    for i, lacking in enumerate(
        (dict(bootstrap={}), dict(records={}), dict(results=dict(auroc=dict(a=dict(value=1))))), 1
    ):
        name = f'own{i}'
        (folder / f'other_clinic.{name}.json').write_text(json.dumps(whole | dict(probe=name) | lacking))
    (folder / 'other_clinic.linear.json').write_text('{')
    card = card_of(own, tmp_path / 'out')
    assert '| step 1000 | knn | .822' in card and '| own' not in card


@pytest.mark.parametrize('readme', ['---\nlicense: apache-2.0\ntags:\n- x\n---\n# x', '# license: mit', None])
def test_public_weights(run, tmp_path, readme):
    """The card says whose they are, and the licence that their publisher states."""
    public = tmp_path / 'dinov2-base'
    public.mkdir()
    to_huggingface.write(load.open(run), public)
    config = json.loads((public / 'config.json').read_text())
    config.pop('medjax')  # as somebody else would have written it
    (public / 'preprocessor_config.json').unlink()
    (public / 'config.json').write_text(json.dumps(config))
    if readme:
        (public / 'README.md').write_text(readme)
    weights = load.open(public).exported()
    out = tmp_path / 'out'
    out.mkdir()
    card = model_card.card(weights, 'stablehlo', program.write(weights, out), out)
    assert '- dinov2-base: nothing says mean' in card and str(tmp_path) not in card
    assert '# dinov2-base' in card and 'the weights are those of dinov2-base' in section(card, 'Recipe')
    stated = bool(readme) and 'apache' in readme
    assert ('\nlicense: "apache-2.0"\n' in card) == stated
    assert ('Of the weights: apache-2.0, as their publisher states.' in card) == stated
    assert ('that of the original, which does not lie beside these files' in card) == (not stated)


@pytest.mark.parametrize(
    ('path', 'note', 'expected'),
    [
        ('/home/anna/dino', '/home/anna/dino: nothing says', 'dino: nothing says'),
        (
            '/home/anna/dino',
            '/home/anna/dino/model.safetensors: not read are a.b',
            'model.safetensors: not read are a.b',
        ),
        ('/home/anna', '/home/anna/x.pth: not read are a, b', 'x.pth: not read are a, b'),
        ('.', 'x.pth: not read are blocks.1.x', 'x.pth: not read are blocks.1.x'),
        ('a', 'timm has a place for a/b and banana', 'timm has a place for b and banana'),
    ],
)
def test_notes_without_folders(path, note, expected):
    assert model_card.without_place(note, Path(path)) == expected


def test_the_class_of_meta_with_the_sizes_of_the_tower(run, tmp_path):
    card = card_of(run, tmp_path / 'out', to_meta.write, 'meta')
    code, _ = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    compile(code, 'card', 'exec')
    for text in ('embed_dim=16', 'depth=2', 'num_heads=2', 'patch_size=4', 'img_size=8', 'in_chans=1', 'mlp_ratio=2.0',
                 'num_register_tokens=3', "ffn_layer='mlp'"):  # fmt: skip
        assert text in code, text
