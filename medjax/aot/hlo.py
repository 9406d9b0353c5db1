"""What an optimised program runs in one step, read from its HLO text: kernels, copies of scans, collectives.

Loops are multiplied out: the body of a scan over 12 blocks counts 12 times. (XLA's own cost analysis counts it once.)
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
FREE = {  # instructions without a kernel
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
    'partition-id', 'opt-barrier',
}  # fmt: skip
FUSIONS = ('fusion', 'fusion-start')
HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
TILED = re.compile(r'\b([a-z]+\d*)\[([\d,]+)\]\{([\d,]+):T\((\d+),(\d+)\)')  # bf16[8,257]{1,0:T(8,128)(2,1)}
ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


class Instruction(NamedTuple):
    label: str
    type: str  # 'f32[8,16]{1,0}', or a tuple of these
    op: str
    rest: str  # everything after the type

    def named(self, key: str) -> str | None:
        """The computation that an attribute names: body=%region_1."""
        match = re.search(rf'{key}=%?([\w.\-]+)', self.rest)
        return match[1] if match else None


class Collective(NamedTuple):
    """One exchange between devices, with all its runs in a step."""

    kind: str
    runs: int
    bytes: int  # that it gives a device in a step
    source: str  # the operation of jax that it comes from


class Summary(NamedTuple):
    """The contents of a program. All numbers are for one step on one device."""

    kernels: int
    by_kind: dict[str, int]  # kernels by kind of fusion, library call or instruction
    scan_copies: int  # kernels that write a slice into what a scan stacks
    scan_copy_bytes: int
    collectives: list[Collective]  # the largest first

    def exchanged(self) -> dict[str, int]:
        """Bytes of collectives by kind."""
        sums: collections.Counter[str] = collections.Counter()
        for one in self.collectives:
            sums[one.kind] += one.bytes
        return dict(sums)


class Program:
    """An HLO module, taken apart."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ''
        now: list[Instruction] | None = None
        for line in text.splitlines():
            if match := HEAD.match(line):
                now = self.computations.setdefault(match[2], [])
                self.entry = match[2] if match[1] else self.entry
            elif line.startswith('}'):
                now = None
            elif now is not None and (match := INSTRUCTION.match(line)):
                now.append(_instruction(match[1], match[2]))

    def runs(self) -> dict[str, int]:
        """How often a step runs each computation; the insides of fusions are left out."""
        counts: collections.Counter[str] = collections.Counter()

        def visit(name: str, n: int) -> None:
            counts[name] += n
            for one in self.computations.get(name, ()):
                if one.op == 'while':
                    visit(one.named('body') or '', n * (self._trips(one) or 1))
                elif one.op in ('call', 'async-start') and (inner := one.named('(?:to_apply|calls)')):
                    visit(inner, n)
                elif one.op == 'conditional' and (match := re.search(r'branch_computations=\{([^}]*)\}', one.rest)):
                    for branch in match[1].split(','):
                        visit(branch.strip().lstrip('%'), n)

        visit(self.entry, 1)
        return counts

    def _trips(self, loop: Instruction) -> int | None:
        """The number of turns of a loop: XLA:GPU writes it; elsewhere it is the one constant of the condition."""
        if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(match[1])
        inside = self.computations.get(loop.named('condition') or '', ())
        constants = [m[1] for one in inside if one.op == 'constant' and (m := re.match(r'constant\((\d+)\)', one.rest))]
        return int(constants[0]) if len(constants) == 1 else None

    def _kernels(self) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that is a kernel or a collective, with its runs."""
        for name, n in self.runs().items():
            for one in self.computations.get(name, ()):
                if one.op and one.op not in FREE and not one.op.endswith('-done'):
                    yield one, n

    def summary(self) -> Summary:
        kinds: collections.Counter[str] = collections.Counter()
        exchanges, copies, copy_bytes = [], 0, 0
        for one, n in self._kernels():
            base = one.op.removesuffix('-start')
            if base in COLLECTIVES:
                source = re.search(r'op_name="([^"]*)"', one.rest)
                exchanges.append(Collective(base, n, n * given(one), source[1] if source else one.label))
                continue
            if one.op in FUSIONS:
                kinds[f'fusion {one.named("kind")}'] += n
            else:
                target = re.search(r'custom_call_target="([^"]+)"', one.rest)
                kinds[target[1] if target else one.op] += n
            for written in self._slices_written(one):
                copies += n
                copy_bytes += n * written
        exchanges.sort(key=lambda one: -one.bytes)
        return Summary(sum(kinds.values()), dict(kinds.most_common()), copies, copy_bytes, exchanges)

    def _slices_written(self, one: Instruction) -> Iterator[int]:
        """The bytes of every slice that a kernel writes into a larger array."""
        inside = self.computations.get(one.named('calls') or '', ()) if one.op in FUSIONS else [one]
        types = {other.label: other.type for other in inside}
        for other in inside:
            if other.op == 'dynamic-update-slice':
                operands = re.findall(r'%([\w.\-]+)', other.rest)
                yield size(types.get(operands[1], '')) if len(operands) > 1 else 0

    def source(self, one: Instruction) -> str:
        """The operation of jax that an instruction comes from; of a fusion without one, that of its last part."""
        inside = self.computations.get(one.named('calls') or '', []) if one.op in FUSIONS else []
        names = (re.search(r'op_name="([^"]*)"', other.rest) for other in (one, *reversed(inside)))
        return next((name[1] for name in names if name), '')

    def roofline(self, bandwidth: float, peak: float) -> tuple[float, dict[str, float]]:
        """Seconds of a step if every kernel ran at the speed of memory or of its products, whichever takes longer.

        `bandwidth` in bytes/s, `peak` in FLOP/s. A kernel reads its operands and writes its results once. Of an operand
        that it only slices, the slices count. Also the seconds by source: the names of scopes that jax wrote.
        """
        seconds: dict[str, float] = collections.defaultdict(float)
        for one, n, moved, flops in self._costs():
            seconds[self.source(one)] += n * max(moved / bandwidth, flops / peak)
        return sum(seconds.values()), dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def moved(self) -> int:
        """The bytes that all kernels of a step read from memory and write there, counted as in `roofline`."""
        return sum(n * moved for _, n, moved, _ in self._costs())

    def _costs(self) -> Iterator[tuple[Instruction, int, int, float]]:
        """Every kernel with its runs, the bytes that a run reads and writes, and its FLOPs."""
        for name, n in self.runs().items():
            types = {one.label: one.type for one in self.computations.get(name, ())}
            for one in self.computations.get(name, ()):
                base = one.op.removesuffix('-start')
                if not one.op or one.op in FREE or one.op.endswith('-done') or base in COLLECTIVES:
                    continue
                yield one, n, self._traffic(one, types), self._flops(one, types)

    def _flops(self, one: Instruction, types: dict[str, str]) -> float:
        """The FLOPs of a library call, or of those inside a fusion, where XLA puts calls that read slices."""
        inside = self.computations.get(one.named('calls') or '', []) if one.op in FUSIONS else []
        types_inside = {other.label: other.type for other in inside}
        return _flops(one, types) + sum(_flops(other, types_inside) for other in inside)

    def _traffic(self, one: Instruction, types: dict[str, str]) -> int:
        """The bytes that a kernel reads and writes."""
        operands = [types.get(label, '') for label in _operands(one)]
        inside = self.computations.get(one.named('calls') or '', []) if one.op in FUSIONS else []
        if not inside:
            return size(one.type) + sum(map(size, operands))
        used: dict[str, list[Instruction]] = collections.defaultdict(list)
        for other in inside:
            for label in _operands(other):
                used[label].append(other)
        total = size(inside[-1].type)  # its result; the type of a -start holds operands too
        for other in inside:
            if other.op == 'dynamic-update-slice':  # the array stays in its place, and only the slice is written
                total += 2 * size({o.label: o.type for o in inside}.get(_operands(other)[1], '')) - size(other.type)
            if other.op == 'parameter':
                readers = used[other.label]
                if readers and all(r.op in ('dynamic-slice', 'slice', 'gather') for r in readers):
                    total += sum(size(r.type) for r in readers)
                elif not all(r.op == 'dynamic-update-slice' and _operands(r)[0] == other.label for r in readers):
                    total += size(other.type)
        return max(total, 0)

    def arrays(self) -> dict[tuple[str, tuple[int, ...]], int]:
        """(type, shape) -> how often the text names an array of it outside of fusions: arrays that lie in memory."""
        found: collections.Counter[tuple[str, tuple[int, ...]]] = collections.Counter()
        for name in self.runs():
            for one in self.computations.get(name, ()):
                for kind, dims in ARRAY.findall(one.type):
                    found[kind, tuple(int(n) for n in dims.split(',') if n)] += 1
        return dict(found)

    def padding(self, count: int = 10) -> float:
        """Bytes of the `count` largest arrays in memory, with the padding to tiles of a TPU, over those without it."""
        arrays: dict[str, tuple[int, int]] = {}
        for name in self.runs():
            for one in self.computations.get(name, ()):
                arrays |= {m[0]: _padded(m) for m in TILED.finditer(one.type)}
        largest = sorted(arrays.values(), reverse=True)[:count]
        return sum(padded for padded, _ in largest) / max(sum(content for _, content in largest), 1)


def _padded(match: re.Match[str]) -> tuple[int, int]:
    """Bytes of an array on a TPU, with the padding of its two innermost axes to whole tiles, and without."""
    kind, shape, order, rows, columns = match.groups()
    dims, inner = [[int(n) for n in text.split(',') if n] for text in (shape, order)]
    full = list(dims)
    for axis, tile in zip(inner, (int(columns), int(rows)), strict=False):
        full[axis] = -(-full[axis] // tile) * tile
    return math.prod(full) * BYTES.get(kind, 0), math.prod(dims) * BYTES.get(kind, 0)


def size(text: str) -> int:
    """The bytes of a type: of an array, or of all arrays of a tuple."""
    total = 0
    for kind, dims in ARRAY.findall(text):
        n = 1
        for x in filter(None, dims.split(',')):
            n *= int(x)
        total += n * BYTES.get(kind, 0)
    return total


def _operands(one: Instruction) -> list[str]:
    """The labels of the operands: those inside the brackets after the name of the operation."""
    start = one.rest.find('(')
    return re.findall(r'%([\w.\-]+)', one.rest[start : start + _end(one.rest[start:], depth=0, letter=')') + 1])


def _flops(one: Instruction, types: dict[str, str]) -> float:
    """FLOPs of a library call for a product or for attention; 0 for other kernels."""
    shapes = [_shape(types.get(label, '')) for label in _operands(one)]
    target = re.search(r'custom_call_target="([^"]+)"', one.rest)
    if not target or not shapes:
        return 0.0
    if 'matmul' in target[1] and (match := re.search(r'lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)):
        depth = math.prod(shapes[0][int(n)] for n in re.findall(r'\d+', match[1]))
        return 2.0 * math.prod(_shape(one.type)) * depth
    if 'fmha' in target[1] and len(shapes[0]) == 4 and len(shapes[1]) == 4:  # two products forward, five backward
        sequences, tokens, heads, width = shapes[0]
        products = 5 if 'Backward' in target[1] else 2
        return 2.0 * products * sequences * heads * tokens * shapes[1][1] * width
    return 0.0


def _shape(kind: str) -> tuple[int, ...]:
    """The shape of a type; of a tuple that of its first array."""
    match = ARRAY.search(kind)
    return tuple(int(n) for n in match[2].split(',') if n) if match else ()


def given(one: Instruction) -> int:
    """The bytes that a collective gives. The type of a -start holds its operands first."""
    if one.op.endswith('-start') and one.type.startswith('('):
        return size(one.type[_end(one.type, depth=1, letter=',') :])
    return size(one.type)


def _instruction(label: str, text: str) -> Instruction:
    if text.startswith('('):  # a tuple
        end = _end(text, depth=0, letter=')') + 1
        kind, rest = text[:end], text[end + 1 :]
    else:
        kind, _, rest = text.partition(' ')
    return Instruction(label, kind, rest.partition('(')[0].strip(), rest)


def _end(text: str, depth: int, letter: str) -> int:
    """The place of the first `letter` at which as many brackets as `depth` are open."""
    open_brackets = 0
    for at, one in enumerate(text):
        open_brackets += (one in '([{') - (one in ')]}')
        if one == letter and open_brackets == depth:
            return at
    return 0
