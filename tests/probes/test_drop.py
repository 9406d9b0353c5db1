"""A continued run that became worse than its start says so, where intervals do not overlap."""

from __future__ import annotations

import pytest

from medjax.probes import drop


def content(step, value, half=0.03, probe='knn', data='cxr', labels=('effusion', 'nodule'), **more):
    mean = dict(value=value, low=None if half is None else value - half, high=None if half is None else value + half)
    rows = {'mean': mean} | dict.fromkeys(labels, mean)
    about = dict(data=data, data_fingerprint='f00', probe=probe, encoder=dict(step=step), policy={})
    return about | dict(results=dict(auroc=rows, auprc=rows)) | more


def test_a_drop_is_a_sentence_with_both_figures_and_a_way_on():
    (told,) = drop.sentences([content(0, 0.8), content(500, 0.76), content(1_000, 0.7), content('random', 0.5)])
    assert told.startswith(
        'Worse than its start: knn on cxr, mean AUROC .700 [.670, .730] at step 1,000, .800 [.770, .830] at step 0.'
    )
    assert 'A lower optim.lr, layer-wise decay' in told


@pytest.mark.parametrize(
    'found',
    [
        [content(0, 0.8), content(1_000, 0.75)],  # intervals overlap
        [content(0, 0.8), content(500, 0.5), content(1_000, 0.8)],  # it came back
        [content(0, 0.5), content(1_000, 0.8)],  # better
        [content(500, 0.8), content(1_000, 0.5)],  # the run began with nothing
        [content(0, 0.8), content('dinov2', 0.5)],  # an encoder beside the run
        [content(0, 0.8, half=None), content(1_000, 0.5, half=None)],  # no intervals
        [content(0, 0.8), content(1_000, 0.5, labels=('effusion',))],  # a mean over other labels
        [content(0, 0.8), content(1_000, 0.5, probe='linear')],
        [content(0, 0.8), content(1_000, 0.5, data_fingerprint='f01')],
        [content(0, 0.8), content(1_000, 0.5, policy={'uncertain': 'positive'})],
        [],
    ],
)
def test_no_false_alarm(found):
    assert drop.sentences(found) == []


def test_each_probe_is_judged_by_itself():
    found = [content(step, value, probe=p) for p in ('knn', 'linear') for step, value in ((0, 0.8), (9, 0.6))]
    found += [content(0, 0.8, data='nih'), content(9, 0.79, data='nih')]
    assert [told.partition(', mean')[0] for told in drop.sentences(found)] == [
        'Worse than its start: knn on cxr',
        'Worse than its start: linear on cxr',
    ]
