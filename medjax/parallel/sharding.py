"""The mesh, the table from logical to mesh axes, and rows that stay on their device.

The mesh has the axes ('data', 'fsdp', 'tensor'). Rows are split over data and fsdp; parameters over fsdp and tensor
by the table `RULES`. All code is written over global arrays, and the compiler shards it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P

from medjax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')
Names = tuple[str | None, ...]  # of the axes of an array

# Logical axis of a parameter -> mesh axis. A dimension that the mesh axis does not divide stays whole.
RULES = {
    'embed': 'fsdp',
    'heads': 'tensor',
    'mlp': 'tensor',
    'prototypes': 'tensor',
    'bottleneck': 'fsdp',
    'hidden': 'tensor',
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over the given ones. One axis may be -1: it gets the rest.

    UserError if the sizes do not fit the number of devices, or the torus of a TPU slice.
    """
    n = jax.device_count() if devices is None else len(devices)
    sizes = mesh_sizes(n, data, fsdp, tensor)
    try:
        return _mesh(tuple(sizes[a] for a in AXES), devices)
    except NotImplementedError:
        fitting = ' or '.join(_on_the_torus(n, sizes, devices)) or 'none with these sizes'
        raise UserError(
            f'mesh: {sizes} cannot be laid on the torus of these {n} chips, where an axis of the mesh takes whole axes '
            f'of the torus; these would fit: {fitting}'
        ) from None


def mesh_sizes(n: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    """The sizes of the axes of a mesh over n devices. UserError if they do not fit."""
    sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
    given = math.prod(s for s in sizes.values() if s != -1)
    free = [name for name, s in sizes.items() if s == -1]
    if len(free) > 1 or any(s == 0 or s < -1 for s in sizes.values()):
        raise UserError(f'mesh: sizes are positive and at most one is -1, got {sizes}')
    if n % given or (not free and given != n):
        raise UserError(f'mesh: {sizes} does not fit {n} device(s); the product of the sizes must be {n}')
    for name in free:
        sizes[name] = n // given
    return sizes


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these sizes without devices, to see how arrays are split."""
    return AbstractMesh(tuple(sizes[a] for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _mesh(shape: tuple[int, ...], devices: Sequence[Any] | None) -> Mesh:
    # Auto, written out: make_mesh defaults to Explicit axes, under which ordinary reshapes raise.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _on_the_torus(n: int, wanted: dict[str, int], devices: Sequence[Any] | None) -> list[str]:
    """Up to four meshes of n chips that fit their torus, the nearest to the wanted sizes first."""
    powers = [2**i for i in range(n.bit_length()) if n % 2**i == 0]
    shapes = [(n // (f * t), f, t) for f in powers for t in powers if n % (f * t) == 0]
    shapes.sort(key=lambda shape: sum(abs(math.log2(a / b)) for a, b in zip(shape, wanted.values(), strict=True)))
    fitting = []
    for shape in shapes:
        try:
            _mesh(shape, devices)
        except NotImplementedError:
            continue
        fitting.append(', '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True)))
        if len(fitting) == 4:
            break
    return fitting


def platform() -> str:
    """The platform that programs are compiled for: 'cpu', 'gpu' or 'tpu'; that of the mesh in use, if there is one.

    The mesh may have devices of another machine.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    name = jax.default_backend() if device is None else device.platform
    return 'gpu' if name in ('cuda', 'rocm') else name


def compiler_options() -> dict[str, Any] | None:
    """The options of XLA for a train step on the platform in use, for `jax.jit`; None: all as they are.

    XLA:GPU would merge the products of two views with the same weights into one product, and copy its result apart
    again. For tokens of a ViT the copies cost more than the larger product saves. XLA_FLAGS does not change this.
    """
    return {'xla_gpu_dot_merger_threshold_mb': 0} if platform() == 'gpu' else None


def row_shards() -> int:
    """The number of shards of the rows under the mesh in use; 1 without a mesh."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(shape.get(a, 1) for a in ROWS)


def shards(name: str) -> int:
    """The number of shards of an axis by its name in RULES under the mesh in use; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(RULES[name], 1)


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over data and fsdp, all other axes are whole."""
    return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain_rows(x: jax.Array) -> jax.Array:
    """Tells the compiler that the leading axis of `x` is rows (or crops, or groups), split over data and fsdp."""
    if not jax.sharding.get_abstract_mesh().shape or x.shape[0] % row_shards():
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def everywhere(x: jax.Array) -> jax.Array:
    """Tells the compiler that every device holds all of `x`. Lookups in `x` then need no further exchange."""
    if not jax.sharding.get_abstract_mesh().shape:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def per_device(f: Callable, inputs: Sequence[Names], output: Names) -> Callable:
    """f, run by each device on its own share of arrays; for kernels that the compiler cannot split.

    For each array the names of its axes: 'rows', a name in RULES such as 'heads', or None for an axis that is whole.
    The mesh must divide these axes.
    """

    def spec(names: Names) -> P:
        return P(*(ROWS if name == 'rows' else RULES.get(name or '') for name in names))

    if not jax.sharding.get_abstract_mesh().shape:
        return f
    return jax.shard_map(f, in_specs=tuple(map(spec, inputs)), out_specs=spec(output), check_vma=False)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """From trees of logical axis names and of shapes to a tree of shardings, by RULES."""

    def one(names: Names, leaf: Any) -> NamedSharding:
        spec, used = [], set()
        for name, size in zip(names, leaf.shape, strict=True):
            axis = RULES.get(name or '')
            fits = axis is not None and axis not in used and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
            spec.append(axis if fits else None)
            used.add(axis if fits else None)
        return NamedSharding(mesh, P(*spec))

    return jax.tree.map(
        one, axes, shapes, is_leaf=lambda a: isinstance(a, tuple) and all(n is None or isinstance(n, str) for n in a)
    )


def split_rows(tree: Any, n: int) -> Any:
    """[R,...] -> [n,R/n,...]: each of the n slices gets an equal share of the consecutive rows of every device."""
    d = row_shards()

    def one(x: jax.Array) -> jax.Array:
        blocks = x.reshape(d, n, x.shape[0] // (d * n), *x.shape[1:])
        return blocks.swapaxes(0, 1).reshape(n, x.shape[0] // n, *x.shape[1:])

    return jax.tree.map(one, tree)


def merge_rows(tree: Any, n: int) -> Any:
    """The inverse of `split_rows`: [n,R/n,...] -> [R,...]."""
    d = row_shards()

    def one(x: jax.Array) -> jax.Array:
        blocks = x.reshape(n, d, x.shape[1] // d, *x.shape[2:]).swapaxes(0, 1)
        return constrain_rows(blocks.reshape(n * x.shape[1], *x.shape[2:]))

    return jax.tree.map(one, tree)


def gather(tree: Any) -> Any:
    """All of every array on every device, so that one process can write it."""
    mesh = jax.tree.leaves(tree)[0].sharding.mesh
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """The global numbers of the rows that this process feeds, sorted.

    The sharding decides. If the tensor axis spans several hosts, two processes feed the same rows, and the rows of a
    host need not be one range.
    """
    slices = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[s[0]] for s in slices]))


def global_batch(batch: Any, sharding: NamedSharding, rows: dict[str, int]) -> Any:
    """The rows of this process in each part (see `local_rows`) -> arrays over the global rows."""
    return {
        part: {
            name: jax.make_array_from_process_local_data(sharding, x, (rows[part], *x.shape[1:]))
            for name, x in fields.items()
        }
        for part, fields in batch.items()
    }
