"""The kernels of a compiled program: FLOPs and bytes of each, for GPUs and TPUs."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

from medjax.aot.hlo import FUSIONS, Instruction, Program, size
from medjax.aot.profile import part_of

# An array in the memory inside a TPU's core: bf16[8,128]{1,0:T(8,128)S(1)}. As corebf16[8,128] it has no bytes.
INSIDE = re.compile(r'\b([a-z]+\d*\[[\d,]*\]\{[^}]*S\([1-9]\d*\)[^}]*\})')


class Kernel(NamedTuple):
    """Kernels of equal work in one part of the step."""

    part: str  # of the step, as medjax/aot/profile.py names them
    runs: int  # in a step
    flops: float  # of products, in one run
    bytes: int  # that one run reads from HBM and writes there


class Kernels(Program):
    """A program taken apart into its kernels.

    A TPU has no calls of a library: a product is a convolution, mostly inside a fusion, and fusions hold fusions.
    Arrays that it keeps inside its core are free.
    """

    def __init__(self, text: str):
        super().__init__(INSIDE.sub(r'core\1', text))

    def kernels(self) -> list[Kernel]:
        runs: collections.Counter[tuple[str, float, int]] = collections.Counter()
        for one, n, moved, flops in self._costs():
            runs[part_of(self.source(one)), flops, moved] += n
        return [Kernel(part, n, flops, moved) for (part, flops, moved), n in runs.items()]

    def _flops(self, one: Instruction, types: dict[str, str]) -> float:
        total = convolution_flops(one, types) or super()._flops(one, types)
        if one.op in FUSIONS:
            inside = self.computations.get(one.named('calls') or '', [])
            within = {other.label: other.type for other in inside}
            for other in inside:
                total += convolution_flops(other, within)
                total += self._flops(other, within) if other.op in FUSIONS else 0.0
        return total

    def _traffic(self, one: Instruction, types: dict[str, str]) -> int:
        if one.op == 'copy-start':  # its type holds where it reads and where it writes
            return size(one.type)
        return super()._traffic(one, types)


def convolution_flops(one: Instruction, types: dict[str, str]) -> float:
    """FLOPs of a convolution, by the pairs of its window and its input that meet; 0 for all else.

    XLA writes products as convolutions, and an axis of a batch as a window over an input with holes.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', one.rest)
    if one.op != 'convolution' or labels is None:
        return 0.0
    left, right = (_dims(types.get(label, '')) for label in re.findall(r'%([\w.\-]+)', one.rest)[:2])
    out = _dims(one.type)
    kernel = dict(zip(labels[2], right))
    window = {key: re.split('x', value) for key, value in re.findall(r'(\w+)=([\d_x\-]+)', _window(one.rest))}
    meet = 1
    for axis, name in enumerate(c for c in sorted(labels[2]) if c.isdigit()):
        n_in, n_out = left[labels[1].index(name)], out[labels[3].index(name)]
        stride, dilate, holes = (int(window[key][axis]) if key in window else 1 for key in STEPS)
        before = int(window['pad'][axis].split('_')[0]) if 'pad' in window else 0
        at = (o * stride + k * dilate - before for o in range(n_out) for k in range(kernel[name]))
        meet *= sum(i % holes == 0 and 0 <= i // holes < n_in for i in at)
    rest = math.prod(n for n, name in zip(out, labels[3]) if not name.isdigit())
    return 2.0 * rest * kernel['i'] * meet


STEPS = ('stride', 'rhs_dilate', 'lhs_dilate')


def _window(rest: str) -> str:
    match = re.search(r'window=\{([^}]*)\}', rest)
    return match[1] if match else ''


def _dims(kind: str) -> tuple[int, ...]:
    match = re.search(r'\[([\d,]*)\]', kind)
    return tuple(int(n) for n in match[1].split(',') if n) if match else ()
