"""Compares our towers and heads with arrays of the original DINOv2 code, for tests/configs/test_dinov2_reference.py."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import published_names
from programs import run as one_program

from medjax.models.drop_path import add_residual, kept_count
from medjax.models.heads import dino_head
from medjax.models.towers import vit
from medjax.types import Input, Mask, View
from medjax.weights.fit import check_like

FORWARD, GRADIENT = 2e-5, 1e-4  # tolerances, relative to the largest value of an array
HEADS = 3  # attention heads of all backbones in the reference


def check_vit(path: Path) -> None:
    """vit_*.npz: outputs at five image sizes with and without a mask, embedded tokens, the last two blocks."""
    arrays = dict(np.load(path))
    params = published_names.backbone(under(arrays, 'param/'), heads=HEADS)
    same(under(arrays, 'param/'), published_names.to_meta(params), 0.0, 'to Meta and back')
    tower = tower_like(params)
    module = tower.module  # gives the tokens before the final norm, too
    cases = sorted(name.removesuffix('/x') for name in arrays if name.endswith('/x'))
    assert cases, path
    for case in cases:
        expected = under(arrays, f'{case}/')
        images = expected.pop('x').transpose(0, 2, 3, 1)
        bits = expected.pop('mask')
        grid = tower.grid(images.shape[1:3])
        got = {
            'tokens_after_embed_mask': one_program(
                lambda p, x, bits: vit.embed(p, x, vit.Seen(bits), module.antialias, module.family.offset),
                params,
                images,
                bits,
            )
        }
        for name, masked in (('nomask', None), ('mask', bits)):
            outputs = run(tower, params, images, masked)
            got[f'{name}/x_norm_clstoken'] = outputs['cls'][:, 0]
            got[f'{name}/x_norm_patchtokens'] = outputs['patches'][:, 0]
            none = np.zeros((len(images), 0, tower.width), np.float32)
            got[f'{name}/x_norm_regtokens'] = outputs['registers'][:, 0] if 'registers' in outputs else none
            got[f'{name}/x_prenorm'] = one_program(
                lambda p, x, bits: module.apply({'params': p}, x, vit.Seen(bits), None, 1)[0][0], params, images, masked
            )
            if masked is None:
                got['eval_forward'] = outputs['cls'][:, 0]
                for i in range(2):
                    patches = outputs['last2/patches'][:, 0, i].reshape(len(images), *grid, -1)
                    got[f'intermediate{i}/patch_map'] = patches.transpose(0, 3, 1, 2)
                    got[f'intermediate{i}/cls'] = outputs['last2/cls'][:, 0, i]
        same(expected, got, FORWARD, case)


def tower_like(params: dict):
    """The tower whose parameters have these shapes."""
    patch, _, channels, width = params['patch_embed']['kernel'].shape
    blocks = params['blocks']
    tower = vit.build(
        channels,
        f'S/{patch}',
        width=width,
        depth=len(blocks['norm1']['scale']),
        heads=HEADS,
        ffn='swiglu' if 'w12' in blocks['mlp'] else 'mlp',
        native_size=tuple(patch * n for n in params['pos_grid'].shape[:2]),
        registers=len(params.get('registers', ())),
        layerscale=1.0 if 'gamma1' in blocks else None,
        qkv_bias='bias' in blocks['attn']['qkv'],
    )
    check_like(params, jax.eval_shape(tower.init, jax.random.key(0)), 'reference')
    return tower


def run(tower, params: dict, images: np.ndarray, bits: np.ndarray | None) -> dict[str, np.ndarray]:
    """The tower's outputs for images [B,H,W,C] as one crop of B rows."""
    rows = len(images)
    view = View(images[:, None, None], np.arange(rows, dtype=np.uint32), np.ones((rows, 1), bool), None, {})
    mask = None if bits is None else Mask(bits[:, None], *[np.zeros((1, 1, 0))] * 2)
    want = ('last2/cls', 'last2/patches')
    return jax.tree.map(np.asarray, jax.jit(lambda p: tower.apply(p, Input(view, mask), want=want))(params))


