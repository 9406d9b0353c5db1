"""What the term `supervised` takes from the train splits: weights against scikit-learn, mean and deviation, levels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import class_weight

from medjax import config as configs
from medjax.data import records, train_records
from medjax.data.builder import write
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.terms import supervised
from medjax.stages import stages

COUNT = 90
RECIPE = """
def get_config():
    return dict(
        total_steps=4,
        batch_size=8,
        image=dict(channels=1, mean=0.5, std=0.25),
        data=dict(images=dict(sources=dict({sources}))),
        views=dict(crop=dict(view='crop', part='images', size=16, area=(0.5, 1.0))),
        columns=dict(age=None, sex=None, grade=None, one=None),
        towers=dict(image=dict(tower='vit', variant='Ti/8', width=16, depth=1, heads=1, native_size=16)),
        heads=dict(classifier=dict(head='linear', bias=True)),
        terms=[dict(term='supervised', of='student/image/crop/cls>classifier')],
        optim=dict(lr=1e-3),
        log=dict(every=2),
        export=dict(towers=['image'], heads=['classifier']),
    )
"""


def source(name: str, labels: tuple[str, ...], seed: int) -> Source:
    """Images of 30 patients in train and test, with codes of all kinds and attributes that are sometimes unknown."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([1, 0, -1, -2, -3], (COUNT, len(labels)), p=[0.2, 0.5, 0.1, 0.1, 0.1])
    pictures = rng.integers(0, 256, (COUNT, 16, 16)).astype(np.uint8)
    ages, grades = rng.normal(50, 15, COUNT), rng.integers(1, 5, COUNT)

    def load(i: int) -> Example:
        attributes = dict(sex='FM'[i % 3 == 0], grade=float(grades[i]), one=1.0)
        return Example(pictures[i], attributes=attributes | (dict(age=float(ages[i])) if i % 5 else {}))

    splits = ['train', 'train', 'val', 'test', 'train']
    entries = [Entry(str(i), f'p{i % 30}', f's{i}', splits[i % 5], f'line {i}') for i in range(COUNT)]
    return Source(name, '1', name, labels, '', entries, lambda i: codes[i].tolist(), load)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A recipe of one source and of two, and two data sets: a has both labels, b has one of them."""
    folder = tmp_path_factory.mktemp('targets')
    for name, labels in (('a', ('effusion', 'nodule')), ('b', ('nodule',))):
        write.write(source(name, labels, ord(name)), folder / name)
    (folder / 'one.py').write_text(RECIPE.format(sources='main=1.0'))
    (folder / 'two.py').write_text(RECIPE.format(sources='a=3.0, b=1.0'))
    return folder


def term_of(folder, *overrides: str, two: bool = False) -> dict:
    """The resolved options of the term."""
    data = [f'a={folder / "a"}', f'b={folder / "b"}'] if two else [str(folder / 'a')]
    config, _ = configs.load(str(folder / ('two.py' if two else 'one.py')), data, overrides)
    return config['terms'][0]


def test_balanced_weights_of_labels_are_those_of_scikit_learn(folder):
    codes = records.open(folder / 'a').split('train').labels_array
    given = term_of(folder, 'terms.0.weights=balanced', 'terms.0.policy=dict(uncertain="positive")')
    for k in range(2):
        known = codes[:, k][np.isin(codes[:, k], [0, 1, -1])]
        y = (known != 0).astype(int)
        expected = class_weight.compute_class_weight('balanced', classes=np.array([0, 1]), y=y)
        np.testing.assert_allclose(given['weights'][k], expected, rtol=1e-6)


def test_balanced_weights_of_a_mixture_count_each_source_as_often_as_it_is_shown(folder):
    given = term_of(folder, 'terms.0.weights=balanced', two=True)
    splits = [records.open(folder / name).split('train') for name in 'ab']
    totals = np.zeros(2)
    for split, share in zip(splits, (0.75, 0.25), strict=True):
        nodule = split.labels_array[:, -1]
        totals += [share / len(split) * (nodule == value).sum() for value in (0, 1)]
    np.testing.assert_allclose(given['weights'][1], totals.sum() / (2 * totals), rtol=1e-6)


def test_balanced_weights_of_classes(folder):
    sex = records.open(folder / 'a').split('train').column('sex')
    given = term_of(folder, 'terms.0.weights=balanced', 'terms.0.classes=sex')
    expected = class_weight.compute_class_weight('balanced', classes=np.array(['F', 'M']), y=np.asarray(sex))
    np.testing.assert_allclose(given['weights'], expected, rtol=1e-6)
    codes = records.open(folder / 'a').split('train').labels_array
    alone = ((codes == 1).sum(1) == 1) & ~np.isin(codes, [-1, -3]).any(1)
    given = term_of(folder, 'terms.0.weights=balanced', "terms.0.classes=['effusion', 'nodule']")
    y = codes[alone].argmax(1)
    expected = class_weight.compute_class_weight('balanced', classes=np.array([0, 1]), y=y)
    np.testing.assert_allclose(given['weights'], expected, rtol=1e-6)


def test_mean_and_deviation_of_a_column_and_those_that_are_given(folder):
    age = records.open(folder / 'a').split('train').column('age').astype(np.float64)
    given = term_of(folder, 'terms.0.numbers=age')
    np.testing.assert_allclose([*given['mean'], *given['std']], [np.nanmean(age), np.nanstd(age)], rtol=1e-6)
    given = term_of(folder, 'terms.0.numbers=age', 'terms.0.mean=40')
    assert given['mean'] == 40 and given['std'] == pytest.approx([np.nanstd(age)])


def test_levels_of_a_column_of_numbers(folder):
    given = term_of(folder, 'terms.0.ordered=grade', 'terms.0.weights=balanced')
    assert given['levels'] == (1, 2, 3, 4)
    grade = records.open(folder / 'a').split('train').column('grade')
    for k, level in enumerate(given['levels'][:-1]):
        y = grade[grade >= level] > level
        expected = class_weight.compute_class_weight('balanced', classes=np.array([False, True]), y=np.asarray(y))
        np.testing.assert_allclose(given['weights'][k], expected, rtol=1e-6)


def test_a_share_of_patients_counts_alone(folder):
    train = records.open(folder / 'a').split('train')
    patients = train.keys('patient')
    keys = np.stack([patients >> np.uint64(32), patients & np.uint64(2**32 - 1)], 1).astype(np.uint32)
    used = supervised.is_used(keys, 0.4, 1)
    assert len(np.unique(patients[used])) < len(np.unique(patients))
    assert not set(patients[used]) & set(patients[~used])  # a patient is in or out as a whole
    given = term_of(folder, 'terms.0.numbers=age', 'terms.0.share=.4', 'terms.0.seed=1')
    assert given['mean'] == pytest.approx([np.nanmean(train.column('age')[used])])
    part = train_records.of_part(dict(sources=dict(main=1.0)), dict(main=records.open(folder / 'a')))
    np.testing.assert_array_equal(part.patients(), keys)


@pytest.mark.parametrize(
    ('overrides', 'sentence'),
    [
        (['terms.0.share=1e-6'], 'no train record that it may use has a known value of effusion, nodule'),
        (['terms.0.ordered=sex'], "'sex' is a column of words, and you know their order; write levels=.'F', 'M'."),
        (
            ['terms.0.ordered=one'],
            "have 1 different numbers in 'one', and a term learns 2 to 100 levels; write lev",
        ),
        (['terms.0.numbers=one'], "all train records that it may use have 1 in 'one', so there is nothing to learn"),
        (['terms.0.numbers=height'], r'columns=dict\(height=None\) lists one'),
        (['terms.0.of=student/image/corp/cls>classifier'], "there is no view 'corp'; did you mean 'crop'"),
        (["terms.0.policy=dict(blank='yes')"], "policy.blank='yes': must be 'ignore'"),
    ],
)
def test_mistakes_that_the_data_show_are_sentences(folder, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        term_of(folder, *overrides)


def test_a_stage_writes_its_weights_out(folder):
    change = "stages=[dict(at=2, change={'terms.0.weights': 'balanced'})]"
    config, _ = configs.load(str(folder / 'one.py'), [str(folder / 'a')], [change])
    with pytest.raises(UserError, match='weights: comes from the data when a run begins, but not in a stage'):
        compose(stages(config)[1].config)


@pytest.mark.parametrize('value', ['.7', '[.55, .85]', 'positive', "dict(effusion='positive')"])
def test_a_policy_is_changed_by_an_override(folder, value):
    text = (folder / 'one.py').read_text().replace("classifier')]", "classifier', policy=dict(uncertain='ignore'))]")
    (folder / 'policy.py').write_text(text)
    given, _ = configs.load(str(folder / 'policy.py'), [str(folder / 'a')], [f'terms.0.policy.uncertain={value}'])
    assert given['terms'][0]['policy']['uncertain'] != 'ignore'
