"""Learns the vocabulary of a WordPiece tokenizer from the texts of data sets."""

from __future__ import annotations

from collections.abc import Iterable

from medjax.data.records import DataSet
from medjax.data.text.language import sentences
from medjax.data.text.tokenizer import SPECIAL, bert_pieces, of_words
from medjax.errors import UserError


def train(datasets: Iterable[DataSet], size: int) -> str:
    """Learns a tokenizer with at most `size` tokens from the texts of the train splits. Returns its JSON.

    The tokenizer uses lower case without accents, cuts words as BERT does, and gives [CLS] text [SEP]. Each different
    text counts once, even if many images have it. At most a quarter of the tokens are single letters, the most frequent
    ones. Equal texts give an equal file (with one version of the tokenizers library). UserError where there is no text.
    """
    corpus = [' '.join(sentences(text)) for data in datasets for text in _distinct_texts(data)]
    if not corpus:
        raise UserError('no training record has a text, so there is nothing to learn a vocabulary from')
    if size < 100:
        raise UserError(f'--size {size}: a vocabulary has at least 100 tokens')
    from tokenizers import Tokenizer as Inner, models, trainers

    inner = bert_pieces(Inner(models.WordPiece(unk_token='[UNK]')), lower=True)
    # The library numbers letters within words in the order of a hash table, which differs from run to run, and it
    # breaks ties by these numbers. Special tokens are numbered first, in the given order: so the letters are passed as
    # special tokens.
    counts: dict[str, int] = {}
    for text in corpus:
        for letter in inner.normalizer.normalize_str(text):
            counts[letter] = counts.get(letter, 0) + (not letter.isspace())
    letters = sorted(sorted(filter(counts.get, counts), key=lambda c: (-counts[c], c))[: size // 4])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[*SPECIAL, *(f'##{c}' for c in letters)],
        initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(corpus, trainer)
    vocabulary = inner.get_vocab(with_added_tokens=True)
    return of_words(sorted(vocabulary, key=vocabulary.__getitem__), lower=True).to_str(pretty=True)


def _distinct_texts(data: DataSet) -> list[str]:
    """The texts of the train split, each once, in the order of the records."""
    if 'train' not in data.splits:
        return []
    split = data.split('train')
    texts: dict[int, str] = {}
    for i, key in enumerate(split.keys('text').tolist()):
        if key and key not in texts:
            texts[key] = '\n\n'.join(split.text(i).values())
    return list(texts.values())
