"""Configs: shipped recipes against their golden dumps, overrides, what the data decides, and every mistake's sentence.

`python tests/test_config.py` (or `make golden`) rewrites tests/golden after a wanted change.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from medjax import config as configs, plugins
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.overrides import keywords
from medjax.plugins import call
from medjax.training.optimizer import Group, optimizer
from medjax.views import make
from medjax.views.photometric import find_set

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / 'golden'
SHIPPED = sorted((ROOT / 'configs').glob('*.py'))
GROUPS = json.loads((Path(__file__).parent / 'files' / 'parameter_groups.json').read_text())  # of version 1
TINY = str(ROOT / 'configs' / 'tiny.py')


def dump(path: Path) -> str:
    """The config as far as it goes without data."""
    return configs.to_json(configs.check(configs.resolve(configs.read(str(path)), {})))


def data_set(path='x', channels=1, size=64, mean=0.5, std=0.25):
    return SimpleNamespace(path=path, channels=channels, size=size, mean=mean, std=std, labels=('effusion',))


def resolved(*overrides, datasets=None):
    return configs.check(configs.resolve(configs.read(TINY, overrides), datasets or {}))


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_equal_their_golden_dumps(path):
    assert dump(path) == (GOLDEN / f'{path.stem}.json').read_text(), 'a wanted change? make golden'


def test_every_golden_dump_has_its_config():
    assert [p.stem for p in sorted(GOLDEN.glob('*.json'))] == [p.stem for p in SHIPPED]


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_builders_take_every_shipped_config(path):
    """Towers, heads, copies, terms, views, masks and parameter groups exist under the names that the recipes use."""
    config = configs.read(str(path))
    of_data = dict(channels=3, mean=0.5, std=0.2)
    config.image.update({name: of_data[name] for name, value in config.image.items() if value is None})
    config = configs.resolve(config, {})
    objective = compose(config)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    call(optimizer, config['optim'], 'optim', params=params, total_steps=config['total_steps'])
    make.build(objective.views, config['masks'], config['image'], objective.grids(), config['rows_per_group'])


@pytest.mark.parametrize('path', [path for path in SHIPPED if path.stem in GROUPS], ids=lambda path: path.stem)
def test_every_parameter_is_in_the_group_of_version_1(path):
    """tests/files/parameter_groups.json was written by the code of version 1 (commit 686cab5) from its recipes.

    recipe -> parameter -> [lr_scale, wd_scale, clip_group, frozen_until]; a scale is a list with a number for each
    block where blocks differ.
    """
    config = configs.read(str(path))
    config.image.channels = config.image.channels or 3
    config = configs.resolve(config, {})
    params, _ = jax.eval_shape(compose(config).init, jax.random.key(0))
    optim = call(optimizer, config['optim'], 'optim', params=params, total_steps=config['total_steps'])
    flat, _ = jax.tree_util.tree_flatten_with_path(optim.groups, is_leaf=lambda x: isinstance(x, Group))
    groups = {'/'.join(str(key.key) for key in keys): group for keys, group in flat}
    expected = GROUPS[path.stem]
    assert groups.keys() == expected.keys()
    for name, (lr_scale, wd_scale, clip_group, frozen_until) in expected.items():
        group = groups[name]
        assert (group.clip_group, group.frozen_until) == (clip_group, frozen_until), name
        for found, scale in ((group.lr_scale, lr_scale), (group.wd_scale, wd_scale)):
            blocks = np.ravel(found)
            assert len(blocks) == len(scale) if isinstance(scale, list) else len({*blocks.tolist()}) == 1, name
            np.testing.assert_allclose(blocks, scale, rtol=1e-6, err_msg=name)


# Overrides.


@pytest.mark.parametrize(
    ('text', 'key', 'value'),
    [
        ('optim.lr=1e-2', ('optim', 'lr'), 0.01),
        ('optim.lr=1', ('optim', 'lr'), 1.0),
        ('total_steps=1e3', ('total_steps',), 1000),
        ('total_steps=1_000', ('total_steps',), 1000),
        ('terms.2.weight=.5', ('terms', 2, 'weight'), 0.5),
        ('terms[2].weight=.5', ('terms', 2, 'weight'), 0.5),
        ('views.global.area=(.3, .9)', ('views', 'global', 'area'), (0.3, 0.9)),
        ('views.global.area=[.3, .9]', ('views', 'global', 'area'), (0.3, 0.9)),
        ('masks.global~block.share=.25', ('masks', 'global~block', 'share'), 0.25),
        ('optim.schedule=.5', ('optim', 'schedule'), 0.5),
        ('optim.weight_decay={"rule": "cosine", "start": .04, "end": .4}', ('optim', 'weight_decay', 'end'), 0.4),
        ('optim.schedule.warmup=3', ('optim', 'schedule', 'warmup'), 3),
        ('dtype=bfloat16', ('dtype',), 'bfloat16'),
        ('image.mean=.4', ('image', 'mean'), 0.4),
        ('optim.clip=none', ('optim', 'clip'), None),
        ('optim.schedule=dict(rule="cosine",start=1.,end=.5)', ('optim', 'schedule', 'end'), 0.5),
        ('init_from={"path": "runs/a"}', ('init_from', 'path'), 'runs/a'),
        ("init_from=[dict(path='a'), dict(path='b')]", ('init_from', 1, 'path'), 'b'),
        ("init_from=dict(path='runs/a')", ('init_from', 'path'), 'runs/a'),
        ("init_from=dict(path='a', more=[dict(of=dict(x=1))])", ('init_from', 'more', 0, 'of', 'x'), 1),
        ('image.mean=[.4]', ('image', 'mean', 0), 0.4),
        ('mesh.fsdp=2', ('mesh', 'fsdp'), 2),  # a default that the file does not write
        # keywords of builders that the file leaves at their defaults
        ('towers.image.registers=4', ('towers', 'image', 'registers'), 4),
        ('views.local.flip=.5', ('views', 'local', 'flip'), 0.5),
        ('masks.global~block.min_patches=2', ('masks', 'global~block', 'min_patches'), 2),
        ('terms.2.within=group', ('terms', 2, 'within'), 'group'),
        ('terms.0.weight=dict(rule="linear",start=0.,end=1.)', ('terms', 0, 'weight', 'end'), 1.0),
        ('optim.schedule.frozen=2', ('optim', 'schedule', 'frozen'), 2),  # a keyword of a schedule
        ('optim.b2=.95', ('optim', 'b2'), 0.95),
        # None where the value or the default is None, or where the annotation allows it
        ('image.mean=none', ('image', 'mean'), None),
        ('data.cxr.canvas=none', ('data', 'cxr', 'canvas'), None),
        ('views.local.photometric=none', ('views', 'local', 'photometric'), None),
        ('views.local.boxes=none', ('views', 'local', 'boxes'), None),
        # a text, dict or list in the place of another of them, as the annotation allows
        ("views.local.photometric=dict(set='radiograph', gamma=.1)", ('views', 'local', 'photometric', 'gamma'), 0.1),
        ('terms.0.student=student/image/local/cls>dino', ('terms', 0, 'student'), 'student/image/local/cls>dino'),
    ],
)
def test_overrides(text, key, value):
    node = resolved(text)
    for name in key:
        node = node[name]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('towers.image.register=4', ["config.towers.image has no key 'register'", "did you mean 'registers'?"]),
        ('towers.image.tower=.vit', ['towers.image.tower', 'no name of a module']),
        ("towers.image.layerscale='layout'", ["layerscale='layout'", "renamed to 'family'"]),
        ('towers.image.registers=four', ['--config.towers.image.registers', 'a whole number']),
        ('towers.image.channels=3', ["no key 'channels'"]),
        ('towers.image.tower=layers', ['towers.image.tower: there is no tower', "'layers'", 'vit']),
        ('towers.image.layout=clip', ["'layout'; it was renamed to 'family'"]),
        ('copies={}', ["'copies'; it was renamed to 'teachers'"]),
        ('export.copy=student', ["'copy'; it was renamed to 'network'"]),
        ('optim.lrr=1', ["optim.lrr: config.optim has no key 'lrr'", "did you mean 'lr'?"]),
        ('otpim.lr=1', ["config has no key 'otpim'", "did you mean 'optim'?"]),
        ('optim.lr=fast', ["--config.optim.lr: 'fast' does not fit", 'a number', '0.001']),
        ('optim.lr=true', ['--config.optim.lr', 'a number']),
        ('total_steps=1.5', ['--config.total_steps', 'a whole number']),
        ('views.global.area=.5', ['--config.views.global.area', 'a list']),
        ('views.global.area=(.3, "x")', ['--config.views.global.area', 'a list of numbers']),
        ('views.global.area.0=.5', ['write the whole of config.views.global.area']),
        ('terms.9.weight=1', ['--config.terms.9.weight', 'a list of 3', '0 to 2']),
        ('terms.koleo.weight=1', ['a list of 3', '0 to 2']),
        ('optim.lr.x=1', ['config.optim.lr is 0.001 and has no keys']),
        ('optim=3', ['--config.optim:', 'a dict']),
        ('optim.schedule=fast', ['--config.optim.schedule', 'a number, a rule']),
        ('optim.schedule=dict(1)', ['--config.optim.schedule', 'a number, a rule']),
        ('optim.schedule=dict(start=open("x"))', ['--config.optim.schedule', 'a number, a rule']),
        ('optim.lr', ['--config.optim.lr=VALUE']),
        ('total_steps=0', ['total_steps=0', 'at least 1']),
        ('total_steps=none', ["--config.total_steps: 'none' does not fit", 'whole number']),
        # below a keyword that the file leaves at its default
        (
            'views.local.photometric.gamma=.1',
            [
                "views.local.photometric is at its default 'radiograph'; write the whole",
                """--config.views.local.photometric="dict(set='radiograph', gamma=…)\"""",
            ],
        ),
        (
            'optim.groups.0.lr_scale=.1',
            ['optim.groups is at its default ()', '--config.optim.groups="[dict(match=…, lr_scale=…)]"'],
        ),
        (
            'terms.0.teacher_temperature.end=.1',
            [
                'terms.0.teacher_temperature is at its default',
                """--config.terms.0.teacher_temperature="dict(rule='cosine', start=…, end=…)\"""",
            ],
        ),
        ('towers.image.family.x=1', ['towers.image.family is at its default', '="dict(x=…)"']),
        ('init_from.take.0=x', ['init_from is None and has no keys', '--config.init_from="dict(path=…, take=[…])"']),
        # None where it does not fit
        ('optim.no_decay=none', ['--config.optim.no_decay', 'a list']),
        ('towers.image.drop_path=none', ['--config.towers.image.drop_path', 'a number']),
        ('towers.image.registers=none', ['--config.towers.image.registers', 'a whole number']),
        ('heads.dino.prototypes=none', ['--config.heads.dino.prototypes', 'a whole number']),
        ('masks.global~block.ratio=none', ['--config.masks.global~block.ratio', 'a list']),
        ('optim=none', ['--config.optim', 'a dict']),
        # one text in the place of a list, and a section of the wrong kind
        ('export.towers=image', ['--config.export.towers', 'a list']),
        ('teachers.teacher.of=[1]', ['teachers.teacher.of=(1,)', "['towers/image']"]),
        ('init_from=dict(path="a", take="towers/image")', ["init_from.take='towers/image'", "['towers/image']"]),
        ('terms=["koleo"]', ["terms.0='koleo'", "dict(term='koleo', …)"]),
        ('towers=dict(image="vit")', ["towers.image='vit'", "dict(tower='vit', …)"]),
        ('teachers=dict(teacher=3)', ['teachers.teacher=3', "dict(rule='ema', …)"]),
        ('data.cxr.sources=main', ['--config.data.cxr.sources', 'a dict']),
        ('seed=-1', ['seed=-1']),
        ('dtype=float16', ["'float16'", "'bfloat16'"]),
        ('image.channels=2', ['image.channels', '1', '3']),
        ('image.std=0', ['image.std=0', 'a number above 0']),
        ('image.std=[-1.]', ['image.std', 'a number above 0']),
        ('image.mean=grey', ["image.mean='grey'", 'a number']),
        ('image.mean=[.4, .5, .6]', ['image.mean=(0.4, 0.5, 0.6)', 'image.channels=1']),
        ('init_from=[dict(path="a"), 5]', ['init_from=5', 'or a list']),
        ('init_from=5', ['init_from=5', 'dict(path="x.safetensors")']),
        ('init_from="x"', ["init_from='x'", 'dict(path="x.safetensors")']),
        ('init_from=dict(take=[])', ['init_from', 'the path of weights']),
        ('batch_size=6', ['rows', '6', 'rows_per_group', '4 ', '8 ']),
        ('data.cxr.rows=4', ['batch_size', 'data.cxr.rows', '8']),
        ('data.cxr.sources.main=-1', ['data.cxr.sources.main', 'above 0']),
        ('views.local.part=xray', ['views.local.part', "'xray'", 'cxr']),
        ('views.local.size=20', ['views.local.size=20', '8 px', '16 or 24']),
        ('export.network=techer', ['export.network', "did you mean 'teacher'?"]),
        ('export.towers=["text"]', ['export.towers', "'text'", 'image']),
        ('teachers.teacher.of=["towers/image"]', ['export.heads', 'teacher']),
    ],
)
def test_mistakes_name_the_key_and_what_would_work(text, words):
    with pytest.raises(UserError) as error:
        compose(resolved(*([text] if 'batch_size' not in text else [text, 'rows_per_group=4'])))
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


