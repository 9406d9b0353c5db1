"""A recipe with a tower over image and text: contrastive pairs, matching with hard negatives, masked words."""

from __future__ import annotations

from typing import Any

import numpy as np
import recipes

TOKENS = dict(vocabulary=38, pad=0, unknown=1, first=2, last=3, mask=4)
SIDE, LENGTH, GROUP = 16, 8, 4  # image side in pixels, tokens of a text, rows of a group
IMAGE, TEXT = 'student/image/crop/cls>vi', 'student/text/report/cls>vt'


def fusion(**changes: Any) -> dict[str, Any]:
    """Towers of widths 24 and 20 and depth 1, images of 16 pixels, texts of 8 tokens."""
    recipe = dict(
        total_steps=10,
        rows_per_group=GROUP,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        tokenizer=dict(path='words', tokens=TOKENS),
        views=dict(
            crop=dict(view='crop', part='cxr', size=SIDE, area=(0.5, 1.0)),
            report=dict(view='text', part='cxr', length=LENGTH),
        ),
        masks={'report~words': dict(mask='words', share=0.3)},
        towers=dict(
            image=dict(tower='vit', variant='S/8', width=24, depth=1, heads=2, native_size=SIDE, layerscale=None),
            text=dict(tower='text', width=20, depth=1, heads=2, vocabulary=TOKENS['vocabulary'], context=LENGTH),
            fusion=dict(tower='fusion.tower', reads=['image', 'text']),
        ),
        heads=dict(
            vi=dict(head='linear', out=12),
            vt=dict(head='linear', out=12),
            match=dict(head='linear', out=1, bias=True),
            words=dict(head='words', vocabulary=TOKENS['vocabulary'], tie='towers/text/words'),
        ),
        teachers={},
        terms=[
            dict(term='pair_softmax', rows=IMAGE, columns=TEXT, temperature=dict(learned=0.2)),
            dict(
                term='fusion.match',
                name='match',
                of='student/fusion/crop+report/cls',
                image='image',
                text='text',
                head='match',
                similar=[IMAGE, TEXT],
            ),
            dict(term='fusion.words', name='words', of='student/fusion/crop+report~words/tokens>words'),
        ],
        optim=dict(lr=1e-3),
    )
    return {**recipe, **changes}


def batch(rows: int, absent: bool = True, seed: int = 0) -> dict[str, Any]:
    """Pictures and texts; with `absent`, rows 1 and 6 of every eight have no text, and row 3 has no picture."""
    rng = np.random.default_rng(seed)
    data = recipes.batch(rows, size=24, seed=seed)['cxr']
    lengths = rng.integers(5, LENGTH + 1, (rows, 1)).astype(np.int32)
    number = np.arange(rows)
    if absent:
        lengths[(number % 8 == 1) | (number % 8 == 6)] = 0
        data['image/present'][number % 8 == 3] = False
    place = np.arange(LENGTH)
    ids = rng.integers(5, TOKENS['vocabulary'], (rows, 1, LENGTH))
    ids[..., 0] = TOKENS['first']
    ids = np.where(place == lengths[..., None] - 1, TOKENS['last'], np.where(place < lengths[..., None], ids, 0))
    own = np.stack([np.zeros(rows), 1 + number], 1).astype(np.uint32)
    return dict(
        cxr=data
        | {
            'text/report': ids.astype(np.int32),
            'text/report/length': lengths,
            'key/text': own,
            'key/study': own,
        }
    )


def with_noise(data: dict[str, Any]) -> dict[str, Any]:
    """The same batch with other pixels and tokens wherever something is absent."""
    rng, part = np.random.default_rng(1), dict(data['cxr'])
    image, ids = part['image'].copy(), part['text/report'].copy()
    no_image, no_text = ~part['image/present'][:, 0], part['text/report/length'][:, 0] == 0
    image[no_image] = rng.integers(0, 255, image[no_image].shape)
    ids[no_text] = rng.integers(0, TOKENS['vocabulary'], ids[no_text].shape)
    assert no_image.any() and no_text.any()
    return dict(cxr=part | {'image': image, 'text/report': ids})
