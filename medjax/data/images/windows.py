"""Windows: which values are black and which are white.

    windows.parse('lung')  # one channel, from -1350 to 150 Hounsfield units
    windows.parse('lung,mediastinum,bone')  # three channels
    windows.parse('-600/1500')  # centre and width in Hounsfield units

Those of a header are made by grey.py.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from medjax.errors import UserError, suggest


class Window(NamedTuple):
    """A window: centre and width in the units of the values, and the function of PS3.3 C.11.2.1.2 or C.11.2.1.3."""

    centre: float
    width: float
    function: str = 'LINEAR_EXACT'

    @property
    def valid(self) -> bool:
        """Whether the standard allows this width."""
        return self.width >= 1 if self.function == 'LINEAR' else self.width > 0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The place of each value in the window: 0 is black, 1 is white. The places are not clipped."""
        if self.function == 'SIGMOID':
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - self.centre) / self.width, -700, 700)))
        if self.function == 'LINEAR_EXACT':
            return (values - self.centre) / self.width + 0.5
        return (values - (self.centre - 0.5)) / max(self.width - 1.0, 1e-12) + 0.5


# Centre and width in Hounsfield units, after Radiopaedia's article "Windowing (CT)".
NAMED = dict(
    lung=Window(-600, 1500),
    mediastinum=Window(50, 350),
    bone=Window(400, 1800),
    abdomen=Window(50, 400),
    liver=Window(30, 150),
    brain=Window(40, 80),
    subdural=Window(75, 215),
    stroke=Window(40, 40),
)


def parse(text: str) -> tuple[Window, ...]:
    """The windows that a text names: one for one channel, three for three channels. Raises UserError."""
    names = [name.strip() for name in text.split(',')]
    if len(names) > 1 and all(re.fullmatch(r'[+-]?\d+\.?\d*(/.*)?', name) for name in names) and '/' not in names[0]:
        raise UserError(
            f'--window {text}: a window is centre/width in Hounsfield units, decimals with a dot: --window=40.5/400'
        )
    if len(names) not in (1, 3):
        raise UserError(f'--window {text}: one window gives one channel, three give three; not {len(names)}')
    return tuple(_window(name) for name in names)


def _window(name: str) -> Window:
    if name.lower() in NAMED:
        return NAMED[name.lower()]
    if match := re.fullmatch(r'([+-]?\d+\.?\d*)/(\d+\.?\d*)', name):
        window = Window(float(match[1]), float(match[2]))
        if window.valid and math.isfinite(window.centre) and math.isfinite(window.width):
            return window
        raise UserError(f'--window {name}: the width must be larger than 0')
    if not name:
        raise UserError(f'--window: a name is missing; known: {", ".join(sorted(NAMED))}')
    raise UserError(
        f'--window {name}: there is no window of this name; centre/width in Hounsfield units are also possible, for '
        f'example --window=-600/1500{suggest(name, NAMED)}'
    )