def check_dino_head(path: Path) -> None:
    """dino_head_*.npz: logits, and the gradients of sum(logits * cotangent) by all parameters and by the input."""
    arrays = dict(np.load(path))
    params = published_names.head(under(arrays, 'param/'))
    same(under(arrays, 'param/'), published_names.head_to_meta(params), 0.0, 'to Meta and back')
    head = head_like(params)

    def objective(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = head.prototypes(params)(head.apply(params, x))
        return jnp.sum(y * arrays['cotangent']), y

    (grads, grad_x), y = one_program(jax.grad(objective, (0, 1), has_aux=True), params, arrays['x'])
    same({'y': arrays['y']}, {'y': y}, FORWARD, 'forward')
    same(under(arrays, 'grad/'), published_names.head_to_meta(grads) | {'x': grad_x}, GRADIENT, 'gradient')


def head_like(params: dict):
    """The dino_head whose parameters have these shapes."""
    bottleneck, prototypes = params['prototypes']['direction'].shape
    width, hidden = params['mlp_0']['kernel'].shape
    return dino_head.build(
        width, prototypes, hidden, bottleneck, layers=len(params) - 1, bias='bias' in params['mlp_0']
    )


def check_head_init_stats(path: Path) -> None:
    """dino_head_init_stats.json: mean, standard deviation and largest value of each new parameter."""
    head = dino_head.build(768, 4096)
    state = published_names.head_to_meta(jax.tree.map(np.asarray, one_program(head.init, jax.random.key(0))))
    stats = json.loads(Path(path).read_text())
    assert set(state) == set(stats)
    for name, (mean, std, largest) in stats.items():
        array = state[name].astype(np.float64)
        assert abs(array.mean() - mean) < 5 * (std + 1e-12) / array.size**0.5 * 2, name
        assert abs(array.std() - std) < 0.005 * std + 1e-9, (name, array.std(), std)
        assert abs(array.max() - largest) <= 0.25 * largest, (name, array.max(), largest)


def check_pos_embed(path: Path) -> None:
    """pos_embed_interp.npz: position embeddings of 16x16 and 37x37 patches, resized to seven grids in four modes."""
    arrays = dict(np.load(path))
    tables = [name for name in arrays if name.count('/') == 2]
    assert tables, path
    for name in tables:
        source, mode, size = name.split('/')
        antialias, offset = mode.split('_')
        positions = arrays[f'{source}/pos_embed'][0]
        side = round((len(positions) - 1) ** 0.5)
        grid = tuple(int(n) for n in size.split('x'))
        native = positions[1:].reshape(side, side, -1)
        resize = functools.partial(
            vit.resize_grid, shape=grid, antialias=antialias == 'aa1', offset=float(offset.removeprefix('off'))
        )
        got = one_program(resize, native)
        table = np.concatenate([positions[:1], np.asarray(got).reshape(-1, positions.shape[-1])])
        same({name: arrays[name][0]}, {name: table}, FORWARD, 'position embeddings')


def check_drop_path(path: Path) -> None:
    """drop_path_subset.npz: x + residual of a random subset, with the permutations that the original drew."""
    arrays = dict(np.load(path))
    x, w = arrays['x'], arrays['W']
    ratios = [name.removesuffix('/perm') for name in arrays if name.endswith('/perm')]
    assert ratios, path
    for name in ratios:
        count = int(arrays[f'{name}/subset_size'])
        ratio = float(re.search(r'\d*\.?\d+$', name)[0])
        assert count == kept_count(len(x), ratio / 100 if ratio > 1 else ratio), name
        kept = arrays[f'{name}/perm'][None, :count]
        got = one_program(lambda x, kept: add_residual(x, lambda s: jnp.tanh(s @ w), kept), x, kept)
        same({name: arrays[f'{name}/y']}, {name: got}, FORWARD, 'drop path')


def under(arrays: dict, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names have the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def same(expected: dict, got: dict, tolerance: float, what: str) -> None:
    """Asserts that arrays have the same names and shapes, and differ by at most `tolerance` of the largest value."""
    assert set(expected) == set(got), (what, sorted(set(expected) ^ set(got)))
    for name, array in expected.items():
        value = np.asarray(got[name])
        assert value.shape == array.shape, (what, name, value.shape, array.shape)
        if array.size:
            error = np.abs(value.astype(np.float64) - array).max()
            assert error <= tolerance * np.abs(array).max(), f'{what}: {name} differs by {error:.2e}'
