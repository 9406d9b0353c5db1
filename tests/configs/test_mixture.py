"""configs/mixture.py: images with reports, with labels, and alone in every batch; contrast and self-distillation."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from PIL import Image
from report_recipes import PROMPTS, SIDE, small, trained

from medjax import config as configs, train
from medjax.data import records
from medjax.data.builder import vocabulary, write
from medjax.data.sources import phantom, table
from medjax.data.stream import Stream
from medjax.data.text import tokenizer
from medjax.objectives.compose import compose
from medjax.views import make

COMPOSITION = dict(paired=8, labelled=4, bare=4)
ROWS = sum(COMPOSITION.values())
DINO = ('distill_cls', 'distill_patch', 'koleo')


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    """Phantoms with reports; a table of images with labels; a table of nothing but images."""
    folder = tmp_path_factory.mktemp('mixture')
    write.write(phantom.source(48, SIDE), folder / 'paired')
    rng = np.random.default_rng(0)
    for name, columns in (('labelled', 'image,split,effusion,nodule'), ('bare', 'image,split')):
        (folder / f'{name}_files').mkdir()
        lines = [columns]
        for i in range(9):
            noise = rng.integers(0, 255, (SIDE, SIDE), np.uint8)
            Image.fromarray(noise).save(folder / f'{name}_files' / f'{i}.png')
            lines.append(','.join([f'{i}.png', 'train', str(i % 2), str(i % 3 // 2)][: columns.count(',') + 1]))
        (folder / f'{name}_files' / 'metadata.csv').write_text('\n'.join(lines) + '\n')
        write.write(table.source(str(folder / f'{name}_files')), folder / name)
    opened = {name: records.open(folder / name) for name in COMPOSITION}
    (folder / 'paired' / tokenizer.NAME).write_text(vocabulary.train([opened['paired']], 400))
    return opened


def recipe() -> configs.ConfigDict:
    config = small('mixture')
    config.data.cxr.rows = config.batch_size = ROWS
    config.views.report.prompts = PROMPTS
    config.views.local.update(size=16, count=2)
    config.towers.image.variant = 'Ti/8'
    return config


def sources(stream: Stream, part: str, step: int) -> np.ndarray:
    """The source of every row of a batch."""
    rows = stream.rows[part]
    return np.array([stream.parts[part].sources[stream.parts[part].mixing[step * rows + r][0]] for r in range(rows)])


@pytest.mark.slow
def test_all_kinds_of_rows_train_one_tower(datasets):
    """The terms count their rows: those with a text, and all of them."""
    lines = trained(configs.check(configs.resolve(recipe(), datasets)), datasets)
    for line in lines:
        assert line['term/pair_softmax/rows'] == COMPOSITION['paired'] + COMPOSITION['labelled']
        assert line['term/pair_softmax/left_out'] == COMPOSITION['bare']
        assert line['term/distill_cls/rows'] == line['term/koleo/rows'] == ROWS
        assert line['term/distill_patch/rows'] > 0  # masked tokens
        assert line['skipped'] == 0 and np.isfinite(line['loss'])


@pytest.mark.slow
def test_what_each_kind_of_row_gives_to_each_term(datasets):
    """Rows without a text change the gradients of DINO's terms and not that of the contrast; both reach the tower."""
    config = configs.check(configs.resolve(recipe(), datasets))
    stream = Stream(config['data'], datasets, 0, views=config['views'], tokenizer=train.open_tokenizer(config))
    objective = compose(config)
    views_of = make.build(objective.views, config['masks'], config['image'], objective.grids(), 8)
    params, aux = jax.jit(objective.init)(jax.random.key(0))
    step, key = np.int32(0), jax.random.key(1)

    def losses(params, batch):
        views, masks = views_of(batch, key, step)
        computed, _ = objective.features(params, aux, views, masks, key, step)
        metrics = objective.loss(params, aux, computed, views, masks, key, step)[1][0]
        return {name: metrics[f'term/{name}/loss'] for name in ('pair_softmax', *DINO)}

    run = jax.jit(jax.jacrev(losses))
    batch = next(stream.batches())
    bare = sources(stream, 'cxr', 0) == 'bare'
    assert not batch['cxr']['text/report/length'][bare].any() and bare.sum() == COMPOSITION['bare']
    assert batch['cxr']['text/report/length'][~bare].all()
    other = {'cxr': dict(batch['cxr'])}
    other['cxr']['image'] = np.where(
        bare[:, None, None, None, None], 255 - batch['cxr']['image'], batch['cxr']['image']
    )
    one, two = run(params, batch), run(params, other)
    for name in one:
        tower = [np.abs(g).max() for g in jax.tree.leaves(one[name]['towers']['image']['blocks'])]
        assert min(tower) > 0, f'{name} gives the image tower no gradient'
        words = np.abs(np.asarray(one[name]['towers']['text']['words'])).max()
        assert (words > 0) == (name == 'pair_softmax')
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, one[name]['towers'], two[name]['towers'])
        assert any(jax.tree.leaves(moved)) == (name != 'pair_softmax'), name


def test_compositions_hold_over_epochs_and_hosts(datasets):
    """9 labelled and 9 bare records go through their epochs at 4 rows a step; every batch is composed alike."""
    config = configs.check(configs.resolve(recipe(), datasets))
    stream = Stream(config['data'], datasets, 0, views=config['views'], tokenizer=train.open_tokenizer(config))
    for step in range(40):
        names, counts = np.unique(sources(stream, 'cxr', step), return_counts=True)
        assert dict(zip(names, counts, strict=True)) == COMPOSITION
    hosts = [stream.batches(5, {'cxr': rows}) for rows in (np.arange(ROWS // 2), np.arange(ROWS // 2, ROWS))]
    for step, batches in enumerate(zip(*(itertools.islice(host, 6) for host in hosts), strict=True), start=5):
        lengths = np.concatenate([batch['cxr']['text/report/length'][:, 0] for batch in batches])
        assert ((lengths == 0) == (sources(stream, 'cxr', step) == 'bare')).all()


@pytest.mark.slow
def test_images_alone_as_a_part_of_their_own_at_another_size(datasets):
    config = recipe()
    config.data = configs.ConfigDict(
        dict(
            cxr=dict(rows=8, canvas=None, sources=dict(paired=0.75, labelled=0.25)),
            alone=dict(rows=8, canvas=None, sources=dict(bare=1.0)),
        )
    )
    config.views['wide'] = dict(view='crop', part='alone', count=2, size=(16, 48), area=(0.3, 0.6), aspect=(2.0, 4.0))
    config.masks['wide~block'] = dict(config.masks['global~block'])
    wide = dict(
        name='distill_wide', student=['student/image/wide~block/cls>dino'], teacher='teacher/image/wide/cls>dino'
    )
    config.terms = [*config.terms, {**config.terms[1], **wide}]
    lines = trained(configs.check(configs.resolve(config, datasets)), datasets)
    for line in lines:
        assert line['term/pair_softmax/rows'] == 8 and line['term/pair_softmax/left_out'] == 0
        assert line['term/distill_cls/rows'] == line['term/distill_wide/rows'] == 8
        assert np.isfinite(line['loss']) and line['skipped'] == 0
    assert all(line['term/distill_wide/loss/wide~block'] > 0 for line in lines)