REPORTS = str(ROOT / 'configs' / 'phantom_reports.py')


@pytest.mark.parametrize(
    ('text', 'key', 'value'),
    [
        ('terms.0.temperature.low=.02', ('temperature', 'low'), 0.02),
        ('terms.0.temperature.high=100', ('temperature', 'high'), 100.0),
        ("terms.0.positives=dict(soft='labels')", ('positives', 'soft'), 'labels'),
        ("terms.0.positives=['identity', 'label']", ('positives', 1), 'label'),
        ("terms.0.rows=['a']", ('rows',), "['a']"),  # the annotation is str, so this is a text
    ],
)
def test_overrides_of_a_contrastive_term(text, key, value):
    found = configs.read(REPORTS, [text]).terms[0]
    for name in key:
        found = found[name]
    assert found == value and type(found) is type(value)


def test_overrides_enter_positives_and_a_schedule_in_place_of_a_learned_temperature():
    whole = "terms.0.positives=['identity', dict(soft='labels', alpha=.5)]"
    (term,) = configs.read(REPORTS, [whole, 'terms.0.positives.1.alpha=.25']).terms
    assert term['positives'][1]['alpha'] == 0.25
    (term,) = configs.read(REPORTS, ["terms.0.temperature=dict(rule='linear', start=.1, end=.2)",
                                     'terms.0.temperature.steps=9']).terms  # fmt: skip
    assert term['temperature']['steps'] == 9
    for text, words in (
        ('terms.0.positives.1.aplha=.25', "no key 'aplha'; did you mean 'alpha'"),
        ('terms.0.temperature.lwo=.02', "no key 'lwo'; did you mean 'low'"),
    ):
        with pytest.raises(UserError, match=words):
            configs.read(REPORTS, [whole, text])


