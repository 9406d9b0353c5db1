"""Topologies by name, and the sentences where one is unknown or where its compiler is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medjax.errors import UserError
from medjax.parallel import sharding

ROOT = Path(__file__).parents[2]


def devices_of(name: str) -> subprocess.CompletedProcess:
    """`devices(name)` in a process of its own, because the function sets variables of the environment."""
    program = f"""
from medjax.aot.devices import devices
from medjax.errors import UserError
try:
    print(len(devices({name!r})))
except UserError as error:
    print(error)
"""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        (
            'h100',
            "topology 'h100' is unknown; known are h100:NODESxGPUS and h200:NODESxGPUS, as h100:1x8, and v4:2x2x1",
        ),
        ('h100:8', 'h100:NODESxGPUS'),
        ('h10:1x8', "'h10:1x8' is unknown; did you mean 'h100'"),
        ('v5:2x2', "did you mean 'v5"),
        ('h100:0x8', 'is unknown'),
    ],
)
def test_an_unknown_topology_is_a_sentence(name, sentence):
    done = devices_of(name)
    assert sentence in done.stdout and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('name', ['h100:1x1', 'v5p:2x2x1'])
def test_a_missing_compiler_is_a_sentence(name):
    plugin = 'jax_cuda13_plugin' if name.startswith('h100') else 'libtpu'
    if importlib.util.find_spec(plugin):
        pytest.skip(f'{plugin} is installed here')
    done = devices_of(name)
    assert 'make aot makes environments with the compilers' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('\n') == 1 and done.returncode == 0


def test_a_mesh_that_a_torus_cannot_hold_is_a_sentence(monkeypatch):
    """On 512 chips of 8 x 8 x 8 every size of the mesh is a product of whole axes: 1, 8, 64 or 512."""

    def fits(shape, devices):
        if any(n not in (1, 8, 64, 512) for n in shape):
            raise NotImplementedError('not on this torus')
        return shape

    monkeypatch.setattr(sharding, '_mesh', fits)
    with pytest.raises(UserError) as error:
        sharding.make_mesh(256, 1, 2, devices=[None] * 512)
    assert "'data': 256" in str(error.value) and 'data=64, fsdp=1, tensor=8' in str(error.value)
    assert 'data=512, fsdp=1, tensor=1' in str(error.value)
    assert sharding.make_mesh(64, 1, 8, devices=[None] * 512) == (64, 1, 8)
