"""What labels that are neither yes nor no count as: a probe's reader decides, records keep them as they were given.

    'uncertain=negative,blank=negative'   uncertain (-1), blank (-2) and conflicting (-3) labels as positive or negative

What is not named stays out of the fit and of the figures. On CheXpert the choice moves AUROCs by some hundredths
(1901.07031), so it is written into every result.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medjax.data.types import BLANK, CONFLICTING, NEGATIVE, POSITIVE, UNCERTAIN
from medjax.errors import UserError, suggest

CODES = dict(uncertain=UNCERTAIN, blank=BLANK, conflicting=CONFLICTING)
VALUES = dict(positive=POSITIVE, negative=NEGATIVE)


def parse(text: str) -> dict[str, str]:
    """{'uncertain': 'negative', …} from 'uncertain=negative,…'; UserError where a word is not known."""
    policy = {}
    for part in filter(None, text.split(',')):
        name, _, value = part.partition('=')
        for word, words in ((name, CODES), (value, VALUES)):
            if word not in words:
                raise UserError(f'--policy {text}: {word!r} is none of {", ".join(words)}{suggest(word, words)}')
        policy[name] = value
    return policy


def decided(labels: np.ndarray, policy: Mapping[str, str]) -> np.ndarray:
    """int8 [n,L] with the codes that the policy names replaced by 1 or 0."""
    labels = labels.copy()
    for name, value in policy.items():
        labels[labels == CODES[name]] = VALUES[value]
    return labels