@pytest.mark.parametrize('default', ['list', 'dict'])
def test_an_override_into_a_default_is_gone_at_the_next_read(default, tmp_path):
    keys = dict(list=('export.towers.0=x', ['x']), dict=('data.images.sources.main=2.', 2.0))
    (tmp_path / 'small.py').write_text(
        'def get_config():\n    return dict(total_steps=1, batch_size=1, views={}, towers={}, terms=[], optim={})\n'
    )
    text, value = keys[default]
    changed, fresh = (configs.read(str(tmp_path / 'small.py'), given) for given in ([text], []))
    found = lambda c: c.export.towers if default == 'list' else c.data.images.sources.main  # noqa: E731
    assert found(changed) == value and found(fresh) != value


def test_an_override_changes_one_place_of_a_dict_that_a_file_uses_twice(tmp_path):
    (tmp_path / 'twice.py').write_text(
        "crop = dict(view='crop', part='images', size=16, area=[0.1, 0.4])\n"
        'def get_config():\n    views = dict(a=crop, b=crop)\n'
        '    return dict(total_steps=1, batch_size=1, views=views, towers={}, terms=[], optim={})\n'
    )
    config = configs.read(str(tmp_path / 'twice.py'), ['views.a.size=32', 'views.a.area.0=0.2'])
    assert (config.views.a.size, config.views.b.size) == (32, 16)
    assert (config.views.a.area, config.views.b.area) == ([0.2, 0.4], [0.1, 0.4])


