"""Metrics of generated reports beside the true ones: BLEU, ROUGE-L, METEOR, and F1 of findings.

    BLEU-1, BLEU-4   of sacrebleu, over all reports, words in lower case and split as '13a' (Papineni 2002)
    ROUGE-L          of rouge_score: F of the longest common subsequence, the mean over reports (Lin 2004)
    METEOR           of nltk with WordNet 3.0, the mean over reports (Banerjee and Lavie 2005)
    F1               of findings named by rules, see `medjax.probes.findings`; macro over findings, and micro

Published figures often come from other programs (pycocoevalcap, CheXbert). They split words and weigh synonyms in other
ways, so compare figures of this module with each other. The METEOR of nltk looks for synonyms of stems, so it finds
fewer than the original program: 'large' is no synonym of 'big', because its stem is 'larg'.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.probes import findings
from medjax.probes.statistics import Bootstrap, Sample

ORDER = 4  # of BLEU: up to four words
INSTALL = "pip install 'medjax[report-metrics]'"
WORDNET = pathlib.Path('/usr/share/wordnet')  # where Debian's package wordnet-base puts it
NAMES = (*findings.FINDINGS, findings.NO_FINDING)
FIVE = ('Cardiomegaly', 'Edema', 'Consolidation', 'Atelectasis', 'Pleural Effusion')  # the five of CheXpert's contest


def bleu_counts(reference: str, generated: str) -> np.ndarray:
    """float64 [10]: equal n-grams of 1 to 4 words, all n-grams of 1 to 4 words, generated and true words."""
    score = _bleu().sentence_score(generated, [reference])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], np.float64)


def bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """float64 [R] in [0,1]: the BLEU of sums of `bleu_counts` [R,10], of n-grams up to `order` words."""
    equal, totals = counts[:, :order], counts[:, ORDER : ORDER + order]
    with np.errstate(divide='ignore', invalid='ignore'):
        precision = np.exp(np.log(equal / totals).mean(1))  # 0 where a length has no equal n-gram
        brevity = np.exp(np.minimum(0.0, 1 - counts[:, -1] / counts[:, -2]))  # 0 without a generated word
        return np.where((equal == 0).any(1), 0.0, precision * brevity)


def rouge_l(reference: str, generated: str) -> float:
    """F of the longest common subsequence."""
    return _rouge().score(reference, generated)['rougeL'].fmeasure


def meteor(reference: str, generated: str) -> float:
    """METEOR of lower-cased words. UserError without WordNet, see `check_meteor`."""
    from nltk.translate.meteor_score import meteor_score

    words = [re.findall(r'\w+', text.lower()) for text in (reference, generated)]
    return float(meteor_score([words[0]], words[1], wordnet=_wordnet()))


def finding_counts(reference: str, generated: str) -> np.ndarray:
    """float64 [3,14]: whether each finding is in both reports, in the generated one alone, in the true one alone.

    Positive and uncertain count as there, as in the F1 of CheXbert.
    """
    true, found = (
        np.array([labels.get(name, 0) != 0 for name in NAMES]) for labels in map(findings.label, (reference, generated))
    )
    return np.stack([true & found, ~true & found, true & ~found]).astype(np.float64)


def f1(counts: np.ndarray) -> np.ndarray:
    """float64 [R,L]: 2 TP / (2 TP + FP + FN) of counts [R,3,L]; nan where neither report has the finding."""
    both, more, less = np.moveaxis(counts, 1, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return 2 * both / (2 * both + more + less)


def scores(references: Sequence[str], generated: Sequence[str], bootstrap: Bootstrap, with_meteor: bool) -> Any:
    """{metric: {value, low, high, …}, 'findings': {finding: …}}, with intervals over patients."""
    pairs = list(zip(references, generated, strict=True))
    count = bootstrap.sums(np.stack([bleu_counts(*pair) for pair in pairs]))
    means = dict(rouge_l=[rouge_l(*pair) for pair in pairs])
    if with_meteor:
        means['meteor'] = [meteor(*pair) for pair in pairs]
    with np.errstate(invalid='ignore'):  # the jackknife of one patient leaves no report
        mean = bootstrap.sums(np.stack([np.ones(len(pairs)), *means.values()], 1)).map(lambda x: x[:, 1:] / x[:, :1])
    found = bootstrap.sums(np.stack([finding_counts(*pair) for pair in pairs]).reshape(len(pairs), -1))
    found = found.map(lambda x: x.reshape(-1, 3, len(NAMES)))
    of_each = found.map(f1)
    said = ~np.isnan(of_each.value)
    five = np.array([name in FIVE for name in NAMES])

    def macro(chosen: np.ndarray) -> Sample:
        return of_each.filled().map(lambda x: x[:, chosen].mean(1) if chosen.any() else np.full(len(x), np.nan))

    def micro(chosen: np.ndarray) -> Sample:
        return found.map(lambda x: f1(x[:, :, chosen].sum(2, keepdims=True))[:, 0])

    samples = dict(bleu_1=count.map(lambda x: bleu(x, 1)), bleu_4=count.map(lambda x: bleu(x, ORDER)))
    samples |= {name: mean.at(i) for i, name in enumerate(means)}
    samples |= dict(macro_f1_14=macro(said), micro_f1_14=micro(np.ones_like(five)))
    samples |= dict(macro_f1_5=macro(said & five), micro_f1_5=micro(five))
    each = {
        name: bootstrap.estimate(of_each.at(i)) | dict(reports=int(found.value[[0, 2], i].sum()))
        for i, name in enumerate(NAMES)
    }
    unsaid = [name for name, is_there in zip(NAMES, said) if not is_there]
    return {name: bootstrap.estimate(x) for name, x in samples.items()} | dict(findings=each, not_mentioned=unsaid)


def check_installed() -> None:
    """UserError where a library is missing."""
    for library in ('sacrebleu', 'rouge_score', 'nltk'):
        if importlib.util.find_spec(library) is None:
            raise UserError(f'{library} is not installed, which metrics of reports need: {INSTALL}')


def missing_meteor() -> str | None:
    """Why there is no METEOR; None if there is."""
    if not (WORDNET / 'data.noun').is_file():
        return f'METEOR is left out: there is no WordNet in {WORDNET}; apt-get install wordnet-base'
    return None


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, effective_order=True)


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(['rougeL'])


@functools.cache
def _wordnet() -> Any:
    """The WordNet of Debian, which lacks the file `lexnames` that nltk reads first and METEOR does not need."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        LEXNAMES = ''.join(f'{i:02}\t{i}\t0\n' for i in range(45))

        def open(self, file: str) -> Any:
            return io.StringIO(self.LEXNAMES) if file == 'lexnames' else super().open(file)

        def map_wn(self, version: str = 'wordnet') -> None:
            return None  # from other versions of WordNet, which are not there

    if str(WORDNET) not in nltk.data.path:  # nltk reads nothing outside of these folders
        nltk.data.path.append(str(WORDNET))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it has English words alone
        return Reader(str(WORDNET), None)
