"""Tokenizers from files compared with transformers, difficult texts, and trained vocabularies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medjax import cli
from medjax.data import records
from medjax.data.builder import vocabulary, write
from medjax.data.text import tokenizer
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'no', 'pleural', 'eff', '##usion', '.', ',', 'a', '##l', 'der']
TEXTS = [
    'No pleural effusion.',
    'No pleural effusion, no pleural effusion. ' * 5,
    'al',
    'effusion',
    'Unbekanntes Wort, no Éffusion',
    'no\x00pleural\x07\teffusion',
    'pleural 中文 effusion',
]


@pytest.fixture
def vocab_file(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    return tmp_path / 'vocab.txt'


@pytest.fixture
def bpe(tmp_path):
    """A tokenizer like CLIP's: byte-level pairs, an end-of-word suffix, special tokens around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE(end_of_word_suffix='</w>', unk_token='<|end|>'))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ['<|start|>', '<|end|>']
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, end_of_word_suffix='</w>', show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(TEXTS, trainer)
    inner.post_processor = processors.RobertaProcessing(('<|end|>', 1), ('<|start|>', 0))
    inner.save(str(tmp_path / 'bpe.json'))
    return tmp_path / 'bpe.json'


@pytest.mark.parametrize('longest', [4, 8, 64])
@pytest.mark.parametrize('cased', [False, True])
def test_a_vocabulary_cuts_as_bert_does(vocab_file, longest, cased):
    transformers = pytest.importorskip('transformers')
    if cased:
        vocab_file.write_text('\n'.join([*WORDS, 'No', 'Al']) + '\n')
    words = {word: k for k, word in enumerate(vocab_file.read_text().split())}
    theirs = transformers.BertTokenizer(vocab=words, do_lower_case=not cased)
    ours = tokenizer.load(vocab_file)
    for text in TEXTS:
        expected = theirs(text, truncation=True, max_length=longest)['input_ids']
        assert ours.encode(text, longest) == ([] if set(expected) <= {1, 2, 3} else expected), text
    assert ours.tokens == tokenizer.Tokens(len(words), pad=0, first=2, last=3, mask=4, unknown=1)
    assert ours.around == 2


@pytest.mark.parametrize('longest', [4, 8, 64])
def test_a_json_file_gives_the_same_ids_as_transformers(bpe, longest):
    transformers = pytest.importorskip('transformers')
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bpe), pad_token='<|end|>')
    ours = tokenizer.load(bpe)
    for text in TEXTS[:5]:
        ids = ours.encode(text, longest)
        padded = theirs(text, truncation=True, max_length=longest, padding='max_length')['input_ids']
        assert ids + [ours.tokens.pad] * (longest - len(ids)) == padded
    assert (ours.tokens.first, ours.tokens.last, ours.tokens.pad, ours.tokens.mask) == (0, 1, 1, None)
    assert ours.tokens.vocabulary == len(json.loads(bpe.read_text())['model']['vocab'])


def test_the_pad_token_is_that_of_the_file_or_the_named_one(vocab_file, bpe, tmp_path):
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(bpe))
    inner.enable_padding(pad_id=7, pad_token='x', length=9)
    inner.enable_truncation(3)
    inner.save(str(tmp_path / 'filled.json'))
    filled = tokenizer.load(tmp_path / 'filled.json')
    assert filled.tokens.pad == 7
    assert filled.encode(TEXTS[0], 64) == tokenizer.load(bpe).encode(TEXTS[0], 64)  # neither cut nor padded
    assert tokenizer.load(bpe, pad='<|start|>').tokens.pad == 0
    with pytest.raises(UserError, match="tokenizer.pad: .* has no token '</s>'"):
        tokenizer.load(vocab_file, pad='</s>')


def test_difficult_texts(vocab_file):
    encode = tokenizer.load(vocab_file).encode
    assert encode('', 8) == encode(' \n\t', 8) == encode('\x00\x07\u200b', 8) == []
    assert encode('hjärta', 8) == encode('中文 胸部', 8) == []  # only unknown tokens
    assert encode('no', 8) == [2, 5, 3]
    long = encode('no effusion, ' * 5_000, 256)
    assert len(long) == 256 and long[0] == 2 and long[-1] == 3 and long[1:5] == [5, 7, 8, 10]
    assert encode('no \ud800 effusion', 8) == [2, 5, 1, 7, 8, 3]  # a lone surrogate, as JSON may hold, is a '?'


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('missing.json', None, 'cannot be read .No such file'),
        ('broken.json', b'{', 'is no file of the library tokenizers'),
        ('other.json', b'{"a": 1}', 'is no file of the library tokenizers'),
        ('spiece.model', b'\x80\xff\x00', 'is no text in UTF-8'),
        ('vocab.txt', b'[PAD]\n[UNK]\n[SEP]\n', r'is no vocab.txt of a BERT: it has no line \[CLS\]'),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        tokenizer.load(tmp_path / name)