def test_options_that_are_no_function_are_not_asked(tmp_path, monkeypatch):
    """`options` of a user's module may be anything; only a function describes keywords."""
    (tmp_path / 'mytower_with_options').mkdir()
    (tmp_path / 'mytower_with_options' / 'vit.py').write_text('options = {}\ndef build(channels, depth=2): pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    module = 'mytower_with_options.vit'
    config = ConfigDict(dict(towers=dict(image=dict(tower=module))))
    assert 'depth' in keywords(config, ('towers', 'image'))


def test_a_section_of_a_plug_in_is_a_dict():
    with pytest.raises(UserError, match=r"towers\.image='vit': must be a dict, dict\(tower='vit'\)"):
        plugins.make('vit', 'tower', 'medjax.models.towers', 'towers.image')
    with pytest.raises(UserError, match=r'views\.a\.photometric=3: must be a dict, dict\(set=…\)'):
        find_set(3, 'views.a.photometric')


def test_a_suggestion_lists_each_key_once():
    with pytest.raises(UserError) as error:
        resolved('views.global.zzz=1')
    keys = str(error.value).partition('known: ')[2].split(', ')
    assert len(keys) == len(set(keys)) > 5


def test_how_often_a_run_exports_is_not_in_its_fingerprint():
    for same in ('export.every=3', 'export.keep=3'):
        assert configs.fingerprint(resolved()) == configs.fingerprint(resolved(same))
        assert not configs.difference_on_resuming(resolved(), resolved(same))
    assert configs.fingerprint(resolved()) != configs.fingerprint(resolved('export.network=student'))


@pytest.mark.parametrize('keep', ['0', '-2', '1.5', 'all', 'True'])
def test_the_number_of_exports_to_keep(keep):
    with pytest.raises(UserError, match=r'export\.keep=.*: must be a whole number of at least 1'):
        resolved(f'export.keep={keep}')


@pytest.mark.parametrize('momentum', [1.01, -0.5, [0.9, 2.0], dict(rule='linear', start=0.9, end=1.5)])
def test_a_momentum_beyond_0_to_1(momentum):
    config = configs.read(TINY).to_dict()
    config['teachers']['teacher']['momentum'] = momentum
    with pytest.raises(UserError, match=r'teachers\.teacher\.momentum.*=.*(from 0 to 1|between 0 and 1)'):
        compose(configs.resolve(ConfigDict(config), {}))


def test_overrides_are_split_from_the_other_arguments():
    argv = ['--config', 'a.py', '--config.optim.lr=1', '--data', 'D', '--config.seed', '3']
    assert configs.split_overrides(argv) == (['--config', 'a.py', '--data', 'D'], ['optim.lr=1', 'seed=3'])


# Config files.


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('def get_config():\n    return dict(total_stesp=3)', ['total_stesp', "did you mean 'total_steps'?"]),
        ('def get_config():\n    return dict(total_steps=3)', ["the key 'batch_size' is missing"]),
        ('x = 1', ['get_config()']),
        ('def get_config():\n    return dict(\n', ['line 2', 'SyntaxError']),
        ('def get_config():\n    return nonsense', ['line 2', 'nonsense']),
        ('def get_config(variant):\n    return {}', ["needs an argument, 'variant'"]),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, text, words):
    path = tmp_path / 'mine.py'
    path.write_text(text + '\n')
    with pytest.raises(UserError) as error:
        configs.read(str(path))
    for word in [path.name, *words]:
        assert word in str(error.value)


