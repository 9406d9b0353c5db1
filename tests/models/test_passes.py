"""Passes: which input of a tower a view belongs to, the order of passes, and one sentence for every mistake."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.models import build, passes
from medjax.models.passes import InputName, bind, check_exported, image_pass, ordered, parse_reads
from medjax.objectives.compose import compose
from medjax.objectives.features import parse
from medjax.training.rehearsal import rehearse
from medjax.types import Read

ROOT = Path(__file__).parents[2]
VIT = dict(tower='vit', variant='S/8', width=16, depth=1, heads=2, native_size=16)
TEXT = dict(tower='text', width=16, depth=1, heads=2, vocabulary=40, context=8)
SUM = dict(tower='tests.sum_tower')
TOWERS = dict(
    fusion=dict(SUM, reads=['image', 'text']),
    image=VIT,
    text=TEXT,
    pooler=dict(SUM, reads=['now=image', 'prior=image?']),
    late=dict(SUM, reads=['image', 'text?']),
    two=dict(SUM, reads=['a=image?', 'b=image?']),
    deep=dict(SUM, reads=['study=pooler', 'text']),
    raw=dict(SUM, reads=['text', None]),
    resnet=dict(tower='resnet', variant='18', stem=8, depths=(1, 1)),
    decoder=dict(tower='decoder', reads=['image'], width=16, depth=1, heads=2),
)
KINDS = dict(crop='image', earlier='image', report='text')
CHOSEN = {'crop~random': dict(mask='random', share=0.5)}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def towers():
    return build.towers(TOWERS, 1)


def recipe(*features: str, **changes: Any) -> dict[str, Any]:
    """Two views of images and one of texts; a term reads each of the features."""
    base = dict(
        total_steps=10,
        rows_per_group=2,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views=dict(
            crop=dict(view='crop', part='cxr', size=16),
            earlier=dict(view='crop', part='cxr', size=16),
            other=dict(view='crop', part='ct', size=16),
            report=dict(view='text', part='cxr', length=8),
        ),
        masks=CHOSEN,
        towers=TOWERS,
        heads={},
        teachers={},
        terms=[dict(term='koleo', name=f'term{i}', of=name) for i, name in enumerate(features)],
        tokenizer=dict(tokens=dict(vocabulary=40, pad=0, first=1, last=2, mask=3, unknown=4)),
        optim=dict(lr=1e-3),
    )
    return base | changes


def refused(cfg: dict[str, Any]) -> str:
    """The sentence with which a recipe is refused before anything is allocated."""

    def build_and_run() -> None:
        objective = compose(cfg)
        rehearse(objective, recipes.views(cfg, objective), cfg)

    with pytest.raises(UserError) as error:
        build_and_run()
    assert '\n' not in str(error.value)
    return str(error.value)


def inputs(text: str) -> tuple[InputName, ...]:
    return parse(f'student/x/{text}/cls', 'x').inputs


def bound(towers, tower: str, text: str) -> str:
    return bind('student', tower, inputs(text), towers, KINDS).name


# Binding.


@pytest.mark.parametrize(
    ('tower', 'text', 'name'),
    [
        ('image', 'crop~random', 'student/image/crop~random'),
        ('fusion', 'crop+report', 'student/fusion/crop+report'),
        ('fusion', 'report~words+crop~random', 'student/fusion/crop~random+report~words'),
        ('fusion', 'text=report+crop', 'student/fusion/crop+report'),
        ('pooler', 'prior=earlier+now=crop', 'student/pooler/crop+earlier'),
        ('pooler', 'prior=earlier+crop', 'student/pooler/crop+earlier'),
        ('pooler', 'crop', 'student/pooler/crop+'),  # the required input comes first
        ('late', 'crop', 'student/late/crop+'),
        ('late', 'report+crop', 'student/late/crop+report'),
        ('two', 'b=crop', 'student/two/+crop'),
        ('deep', 'study.now=crop+study.prior=earlier+report', 'student/deep/crop+earlier+report'),
        ('deep', 'crop+report', 'student/deep/crop++report'),
        ('raw', 'report+crop', 'student/raw/report+crop'),
        ('decoder', 'crop~random', 'student/decoder/crop~random'),
    ],
)
def test_an_input_goes_to_the_entry_of_its_name_or_kind(towers, tower, text, name):
    assert bound(towers, tower, text) == name


def test_a_composed_tower_is_read_by_another(towers):
    one = bind('student', 'deep', inputs('study.now=crop+study.prior=earlier+report~words'), towers, KINDS)
    study, text = one.inputs
    assert (study.through.tower, study.view) == ('pooler', 'crop')
    assert (text.through.tower, text.masked_view) == ('text', 'report~words')
    assert [view.masked_view for view in one.views] == ['crop', 'earlier', 'report~words']
    assert [(source.view, tower) for source, tower in passes.readers(one)] == [
        ('crop', 'image'), ('earlier', 'image'), ('report', 'text')
    ]  # fmt: skip
    assert [p.name for p in ordered([one])] == [
        'student/image/crop', 'student/image/earlier', 'student/pooler/crop+earlier', 'student/text/report~words',
        'student/deep/crop+earlier+report~words',
    ]  # fmt: skip


def test_equal_passes_are_shared_whatever_the_order_of_their_inputs():
    objective = compose(
        recipe('student/fusion/crop+report/cls', 'student/fusion/report+crop/cls', 'student/fusion/earlier+report/cls')
    )
    first, second, third = objective.passes.values()
    assert first == second and first.name == second.name and first != third
    names = [one.name for one in ordered(objective.passes.values())]
    assert names == [
        'student/image/crop', 'student/text/report', 'student/fusion/crop+report', 'student/image/earlier',
        'student/fusion/earlier+report',
    ]  # fmt: skip


def test_different_passes_have_different_names(towers):
    names = [bound(towers, 'two', text) for text in ('a=crop', 'b=crop', 'a=crop+b=earlier', 'a=earlier+b=crop')]
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ('entries', 'reads'),
    [
        (['image'], [Read('image', 'image', False)]),
        (('image', 'text?'), [Read('image', 'image', False), Read('text', 'text', True)]),
        (['prior=image?'], [Read('prior', 'image', True)]),
        ([None], [Read('view', None, False)]),
        (['?'], [Read('view', None, True)]),
        (['now=', 'text'], [Read('now', None, False), Read('text', 'text', False)]),
    ],
)
def test_entries_of_reads(entries, reads):
    assert parse_reads(entries, 'x') == tuple(reads)


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        ('image', r"towers\.x\.reads: a list of towers, such as \['image', 'text'\], not 'image'"),
        ([], 'a list of towers'),
        ([''], "'' is no entry; write the name of a tower"),
        (['image text'], "'image text' is no entry"),
        ([3], '3 is no entry'),
        (['image', 'image?'], "two inputs are called 'image'; give them names of their own, as in 'current=image'"),
    ],
)
def test_mistakes_in_reads(entries, words):
    with pytest.raises(UserError, match=words):
        parse_reads(entries, 'towers.x.reads')


@pytest.mark.slow
def test_a_pass_is_present_where_its_required_inputs_are():
    cfg = recipe('student/fusion/crop+report/cls', 'student/late/crop+report/cls', 'student/two/a=crop+b=earlier/cls')
    objective = compose(cfg)
    data = recipes.batch(4)['cxr']
    there = np.array([True, True, False, False])
    length = np.array([[8], [0], [8], [0]], np.int32)
    data |= {'image/present': there[:, None], 'text/report': np.ones((4, 1, 8), np.int32), 'text/report/length': length}
    key, step = jax.random.key(0), jnp.int32(0)
    params, aux = objective.init(key)
    make_views = recipes.views(dict(cfg, masks={}), objective)

    def features(params, aux, batch):
        return objective.features(params, aux, *make_views(batch, key, step), key, step)[0]

    computed = run(features, params, aux, dict(cxr=data, ct=data))
    fusion, late, two = (computed.presence[name][:, 0].tolist() for name in objective.declared)
    assert fusion == [True, False, False, False]
    assert late == two == there.tolist()
    assert all(np.isfinite(x).all() for x in computed.features.values())


# Encoding images alone, and exports.


def test_the_pass_that_encodes_images_alone(towers):
    assert image_pass('image', towers).name == 'student/image/image'
    assert image_pass('late', towers).name == 'student/late/image+'
    assert image_pass('pooler', towers).name == 'student/pooler/image+'
    assert image_pass('two', towers).name == 'student/two/image+'
    for name in ('text', 'fusion', 'deep', 'raw'):
        with pytest.raises(UserError, match=f'the tower {name!r} cannot encode images alone: it reads'):
            image_pass(name, towers)


def test_a_tower_gets_the_costly_outputs_that_it_wants(monkeypatch):
    """Those of the towers that it reads, in an objective and where a probe encodes images."""
    tower = importlib.import_module('tests.sum_tower').SumTower
    monkeypatch.setattr(tower, 'read', lambda self, x: x.outputs['last2/cls'].sum(2))
    towers = dict(image=dict(VIT, depth=2), sum=dict(SUM, reads=['image']))
    objective = compose(recipe('student/sum/crop/cls', 'student/image/crop/cls', towers=towers))
    greedy = dataclasses.replace(objective.towers['sum'], wants=('last2/cls',))
    objective = dataclasses.replace(objective, towers={**objective.towers, 'sum': greedy})
    wants = {one.name: want for one, want in objective.wanted.items()}
    assert wants == {'student/image/crop': {'last2/cls'}, 'student/sum/crop': set()}
    key = jax.random.key(0)
    params, aux = objective.init(key)
    views = dict(crop=objective.views['crop'])
    objective = dataclasses.replace(objective, views=views)
    make_views = recipes.views(dict(recipe(), masks={}), objective)

    def both(params, aux, batch):
        views, masks = make_views(batch, key, jnp.int32(0))
        computed, _ = objective.features(params, aux, views, masks, key, jnp.int32(0))
        return computed, passes.encode_images('sum', objective.towers, params['towers'], views['crop'].image[:, 0])

    computed, encoded = run(both, params, aux, recipes.batch(2))
    assert np.isfinite(encoded['cls']).all() and len(computed.features) == 2
    np.testing.assert_allclose(encoded['cls'], computed.features['student/sum/crop/cls'], rtol=1e-5, atol=1e-6)


def test_an_export_has_the_towers_that_its_towers_read(towers):
    check_exported(['image', 'text', 'fusion'], towers)
    with pytest.raises(UserError, match=r"export\.towers: 'decoder' reads the tower 'image'; export that too: towers="):
        check_exported(['decoder'], towers)


@pytest.mark.parametrize(
    ('export', 'words'),
    [
        (dict(towers=['decoder']), ["export.towers: 'decoder' reads the tower 'image'", "towers=['decoder', 'image']"]),
        (dict(towers=['deep', 'pooler', 'image']), ["'deep' reads the tower 'text'"]),
        (
            dict(towers=['image', 'text', 'fusion'], encoder='fusion'),
            ["export.encoder: the tower 'fusion' cannot encode images alone", 'image (images) and text (texts)'],
        ),
        (dict(towers=['resnet', 'text']), ["export.encoder: probes would run the tower 'image'", "encoder='resnet'"]),
        (dict(towers=['image', 'nope']), ["export.towers: there is no tower 'nope'"]),
        (dict(towers=['image', 'text'], encoder='text'), ['export.encoder', "'text' cannot encode images alone"]),
        (
            dict(towers=['image', 'decoder'], encoder='decoder'),
            ['export.encoder: decoder: the encoder reads'],
        ),
    ],
)
def test_a_config_that_cannot_be_exported_is_refused(export, words):
    cfg = recipe('student/image/crop/cls', export=dict(network='student', heads=[], encoder=None) | export)
    sentence = refused(cfg)
    for word in words:
        assert word in sentence


# Mistakes in features, towers and masks.


@pytest.mark.parametrize(
    ('feature', 'words'),
    [
        ('student/fusion/crop/cls', ["input 'text' of the tower 'fusion' is missing", 'a view of texts, after a +']),
        ('student/fusion/report/cls', ["input 'image' of the tower 'fusion' is missing", 'a view of images']),
        ('student/deep/report/cls', ["input 'study' of the tower 'deep' is missing", 'a view of images']),
        (
            'student/fusion/image=report+text=crop/cls',
            ["'image' of the tower 'fusion' sees images", "'report' has none"],
        ),
        (
            'student/fusion/crop+report+earlier/cls',
            ["'fusion' has no place for", 'it reads image (images) and text (texts)'],
        ),
        ('student/image/crop+earlier/cls', ["'image' has no place for the view 'earlier'", 'one view (images)']),
        ('student/image/report/cls', ["'image' sees images, and the view 'report' has none"]),
        ('student/text/crop/cls', ["'text' sees texts, and the view 'crop' has none"]),
        ('student/fusion/picture=crop+report/cls', ["'fusion' has no input 'picture'", 'image']),
        ('student/fusion/image=crop+image=earlier+report/cls', ["'image' of the tower 'fusion' is given twice"]),
        ('student/pooler/crop+earlier/cls', ['several views of images', 'now=crop or prior=crop']),
        ('student/two/crop/cls', ["'two' reads several views of images", 'a=crop or b=crop']),
        ('student/deep/crop+earlier+report/cls', ['study.now=crop or study.prior=crop']),
        (
            'student/fusion/other+report/cls',
            ["different parts of the batch: 'other' shows 'ct' and 'report' shows 'cxr'"],
        ),
        ('student/fusion/crap+report/cls', ["there is no view 'crap'; did you mean 'crop'?"]),
        ('student/fsuion/crop+report/cls', ["there is no tower 'fsuion'; did you mean 'fusion'?"]),
        ('student/image/crop~rand/cls', ["there is no mask 'crop~rand'; did you mean 'crop~random'?"]),
        ('student/image/crop/patch', ["there is no output 'patch'", "did you mean 'patches'?"]),
        ('student/fusion/crop+report/tokens', ["there is no output 'tokens'", 'cls']),
        ('student/image/crop/last0/cls', ["there is no output 'last0/cls'"]),
        ('student/image/crop/last3/cls', ["the tower 'image' has no 3 blocks; name last1/… at most"]),
        ('student/image/crop/present', ["'present' is no feature"]),
        ('student/image/crop/patches', ['has the shape [2, 1, 4, 16], and the term needs one of [B,V,D]']),
        ('student/image/crop~random/patches@random', ['there are none at the positions', 'leave out @random']),
        ('student/resnet/crop~random/cls', ['masks']),
        ('student/decoder/crop/pixels', ["mode 'drop'", 'crop~random']),
    ],
)
def test_a_mistake_in_a_feature_is_a_sentence_that_names_it(feature, words):
    sentence = refused(recipe(feature))
    assert f'feature {feature!r}' in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            dict(term='regress', student='student/image/crop/cls', teacher='student/image/other/cls'),
            ["different parts of the batch: 'crop' shows 'cxr' and 'other' shows 'ct'"],
        ),
        (
            dict(term='pair_softmax', rows='student/fusion/crop+report/cls', columns='student/fusion/report+crop/cls'),
            ['has one crop, which would be its own pair'],
        ),
        (dict(term='pixels', of='student/decoder/crop~random/cls'), ['the term needs one of [B,V,N,P]']),
        (dict(term='pixels', of='student/image/crop~random/patches'), ['2 of the 4 patches', 'of a decoder']),
    ],
)
def test_features_that_do_not_fit_a_term(change, words):
    sentence = refused(recipe(terms=[change]))
    for word in words:
        assert word in sentence


def test_two_inputs_of_other_counts():
    cfg = recipe('student/pooler/now=crop+prior=earlier/cls')
    cfg['views'] = cfg['views'] | dict(earlier=dict(view='crop', part='cxr', size=16, count=3))
    cfg['views']['crop'] = dict(cfg['views']['crop'], count=2)
    cfg['towers'] = dict(TOWERS, pooler=dict(SUM, reads=['now=image', 'prior=image']))
    assert 'its inputs have 2 and 3 crops or texts a row' in refused(cfg)


def test_a_wanted_output_that_a_tower_lacks(monkeypatch):
    tower = importlib.import_module('tests.sum_tower').SumTower
    cfg = recipe('student/sum/crop/cls', towers=dict(image=VIT, sum=dict(SUM, reads=['image'])))
    init = tower.__init__
    monkeypatch.setattr(tower, '__init__', _with_wants(init, ('levels/1',)))
    assert "towers.image: a tower that reads it wants its output 'levels/1', which it does not give" in refused(cfg)
    monkeypatch.setattr(tower, '__init__', _with_wants(init, 'last2/cls'))
    assert 'must be a list of texts' in refused(cfg)


def _with_wants(init, wants):
    return lambda self, **fields: init(self, **(fields | dict(wants=wants)))


def test_a_decoder_behind_a_mask_that_replaces():
    masks = {'crop~random': dict(mask='random', share=0.5, mode='replace')}
    sentence = refused(recipe('student/decoder/crop~random/pixels', masks=masks))
    assert "feature 'student/decoder/crop~random/pixels'" in sentence and "mode 'drop'" in sentence


def test_a_size_that_is_no_multiple_of_the_patches_behind_a_decoder():
    cfg = recipe('student/decoder/crop~random/pixels')
    cfg['views'] = dict(cfg['views'], crop=dict(view='crop', part='cxr', size=60))
    cfg['towers'] = dict(TOWERS, image=dict(VIT, variant='S/16'))
    sentence = refused(cfg)
    assert 'views.crop.size=60' in sentence and "the tower 'image'" in sentence and '48 or 64 would work' in sentence


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(a=dict(SUM, reads=['b']), b=dict(SUM, reads=['a'])), ['in a circle: a -> b -> a']),
        (dict(a=dict(SUM, reads=['a'])), ['towers.a.reads', 'in a circle: a -> a']),
        (dict(a=dict(SUM, reads=['imgae'])), ["towers.a.reads: there is no tower 'imgae'; did you mean 'image'?"]),
        (dict(a=dict(tower='decoder')), ["towers.a: the key 'reads' is missing", "'decoder' reads, as ['image']"]),
        (dict(a=dict(VIT, reads=['image'])), ["towers.a.reads: 'vit' is a tower of views and reads no other tower"]),
        (dict(a=dict(tower='decoder', reads=['text'])), ["it reads one tower, a ViT: reads=['image']"]),
        (dict(a=dict(tower='decoder', reads=[None])), ['it reads one tower, a ViT']),
        (dict(a=dict(tower='decoder', reads=['image'], mlp_ratio=-1)), ['mlp_ratio=-1: must be a number above 0']),
        (dict(a=dict(tower='decoder', reads=['x=image', 'y=image'])), ['it reads one tower, a ViT']),
    ],
)
def test_a_mistake_in_the_towers_is_a_sentence(changes, words):
    sentence = refused(recipe('student/image/crop/cls', towers=TOWERS | changes))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ('masks', 'words'),
    [
        ({'report~random': dict(mask='random')}, ['masks.report~random: this mask is for images', 'shows texts']),
        ({'report~block': dict(mask='blocks')}, ['masks.report~block: this mask is for images', 'shows texts']),
        ({'crop~words': dict(mask='words')}, ['masks.crop~words: this mask is for texts', 'shows images']),
        ({'crap~random': dict(mask='random')}, ["there is no view 'crap'; did you mean 'crop'?"]),
        ({'crop': dict(mask='random')}, ['a mask is called view~mask']),
        ({'earlier~random': dict(mask='random')}, ['no feature shows the view', 'earlier']),
        ({'crop~a': dict(mask='random', after=['crop~b'])}, ["there is no mask 'crop~b'"]),
        ({'crop~a': dict(mask='random', after='crop~b')}, ['masks.crop~a.after', 'a list']),
        (
            {'crop~a': dict(mask='random', after=['crop~b']), 'crop~b': dict(mask='random', after=['crop~a'])},
            ['masks.crop~a.after', 'in a circle: crop~a -> crop~b -> crop~a'],
        ),
        ({'crop~a': dict(mask='random', share=1.5)}, ['masks.crop~a.share=1.5', 'between 0 and 1']),
        ({'crop~a': dict(mask='random', mode='hide')}, ["masks.crop~a.mode='hide'", "'drop', 'replace' or 'zero'"]),
    ],
)
def test_a_mistake_in_the_masks_is_a_sentence(masks, words):
    sentence = refused(recipe('student/image/crop/cls', 'student/text/report/cls', masks=masks))
    for word in words:
        assert word in sentence


def test_a_mask_that_follows_one_of_another_grid():
    masks = {'crop~a': dict(mask='random', after=['earlier~b']), 'earlier~b': dict(mask='random')}
    cfg = recipe('student/image/crop~a/cls', 'student/image/earlier~b/cls', masks=masks)
    cfg['views'] = dict(cfg['views'], earlier=dict(view='crop', part='cxr', size=32))
    assert "'earlier~b' masks a view with another grid" in refused(cfg)