# Trained.


def data_set(folder, texts, name='reports'):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (len(texts), 8, 8), np.uint8)
    entries = [Entry(f'{i}', f'{i}', f'{i}', 'test' if i == 0 else 'train') for i in range(len(texts))]
    source = Source(
        name, '1', name, (), '', entries, lambda i: [],
        lambda i: Example(images[i], text={'report': texts[i]} if texts[i] else {}),
    )  # fmt: skip
    write.write(source, folder / name)
    return records.open(folder / name)


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    rng = np.random.default_rng(1)
    words = [
        'effusion',
        'pleural',
        'no',
        'heart',
        'Größe',
        'lungs',
        'clear',
        'pneumothorax',
        'left',
        'right',
        'opacity',
    ]
    texts = [' '.join(rng.choice(words, 8)) + '.' for _ in range(30)]
    return data_set(tmp_path_factory.mktemp('tokens'), ['zzz qqq zzz qqq', *texts, *texts[:5]])


def test_a_trained_vocabulary_has_the_words_of_its_corpus(reports, tmp_path):
    made = vocabulary.train([reports], 200)
    (tmp_path / 'tokenizer.json').write_text(made)
    ours = tokenizer.load(tmp_path / 'tokenizer.json')
    assert ours.tokens == tokenizer.Tokens(ours.tokens.vocabulary, pad=0, first=2, last=3, mask=4, unknown=1)
    words = json.loads(made)['model']['vocab']
    assert len(words) == ours.tokens.vocabulary <= 200
    assert {'effusion', 'pneumothorax', 'große'} <= words.keys()
    assert ours.encode('Pneumothorax EFFUSION.', 9) == [2, words['pneumothorax'], words['effusion'], words['.'], 3]
    assert 'z' not in words  # the test split is not read
    assert len(json.loads(vocabulary.train([reports], 100))['model']['vocab']) <= 100


def test_the_same_texts_give_the_same_file_in_every_process(reports):
    path = str(reports.path)
    program = (
        'from medjax.data import records\n'
        'from medjax.data.builder import vocabulary\n'
        f'print(vocabulary.train([records.open({path!r})], 200))'
    )
    env = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'JAX_PLATFORMS': 'cpu'}
    other = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=env, check=True).stdout
    assert other.strip() == vocabulary.train([reports], 200).strip()
    assert {vocabulary.train([reports], 200) for _ in range(5)} == {other.strip()}


def test_the_command_writes_it_beside_the_records(reports, tmp_path, capsys):
    def medjax(*argv):
        code = cli.main(['tokenizer', *map(str, argv)])
        return code, *capsys.readouterr()

    code, out, _ = medjax(reports.path, '--size', 150)
    assert code == 0 and 'tokenizer.json' in out and 'fingerprint' in out
    records.open(reports.path)  # still a data set
    code, _, err = medjax(reports.path)
    assert code == 2 and 'add --overwrite' in err
    assert medjax(reports.path, '--overwrite')[0] == 0
    code, _, err = medjax(reports.path, reports.path)
    assert code == 2 and '--out' in err
    assert medjax(reports.path, reports.path, '--out', tmp_path / 'both.json', '--size', 8_000)[0] == 0
    assert (tmp_path / 'both.json').read_bytes() == (reports.path / 'tokenizer.json').read_bytes()
    code, _, err = medjax(reports.path, '--size', 9, '--overwrite')
    assert code == 2 and 'at least 100 tokens' in err
    silent = data_set(tmp_path, ['no report in train', '', ''], 'silent')
    code, _, err = medjax(silent.path)
    assert code == 2 and 'no training record has a text' in err


def test_a_vocabulary_saved_on_windows_is_the_same(vocab_file):
    before = tokenizer.load(vocab_file).encode('no pleural effusion', 9)
    vocab_file.write_bytes(vocab_file.read_bytes().replace(b'\n', b'\r\n'))
    assert tokenizer.load(vocab_file).encode('no pleural effusion', 9) == before