def test_unknown_key_of_a_closed_section(tmp_path):
    text = Path(TINY).read_text().replace('log=dict(every=2)', 'log=dict(evry=2)')
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(UserError, match="log: unknown key 'evry'; did you mean 'every'?"):
        configs.read(str(tmp_path / 'mine.py'))


def test_both_sides_of_a_view_are_whole_patches(tmp_path):
    (tmp_path / 'mine.py').write_text(Path(TINY).read_text().replace('size=32', 'size=(32, 20)'))
    with pytest.raises(UserError, match=r'views.global.size=\(32, 20\).*16 or 24'):
        compose(configs.check(configs.resolve(configs.read(str(tmp_path / 'mine.py')), {})))


def test_a_missing_file_suggests_its_neighbour():
    with pytest.raises(UserError, match=r'there is no file .*tinny.py.*did you mean .*tiny.py'):
        configs.read(TINY.replace('tiny', 'tinny'))


def test_a_config_file_may_take_an_argument_and_the_data(tmp_path):
    text = Path(TINY).read_text()
    text = text.replace('def get_config()', 'def get_config(data, steps)').replace(
        'total_steps=8', 'total_steps=int(steps)'
    )
    (tmp_path / 'mine.py').write_text(text.replace('batch_size=8', 'batch_size=data.size'))
    config = configs.read(f'{tmp_path}/mine.py:12', data=data_set(size=16))
    assert (config.total_steps, config.batch_size) == (12, 16)


