"""Decides which labels count: first `apply` follows --policy, then `known` keeps positive and negative labels.

Records keep labels as the source gives them: positive (1), negative (0), uncertain (-1), blank (-2), conflicting (-3).
A user can have the last three counted as positive or negative:

    medjax probe … --policy uncertain=negative,blank=negative

The features of a probe carry the labels after this policy. On CheXpert the choice moves AUROCs by some hundredths
(arXiv 1901.07031), so every result names its policy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medjax.data import types
from medjax.data.types import CODES, NEGATIVE, POSITIVE
from medjax.errors import UserError, suggest

VALUES = dict(positive=POSITIVE, negative=NEGATIVE)

# True where a label counts. Uncertain (-1), blank (-2) and conflicting (-3) labels do not: every probe leaves them out
# of its fit, and every metric leaves them out of its value. The other labels of the same record still count.
known = types.known


def parse(text: str) -> dict[str, str]:
    """The policy that an option names: 'uncertain=negative' -> {'uncertain': 'negative'}; UserError for other names."""
    policy = {}
    for rule in filter(None, text.split(',')):
        name, _, value = rule.partition('=')
        for given, names in ((name, CODES), (value, VALUES)):
            if given not in names:
                raise UserError(f'--policy {text}: {given!r} is none of {", ".join(names)}{suggest(given, names)}')
        policy[name] = value
    return policy


def apply(labels: np.ndarray, policy: Mapping[str, str]) -> np.ndarray:
    """int8 [n,L]: the labels with the codes that the policy names replaced by 1 or 0."""
    labels = labels.copy()
    for name, value in policy.items():
        labels[labels == CODES[name]] = VALUES[value]
    return labels
