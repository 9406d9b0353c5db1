"""Tables of names: how the arrays of a published file become parameters of ours, and the other way round.

A table is a sequence of lines. A line knows the paths of our parameters, the names in the file, and both directions.
torch's Linear weights are (out, in), its convolutions (out, in, height, width). Arrays are only renamed, joined, split,
transposed and reshaped, so gradients are converted by the same tables.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from medjax.errors import UserError
from medjax.weights.arrays import Arrays, listed

Flat = dict[str, np.ndarray]  # our parameters by path: 'blocks/attn/qkv/kernel'


@dataclasses.dataclass(frozen=True)
class Line:
    """One parameter of ours and the arrays of the file that it is made of.

    path     of our parameter
    names    in the file, joined along their first axis. A name with {} is there once for each layer: {} is the number
             of the layer, and ours stacks the layers
    pattern  of einops: the axes of the file -> our axes of one layer. `h` is the number of attention heads, `c` the
             number of joined things, such as 3 for queries, keys and values
    first    the number of the first layer in the stack
    """

    path: str
    names: tuple[str, ...]
    pattern: str
    first: int = 0
    c: int = 3

    def there(self, arrays: Arrays) -> bool:
        """Whether the file has any of the arrays, in any layer."""
        return any(name in arrays for name in self.all_names(arrays))

    def layers(self, arrays: Arrays) -> int:
        """The number of layers in the file; layers are counted up to the last one that is there."""
        last = self.first - 1
        for name in self.names:
            before, after = name.split('{}')
            for other in arrays:
                if other.startswith(before) and other.endswith(after):
                    number = other[len(before) : len(other) - len(after)]
                    last = max(last, int(number)) if number.isdecimal() else last
        return last + 1 - self.first

    def all_names(self, arrays: Arrays) -> list[str]:
        """The names of all layers."""
        if '{}' not in self.names[0]:
            return list(self.names)
        numbers = range(self.first, self.first + self.layers(arrays))
        return [name.format(i) for i in numbers for name in self.names]

    def read(self, arrays: Arrays, heads: int | None) -> Flat:
        """Our parameter. UserError: arrays that are missing or do not fit each other."""
        names = self.all_names(arrays)
        missing = [name for name in names if name not in arrays]
        if missing:
            raise UserError(f'{listed(missing)}: missing')
        if '{}' not in self.names[0]:
            return {self.path: self._one(arrays, names, heads)}
        step = len(self.names)
        stack: np.ndarray | None = None
        for i in range(0, len(names), step):
            one = self._one(arrays, names[i : i + step], heads)
            if stack is None:  # filled layer by layer, so that a layer is in memory twice and the stack once
                stack = np.empty((len(names) // step, *one.shape), np.float32)
            if one.shape != stack.shape[1:]:
                raise UserError(f'{names[i]} has another shape than the same array of the layer {self.first}')
            stack[i // step] = one
        return {self.path: stack}

    def _one(self, arrays: Arrays, names: Sequence[str], heads: int | None) -> np.ndarray:
        values = [arrays[name] for name in names]
        try:
            joined = np.concatenate(values) if len(values) > 1 else values[0]
            return np.ascontiguousarray(rearrange(joined, self.pattern, **self._sizes(heads)))
        except Exception as error:  # numpy and einops have no error class of their own for shapes that do not fit
            shapes = ', '.join(str(v.shape) for v in values)
            sizes = f' with {heads} heads' if 'h' in self._sizes(heads) else ''
            raise UserError(f'{names[0]} has shape {shapes}, which does not fit {self.pattern!r}{sizes}') from error

    def _sizes(self, heads: int | None) -> dict[str, int]:
        left = self.pattern.split('->')[0]
        if '(' not in left:
            return {}
        known = dict(c=self.c) | ({} if heads is None else dict(h=heads))
        return {axis: n for axis, n in known.items() if re.search(rf'\b{axis}\b', left)}

    def ours(self) -> tuple[str, ...]:
        return (self.path,)

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of the file, one at a time: name and values. The inverse of `read`."""
        if self.path not in params:
            return
        array = params[self.path]
        if '{}' not in self.names[0]:
            yield from self._split(self.names, array)
            return
        for i in range(len(array)):
            yield from self._split([name.format(self.first + i) for name in self.names], array[i])

    def _split(self, names: Sequence[str], array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        theirs, ours = self.pattern.split(' -> ')
        values = rearrange(np.asarray(array), f'{ours} -> {theirs}')
        yield from zip(names, np.split(values, len(names)) if len(names) > 1 else [values], strict=True)


@dataclasses.dataclass(frozen=True)
class Positions:
    """Position embeddings: one table [1,(1+)h w,D] or [(1+)h w,D] in the file; a grid and a row for CLS with us.

    `cls`: whether the first row belongs to the CLS token. If not, a CLS token has no position.
    """

    name: str
    cls: bool = True
    batch: bool = True  # whether the table has a first axis of length 1

    def there(self, arrays: Arrays) -> bool:
        return self.name in arrays

    def all_names(self, arrays: Arrays) -> list[str]:
        return [self.name]

    def ours(self) -> tuple[str, ...]:
        return ('pos_cls', 'pos_grid') if self.cls else ('pos_grid',)

    def first_rows(self, count: int) -> int:
        """1 if the first of `count` rows belongs to CLS. Some models of timm have a CLS token without a position."""
        grid_alone = is_square(count) and not is_square(count - 1)
        return int(self.cls and not grid_alone)

    def read(self, arrays: Arrays, heads: int | None, grid: tuple[int, int] | None = None) -> Flat:
        table = arrays[self.name]
        table = table.reshape(-1, table.shape[-1])
        first = self.first_rows(len(table)) if grid is None else len(table) - grid[0] * grid[1]
        patches = table[first:]
        height, width = grid or square(self.name, len(patches))
        if height * width != len(patches):
            raise UserError(f'{self.name} has {len(patches)} positions of patches, and {height} x {width} are expected')
        cls = table[0] if first else np.zeros_like(table[0])
        return {'pos_grid': patches.reshape(height, width, -1)} | ({'pos_cls': cls} if self.cls else {})

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        if 'pos_grid' not in params:
            return
        table = rearrange(np.asarray(params['pos_grid']), 'h w d -> (h w) d')
        if self.cls:
            table = np.concatenate([np.asarray(params['pos_cls'])[None], table])
        yield self.name, table[None] if self.batch else table


def is_square(count: int) -> bool:
    return round(count**0.5) ** 2 == count


def square(name: str, count: int) -> tuple[int, int]:
    """The sides of a square grid of `count` patches."""
    side = round(count**0.5)
    if side * side != count:
        raise UserError(f'{name} has {count} positions of patches: no square grid, and nothing says which grid it is')
    return side, side


# Lines of single layers. `path` is the place of the layer in our tree, `name` its name in the file.


def linear(path: str, name: str, bias: bool = True) -> tuple[Line, ...]:
    kernel = Line(f'{path}/kernel', (f'{name}.weight',), 'o i -> i o')
    return (kernel, Line(f'{path}/bias', (f'{name}.bias',), 'o -> o')) if bias else (kernel,)


def norm(path: str, name: str) -> tuple[Line, ...]:
    return (
        Line(f'{path}/scale', (f'{name}.weight',), 'd -> d'),
        Line(f'{path}/bias', (f'{name}.bias',), 'd -> d'),
    )


def attention(path: str, query_key_value: Sequence[str], out: str) -> tuple[Line, ...]:
    """Self-attention whose queries, keys and values have a Linear each, or one together."""
    return (
        Line(f'{path}/qkv/kernel', tuple(f'{n}.weight' for n in query_key_value), '(c h k) d -> d c h k'),
        Line(f'{path}/qkv/bias', tuple(f'{n}.bias' for n in query_key_value), '(c h k) -> c h k'),
        Line(f'{path}/out/kernel', (f'{out}.weight',), 'd (h k) -> h k d'),
        Line(f'{path}/out/bias', (f'{out}.bias',), 'd -> d'),
    )


def packed_attention(path: str, name: str, out: str) -> tuple[Line, ...]:
    """Self-attention of torch.nn.MultiheadAttention: in_proj_weight and in_proj_bias."""
    return (
        Line(f'{path}/qkv/kernel', (f'{name}.in_proj_weight',), '(c h k) d -> d c h k'),
        Line(f'{path}/qkv/bias', (f'{name}.in_proj_bias',), '(c h k) -> c h k'),
        Line(f'{path}/out/kernel', (f'{out}.weight',), 'd (h k) -> h k d'),
        Line(f'{path}/out/bias', (f'{out}.bias',), 'd -> d'),
    )


def patch_embedding(name: str, bias: bool = True) -> tuple[Line, ...]:
    kernel = Line('patch_embed/kernel', (f'{name}.weight',), 'd c p q -> p q c d')
    return (kernel, Line('patch_embed/bias', (f'{name}.bias',), 'd -> d')) if bias else (kernel,)


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The attention pool of SigLIP as torch.nn.MultiheadAttention: queries, keys and values joined in one array.

    Ours has the query apart from keys and values.
    """

    name: str  # 'head.attention'

    def there(self, arrays: Arrays) -> bool:
        return f'{self.name}.in_proj_weight' in arrays

    def all_names(self, arrays: Arrays) -> list[str]:
        return [f'{self.name}.in_proj_weight', f'{self.name}.in_proj_bias']

    def ours(self) -> tuple[str, ...]:
        return ('pool/q/kernel', 'pool/kv/kernel', 'pool/q/bias', 'pool/kv/bias')

    def read(self, arrays: Arrays, heads: int | None) -> Flat:
        weight, bias = self.all_names(arrays)
        missing = [name for name in (weight, bias) if name not in arrays]
        if missing:
            raise UserError(f'{listed(missing)}: missing')
        try:
            kernel = rearrange(arrays[weight], '(c h k) d -> c d h k', c=3, h=heads)
            biases = rearrange(arrays[bias], '(c h k) -> c h k', c=3, h=heads)
        except Exception as error:
            raise UserError(f'{weight} has shape {arrays.shape(weight)}: not 3 times {heads} heads') from error
        return {
            'pool/q/kernel': kernel[0],
            'pool/kv/kernel': np.ascontiguousarray(rearrange(kernel[1:], 'c d h k -> d c h k')),
            'pool/q/bias': biases[0],
            'pool/kv/bias': biases[1:],
        }

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        if 'pool/q/kernel' not in params:
            return
        q, kv = np.asarray(params['pool/q/kernel']), np.asarray(params['pool/kv/kernel'])
        kernel = np.concatenate([q[None], rearrange(kv, 'd c h k -> c d h k')])
        bias = np.concatenate([np.asarray(params['pool/q/bias'])[None], np.asarray(params['pool/kv/bias'])])
        yield f'{self.name}.in_proj_weight', rearrange(kernel, 'c d h k -> (c h k) d')
        yield f'{self.name}.in_proj_bias', rearrange(bias, 'c h k -> (c h k)')


Table = tuple[Any, ...]  # of Line, Positions and Pooling


def write(table: Table, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a file from our parameters by path. UserError: parameters that the file's names do not have."""
    known = {path for line in table for path in line.ours()}
    if left := sorted(set(params) - known):
        raise UserError(f'these names have no place for {", ".join(left)}')
    written: set[str] = set()
    for line in table:  # the first line of a path is the one that files have
        if not written & set(line.ours()):
            yield from line.write(params)
            written |= set(line.ours())