# What the data decides.


def two_sources():
    text = Path(TINY).read_text().replace('sources=dict(main=1.0)', 'sources=dict(a=3.0, b=1.0)')
    return text.replace('image=dict(channels=1', 'image=dict(channels=None')


def test_image_and_canvas_come_from_the_mixture(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(two_sources())
    data = dict(a=data_set(size=40, mean=0.2, std=0.1), b=data_set(size=64, mean=0.6, std=0.3))
    config = configs.check(configs.resolve(configs.read(str(path)), data))
    assert config['data']['cxr'] == dict(rows=8, canvas=64, sources=dict(a=3.0, b=1.0))
    mean = 0.75 * 0.2 + 0.25 * 0.6
    spread = 0.75 * (0.1**2 + (0.2 - mean) ** 2) + 0.25 * (0.3**2 + (0.6 - mean) ** 2)
    assert config['image']['channels'] == 1
    assert config['image']['mean'] == pytest.approx(mean)
    assert config['image']['std'] == pytest.approx(math.sqrt(spread))


def test_sources_of_different_channels_ask(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(two_sources())
    data = dict(a=data_set(channels=1), b=data_set(channels=3))
    with pytest.raises(UserError, match=r'image.channels.*--config.image.channels=1'):
        configs.resolve(configs.read(str(path)), data)
    assert configs.resolve(configs.read(str(path), ['image.channels=3']), data)['image']['channels'] == 3


def test_given_numbers_stay():
    config = resolved('image.mean=.1', 'data.cxr.canvas=48', datasets=dict(main=data_set()))
    assert config['image'] == dict(channels=1, mean=0.1, std=0.25)
    assert config['data']['cxr']['canvas'] == 48


@pytest.fixture
def opened(monkeypatch):
    """Data sets that are there: a and b."""
    from medjax.data import records

    def find(path):
        if path not in ('a', 'b'):
            raise UserError(f'{path} is no data set')
        return data_set(path)

    monkeypatch.setattr(records, 'open', find)


def test_the_only_source_needs_no_name(opened):
    config, datasets = configs.load(TINY, ['a'])
    assert (config['data_paths'], list(datasets)) == ({'main': 'a'}, ['main'])
    assert configs.load(TINY, ['main=b'])[0]['data_paths'] == {'main': 'b'}


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        ([], ['--data PATH', 'medjax build']),
        (['c'], ['c is no data set']),
        (['mian=a'], ["no source 'mian'", "did you mean 'main'?"]),
        (['a', 'b'], ['--data main=PATH']),
        (['main=a', 'main=b'], ['given twice']),
    ],
)
def test_mistakes_with_data(opened, data, words):
    with pytest.raises(UserError) as error:
        configs.load(TINY, data)
    for word in words:
        assert word in str(error.value)


