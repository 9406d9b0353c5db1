"""The embedded data set: a thorax phantom, rendered as it is built; nothing is downloaded.

Splits: drawn per patient.
Labels: the findings of `medjax.data.phantom`.
Patients: invented, so their ids are hashed with a public key. Another seed gives other patients.
Licence: CC0-1.0.
"""

from __future__ import annotations

import argparse
import dataclasses

from medjax.data import phantom
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Release:
    """The images of the phantom for one choice of settings."""

    settings: phantom.Settings

    def entry(self, i: int) -> Entry:
        """The entry of image i."""
        identity = phantom.identity(i, self.settings.seed)
        return Entry(identity.image, identity.patient, identity.study, split=None, where=f'record {i}')

    def label(self, i: int) -> list[int]:
        """The code of each label of image i."""
        labels = phantom.labels(i, self.settings)
        return [labels[name] for name in phantom.LABELS]

    def load(self, i: int) -> Example:
        """Renders image i with its mask, text and attributes."""
        image = phantom.record(i, self.settings)
        return Example(
            image=image.image,
            role=image.identity.role,
            text=image.text,
            attributes=image.attributes,
            mask=image.mask,
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --records and the settings of the phantom."""
    default = phantom.Settings()
    parser.add_argument('--records', type=int, default=2000, help='number of images (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=default.size, help='side of the images in pixels, 32 to 1024 (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=default.seed, help='another seed gives other patients')
    parser.add_argument(
        '--label-noise',
        type=float,
        default=default.label_noise,
        metavar='SHARE',
        help='share of labels that are flipped (default: %(default)s)',
    )
    parser.add_argument(
        '--shortcut',
        type=float,
        default=default.shortcut,
        metavar='P',
        help='probability that a pneumothorax comes with a chest tube (default: %(default)s)',
    )
    parser.add_argument(
        '--healthy',
        type=float,
        default=default.healthy,
        metavar='SHARE',
        help='share of patients who never have a finding (default: %(default)s)',
    )
    parser.add_argument(
        '--bits', type=int, default=default.bits, choices=(8, 16), help='bits of a pixel (default: %(default)s)'
    )


def source(
    records: int,
    size: int = 256,
    seed: int = 0,
    label_noise: float = 0.0,
    shortcut: float = 0.0,
    healthy: float = 0.0,
    bits: int = 8,
) -> Source:
    """The source of the first `records` images of the phantom."""
    if records < 1:
        raise UserError(f'--records {records}: at least one image is needed')
    release = Release(phantom.check(phantom.Settings(seed, size, label_noise, shortcut, healthy, bits)))
    return Source(
        name='phantom',
        version=f'{phantom.VERSION} seed={seed} label_noise={label_noise} shortcut={shortcut} healthy={healthy}',
        namespace=f'phantom-{seed}',  # another seed: other patients; another size: the same patients
        labels=phantom.LABELS,
        license='CC0-1.0',
        entries=[release.entry(i) for i in range(records)],
        label=release.label,
        load=release.load,
        key=phantom.KEY,
        masks=phantom.MASKS,
    )
