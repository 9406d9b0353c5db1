"""The heads of DINO and iBOT in Meta's names: mlp.0.weight, …, last_layer.weight_g and weight_v."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.weights.arrays import Arrays, listed
from medjax.weights.layout import Layout, Sizes
from medjax.weights.names import Flat, Line, Table


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """The linear layers before the prototypes: mlp.0, mlp.2, … with an activation between two of them, or mlp alone."""

    prefix: str = ''

    def numbered(self, arrays: Arrays) -> list[str]:
        """The names of the layers in the file, in order."""
        found = {
            int(m[1]) for name in arrays if (m := re.fullmatch(rf'{self.prefix}mlp\.(\d+)\.(?:weight|bias)', name))
        }
        single = f'{self.prefix}mlp.weight' in arrays
        return [f'{self.prefix}mlp'] if single else [f'{self.prefix}mlp.{n}' for n in sorted(found)]

    def there(self, arrays: Arrays) -> bool:
        return bool(self.numbered(arrays))

    def all_names(self, arrays: Arrays) -> list[str]:
        layers = self.numbered(arrays)
        biases = any(f'{layer}.bias' in arrays for layer in layers)
        return [f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')[: 1 + biases]]

    def ours(self) -> tuple[str, ...]:
        return tuple(f'mlp_{i}/{kind}' for i in range(9) for kind in ('kernel', 'bias'))

    def read(self, arrays: Arrays, heads: int | None) -> Flat:
        flat: Flat = {}
        missing = [f'{layer}.weight' for layer in self.numbered(arrays) if f'{layer}.weight' not in arrays]
        if missing:
            raise UserError(f'{listed(missing)}: missing')
        for i, layer in enumerate(self.numbered(arrays)):
            flat[f'mlp_{i}/kernel'] = np.ascontiguousarray(arrays[f'{layer}.weight'].T)
            if f'{layer}.bias' in arrays:
                flat[f'mlp_{i}/bias'] = arrays[f'{layer}.bias']
        return flat

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        count = sum(path.endswith('/kernel') for path in params)
        for i in range(count):
            layer = f'{self.prefix}mlp.{2 * i}' if count > 1 else f'{self.prefix}mlp'
            yield f'{layer}.weight', np.asarray(params[f'mlp_{i}/kernel']).T
            if f'mlp_{i}/bias' in params:
                yield f'{layer}.bias', np.asarray(params[f'mlp_{i}/bias'])


def table(prefix: str) -> Table:
    return (
        Perceptron(prefix),
        Line('prototypes/gain', (f'{prefix}last_layer.weight_g',), 'k 1 -> k'),
        Line('prototypes/direction', (f'{prefix}last_layer.weight_v',), 'k b -> b k'),
    )


def sizes(table: Table, arrays: Arrays) -> Sizes:
    perceptron, _, direction = table
    layers = perceptron.numbered(arrays)
    prototypes, bottleneck = arrays.shape(direction.names[0])
    hidden = arrays.shape(f'{layers[0]}.weight')[0] if layers and f'{layers[0]}.weight' in arrays else 0
    bias = bool(layers) and f'{layers[0]}.bias' in arrays
    return dict(prototypes=prototypes, bottleneck=bottleneck, hidden=hidden, layers=len(layers), bias=bias)


def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    default = dict(hidden=2048, bottleneck=256, layers=3, bias=True)
    others = {name: value for name, value in default.items() if found[name] != value}
    return dict(head='dino_head', prototypes=found['prototypes']) | {name: found[name] for name in others}


def _head(title: str, module: str, prefix: str, before: str = '.*') -> Layout:
    return Layout(title=title, module=module, table=table(prefix), sizes=sizes, describe=describe, prefix=before,
                  signs=(f'{prefix}last_layer.weight_g', f'{prefix}last_layer.weight_v'))  # fmt: skip


LAYOUTS = (
    _head('a DINO head', 'heads/dino', 'dino_head.'),
    _head('an iBOT head', 'heads/ibot', 'ibot_head.'),
    _head('a DINO head', 'heads/dino', '', r'(?!.*(dino|ibot)_head\.$).*'),
)