def test_several_sources_are_named(opened, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(two_sources())
    assert sorted(configs.load(str(path), ['b=b', 'a=a'])[1]) == ['a', 'b']
    with pytest.raises(UserError, match=r"the source 'b' has no path; add --data b=PATH"):
        configs.load(str(path), ['a=a'])
    with pytest.raises(UserError, match=r'--data a=PATH --data b=PATH'):
        configs.load(str(path), ['a'])


# Frozen, JSON, fingerprint.


def test_a_resolved_config_does_not_change():
    config = resolved()
    for change in (
        lambda: config.update(seed=1),
        lambda: config['optim'].__setitem__('lr', 1),
        lambda: config['terms'][0].pop('term'),
    ):
        with pytest.raises(TypeError):
            change()
    assert isinstance(config['terms'], tuple)


def test_json_there_and_back(tmp_path):
    config = resolved(datasets=dict(main=data_set()))
    (tmp_path / 'config.json').write_text(configs.to_json(config))
    back = configs.load_json(tmp_path / 'config.json')
    assert back == config
    assert configs.to_json(back) == configs.to_json(config)
    assert configs.fingerprint(back) == configs.fingerprint(config)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(UserError, match=r'config.json'):
        configs.load_json(tmp_path / 'config.json')


def test_fingerprint_and_difference_count_what_is_computed():
    config, print_ = resolved(), configs.fingerprint(resolved())
    for same in ('mesh.data=1', 'log.every=7', 'checkpoint.keep=5', 'micro_batches=2'):
        assert configs.fingerprint(resolved(same)) == print_
        assert configs.difference(config, resolved(same)) == []
    for other, keys in (
        ('optim.lr=.1', ['optim.lr']),
        ('terms.2.weight=.2', ['terms.2.weight']),
        ('optim.clip=none', ['optim.clip']),
    ):
        assert configs.fingerprint(resolved(other)) != print_
        assert configs.difference(config, resolved(other)) == keys
    elsewhere = resolved(datasets=dict(main=data_set('/elsewhere')))
    assert configs.fingerprint(elsewhere) == configs.fingerprint(resolved(datasets=dict(main=data_set('/here'))))
    assert len(print_) == 16


def test_the_order_of_keys_in_a_file_is_of_no_consequence(tmp_path):
    config = configs.read(TINY).to_dict()
    turned = {name: config[name] for name in reversed(list(config))}
    (tmp_path / 'mine.py').write_text(f'def get_config():\n    return {turned!r}\n')
    config_of_file = configs.resolve(configs.read(str(tmp_path / 'mine.py')), {})
    assert list(config_of_file) == list(resolved())
    assert json.loads(configs.to_json(config_of_file)) == json.loads(configs.to_json(resolved()))


if __name__ == '__main__':
    GOLDEN.mkdir(exist_ok=True)
    for shipped in SHIPPED:
        (GOLDEN / f'{shipped.stem}.json').write_text(dump(shipped))


# Labels and columns.


@pytest.mark.parametrize(
    ('override', 'sentence'),
    [
        ("labels=['foo']", "labels=['foo']: the data have ['effusion']; leave this key out"),
        ("labels='effusion'", "labels='effusion': must be None, or the list of names"),
        ('labels=5', 'labels=5: must be None'),
        ('columns=dict(sex=5)', "columns.sex=5: must be 'number', a list of at least two different words, or None"),
        ("columns=dict(sex=['F'])", 'a list of at least two different words'),
        ("columns=dict(sex=['F','F'])", 'a list of at least two different words'),
        ('columns=dict(sex=dict(F=1))', "must be 'number', a list of at least two"),
        ("columns='sex'", 'it takes a dict (now {})'),
    ],
)
def test_labels_and_columns_that_do_not_fit(override, sentence):
    with pytest.raises(UserError) as error:
        resolved(override, datasets=dict(main=data_set()))
    assert sentence in str(error.value)
