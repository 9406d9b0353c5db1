"""Texts in batches: the host draws and tokenizes them, with the same result on any number of hosts."""

from __future__ import annotations

import numpy as np
import pytest
from text_batches import PROMPTS, VIEWS, WORDS, datasets_in, part, report, take, tokenizer_in

from medjax.data.stream import Stream
from medjax.errors import UserError


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    return datasets_in(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return tokenizer_in(tmp_path_factory.mktemp('vocabulary'))


def decoded(ids, length):
    """The words of a text, without first and last token."""
    return ' '.join(WORDS[k] for k in ids[1 : max(length - 1, 1)]).replace(' ##', '')


def test_a_batch_holds_the_texts_of_its_records(datasets, tokenizer):
    stream = Stream(part(), datasets, 3, views=VIEWS, tokenizer=tokenizer)
    mixing, kinds = stream.parts['cxr'].mixing, set()
    for step, batch in enumerate(take(stream, 12)):
        assert batch['text/report'].dtype == np.int32 and batch['text/report'].shape == (8, 1, 12)
        assert batch['text/sentence'].shape == (8, 3, 8) and batch['text/sentence/length'].dtype == np.int32
        for r in range(8):
            source, record, _ = mixing[step * 8 + r]
            ids, length = batch['text/report'][r, 0], batch['text/report/length'][r, 0]
            assert (ids[length:] == 0).all()  # filled up
            assert length == 0 or (ids[0], ids[length - 1]) == (2, 3)
            text = decoded(ids, length)
            labels = dict(zip(('effusion', 'nodule'), datasets['labelled'].split('train').labels_array[record % 6]))
            expected = {
                0: {str(report(record).get('impression', '')).replace('.', ' .')},
                1: {1: {'effusion .', 'effusion one .', 'effusion two .'}, 0: {'normal .'}, -2: {''}}[
                    labels['effusion']
                ],
                2: {''},
            }[source]
            assert text in expected
            assert batch['key/text'][r].any() == (length > 0)
            kinds.add((source, length > 0))
            lengths = batch['text/sentence/length'][r]
            findings = report(record).get('findings') if source == 0 else None
            assert (lengths > 0).tolist() == [findings is not None] * 3
            if findings:
                assert sorted(decoded(ids, n) for ids, n in zip(batch['text/sentence'][r], lengths)) == sorted(
                    ['effusion one .', 'nodule two .', f'mass {record} .']
                )
    assert kinds == {(0, True), (0, False), (1, True), (1, False), (2, False)}


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('threads', [1, 3])
def test_hosts_and_threads_change_nothing(datasets, tokenizer, hosts, threads):
    whole = take(Stream(part(), datasets, 7, threads=1, views=VIEWS, tokenizer=tokenizer), 5)
    stream = Stream(part(), datasets, 7, threads=threads, views=VIEWS, tokenizer=tokenizer)
    shuffled = np.random.default_rng(1).permutation(8).reshape(hosts, -1)
    fed = [take(stream, 3, start=2, rows={'cxr': rows}) for rows in shuffled]
    for step in range(3):
        for name in whole[0]:
            joined = np.concatenate([fed[h][step][name] for h in range(hosts)])[np.argsort(shuffled.ravel())]
            np.testing.assert_array_equal(joined, whole[2 + step][name], err_msg=name)


def test_draws_depend_on_seed_view_epoch_and_record_alone(datasets, tokenizer):
    views = {name: dict(VIEWS['sentence'], count=1) for name in ('one', 'two')}

    def drawn(seed=0, rows=20, epochs=2, views=views, **sources):
        texts = {}
        stream = Stream(part(rows, **(sources or dict(paired=1.0))), datasets, seed, views=views, tokenizer=tokenizer)
        mixing = stream.parts['cxr'].mixing
        for step, batch in enumerate(take(stream, 20 * epochs // rows)):
            for r in range(rows):
                source, record, epoch = mixing[step * rows + r]
                if source == 0:
                    texts[epoch, record] = {name: tuple(batch[f'text/{name}'][r, 0]) for name in views}
        return texts

    first = drawn()
    assert len(first) == 40
    assert drawn(rows=5) == first == drawn(rows=10)  # another batch size
    alone = drawn(views={'two': views['two']})  # another config with the same view
    assert all(alone[at] == {'two': first[at]['two']} for at in first)
    mixed = drawn(paired=0.5, bare=0.5)  # another mixture
    assert all(mixed[at] == first[at] for at in mixed)

    def differ(a, b):
        return any(x != y for x, y in zip(a, b, strict=True))

    assert differ([first[0, i] for i in range(20)], [first[1, i] for i in range(20)])
    assert differ([first[0, i]['one'] for i in range(20)], [first[0, i]['two'] for i in range(20)])
    assert differ(first.values(), drawn(seed=1).values())


def test_parts_without_texts(datasets, tokenizer):
    """A part without a text view has no text fields. In a part with one, the texts of image-only rows are absent."""
    two = {**part(8, paired=0.5, labelled=0.5), 'images': dict(rows=4, sources=dict(bare=1.0))}
    batch = next(Stream(two, datasets, 0, views=VIEWS, tokenizer=tokenizer).batches())
    assert not any(name.startswith('text/') for name in batch['images']) and not batch['images']['key/text'].any()
    views = {'report': dict(view='text', part='cxr', length=12)}
    mixed = take(Stream(part(8, paired=0.5, bare=0.5), datasets, 0, views=views, tokenizer=tokenizer), 1)[0]
    mixing = Stream(part(8, paired=0.5, bare=0.5), datasets, 0).parts['cxr'].mixing
    bare = np.array([mixing[r][0] == 1 for r in range(8)])
    assert bare.sum() == 4 and not mixed['text/report/length'][bare].any() and mixed['text/report/length'][~bare].any()


def test_captions_and_texts_of_unknown_tokens(datasets, tokenizer):
    views = {'report': dict(view='text', part='cxr', length=12)}
    for batch in take(Stream(part(4, captions=0.5, foreign=0.5), datasets, 0, views=views, tokenizer=tokenizer), 3):
        lengths = batch['text/report/length'][:, 0]
        assert (lengths > 0).sum() == 2
        assert {decoded(ids, n)[:8] for ids, n in zip(batch['text/report'][:, 0], lengths) if n} == {'caption '}


@pytest.mark.parametrize(
    ('views', 'sources', 'sentence'),
    [
        (dict(), dict(bare=1.0), 'sources of data.cxr (bare): their records have no text'),
        (dict(), dict(bare=1.0), 'views.report: no text for impression, findings, report, caption in the'),
        (dict(sections=['impression']), dict(captions=0.5, bare=0.5), 'no text for impression in the sources of'),
        (dict(sections=['impression']), dict(captions=1.0), '(captions): their records have the sections caption'),
        (dict(prompts=PROMPTS), dict(paired=1.0), "report.prompts: present: the data have no label 'effusion'; known"),
        (dict(prompts={'present': {'nodul': ['x']}}), dict(labelled=1.0), "'nodul'; did you mean 'nodule'"),
        (dict(count=0), dict(paired=1.0), 'views.report.count'),
    ],
)
def test_mistakes_are_sentences(datasets, tokenizer, views, sources, sentence):
    with pytest.raises(UserError) as error:
        Stream(
            part(8, **sources),
            datasets,
            0,
            views={'report': dict(view='text', part='cxr', length=12, **views)},
            tokenizer=tokenizer,
        )
    assert sentence in str(error.value)


def test_a_text_view_needs_a_tokenizer_and_room(datasets, tokenizer):
    with pytest.raises(UserError, match=r'views.report: a text view needs a tokenizer; see tokenizer.path'):
        Stream(part(), datasets, 0, views=VIEWS)
    views = {'report': dict(view='text', part='cxr', length=3)}
    around = tokenizer._replace(around=3)
    with pytest.raises(UserError, match='views.report.length: 3 tokens have no room for a word: .* puts 3 around'):
        Stream(part(), datasets, 0, views=views, tokenizer=around)
