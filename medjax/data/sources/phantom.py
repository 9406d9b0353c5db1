"""The embedded data set: a thorax phantom, rendered as it is built; nothing is downloaded."""

from __future__ import annotations

import argparse

from medjax.data import phantom
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    default = phantom.Settings()
    parser.add_argument('--records', type=int, default=2000, help='number of images (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=default.size, help='pixels, square, 32 to 1024 (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=default.seed, help='another seed, other patients')
    parser.add_argument(
        '--label-noise',
        type=float,
        default=default.label_noise,
        metavar='SHARE',
        help='share of labels that are flipped',
    )
    parser.add_argument(
        '--shortcut',
        type=float,
        default=default.shortcut,
        metavar='P',
        help='probability of a chest tube with a pneumothorax',
    )
    parser.add_argument(
        '--healthy', type=float, default=default.healthy, metavar='SHARE', help='share of patients without any finding'
    )
    parser.add_argument('--bits', type=int, default=default.bits, choices=(8, 16))


def source(
    records: int,
    size: int = 256,
    seed: int = 0,
    label_noise: float = 0.0,
    shortcut: float = 0.0,
    healthy: float = 0.0,
    bits: int = 8,
) -> Source:
    """The first `records` images of the phantom. Their ids need no secret, so the key is a public one."""
    if records < 1:
        raise UserError(f'--records {records}: at least one image is needed')
    settings = phantom.check(phantom.Settings(seed, size, label_noise, shortcut, healthy, bits))

    def entry(i: int) -> Entry:
        who = phantom.identity(i, seed)
        return Entry(image=who.image, patient=who.patient, study=who.study, split=None, where=f'record {i}')

    def label(i: int) -> list[int]:
        found = phantom.labels(i, settings)
        return [found[name] for name in phantom.LABELS]

    def load(i: int) -> Example:
        made = phantom.record(i, settings)
        return Example(
            image=made.image,
            role=made.identity.role,
            text=made.text,
            attributes=made.attributes,
            mask=made.mask,
        )

    return Source(
        name='phantom',
        version=f'{phantom.VERSION} seed={seed} label_noise={label_noise} shortcut={shortcut} healthy={healthy}',
        namespace=f'phantom-{seed}',  # another seed, other patients; another size, the same
        labels=phantom.LABELS,
        license='CC0-1.0',
        entries=[entry(i) for i in range(records)],
        label=label,
        load=load,
        key=phantom.KEY,
    )
