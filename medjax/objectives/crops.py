"""The embeddings of all crops of an image, from one feature or several: what terms that compare crops read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.terms import TermContext, TermInputs
from medjax.plugins import text_list

EXAMPLE = 'student/image/crop/cls>projector'  # of a feature


def feature_names(context: TermContext, value: str | Sequence[str], argument: str) -> tuple[str, ...]:
    """The value of the config key `argument`, the name of one feature or of several, as a tuple of names."""
    return (value,) if isinstance(value, str) else text_list(value, f'{context.where}.{argument}', EXAMPLE)


def crop_features(context: TermContext, names: Sequence[str]) -> tuple[Feature, ...]:
    """Declares features of crops. UserError unless they can be compared.

    They have equal widths, show one part of the batch, and have two crops or more together.
    """
    if not names:
        raise UserError(f'{context.where}.of: no feature is named; name one of crops, such as {EXAMPLE!r}')
    features = tuple(context.feature(name, 'of') for name in names)
    for feature in features:
        if feature.at:
            raise UserError(
                f'{context.where}.of: {feature.name!r} has several tokens a crop; the term needs one vector'
            )
    context.same_part(*features)
    widths = {name: context.width(name) for name in names}
    if len(set(widths.values())) > 1:
        shown = ' and '.join(f'{name!r} has {width}' for name, width in widths.items())
        raise UserError(f'{context.where}.of: all crops need equally many numbers, but {shown}')
    if sum(context.crops.get(feature.view, 1) for feature in features) < 2:
        raise UserError(
            f'{context.where}.of: {names[0]!r} has one crop, and the term compares crops of an image; give its '
            'view count=2 or more, or name a second feature'
        )
    return features


def embeddings(x: TermInputs, features: Sequence[Feature]) -> tuple[Array, Array]:
    """The embeddings of all crops, float32 [B,V,D], and which rows have all of them, bool [B]."""
    values = [x.feature(f, 'BVD').astype(jnp.float32) for f in features]
    present = [x.present(f) for f in features]
    return jnp.concatenate(values, axis=1), jnp.concatenate(present, axis=1).all(1)


def shape_of(shapes: Mapping[str, tuple[int, ...]], features: Sequence[Feature]) -> tuple[int, int]:
    """The number of crops V and of dimensions D of some features, from the shapes of all."""
    return sum(shapes[f.name][1] for f in features), shapes[features[0].name][2]
