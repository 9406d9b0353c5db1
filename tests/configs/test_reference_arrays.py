"""medjax against arrays of original code: every file of the methods' folders that MEDJAX_REFERENCE_ARRAYS holds.

A folder is a method, the kind of a file is the start of its name, and a kind that is not known here fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import reference_chexworld as chexworld
import reference_ijepa as ijepa
import reference_mae as mae
import reference_spark as spark
import reference_swav as swav

FOLDER = os.environ.get('MEDJAX_REFERENCE_ARRAYS')

METHODS = {
    'mae': {
        'mae_': mae.check_mae,
        'medical_': mae.check_mae,
        'lockstep_': mae.check_lockstep,
        'sincos_tables': mae.check_tables,
    },
    'ijepa': {
        'ijepa_': ijepa.check_ijepa,
        'lockstep_': ijepa.check_lockstep,
        'mask_stats_': ijepa.check_mask_statistics,
        'start_spread': ijepa.check_start,
    },
    'chexworld': {
        'dual_': chexworld.check_dual,
        'lockstep_': chexworld.check_lockstep,
        'tables': chexworld.check_tables,
    },
    'swav': {
        'sinkhorn': swav.check_sinkhorn,
        'head_': swav.check_swav,
        'lockstep_': swav.check_swav,
    },
    'spark': {
        'resnet_': spark.check_spark,
        'convnext_': spark.check_spark,
        'lockstep_': spark.check_lockstep,
        'len_keep': spark.check_len_keep,
    },
}


def files() -> list[Path]:
    """The files of all methods, and the folder itself for a method that is not there yet."""
    if not FOLDER:
        return []
    listed: list[Path] = []
    for folder in sorted(path for path in Path(FOLDER).iterdir() if path.is_dir()):
        listed += sorted(folder.iterdir()) if folder.name in METHODS else [folder]
    return [path for path in listed if path.suffix.lower() != '.md'] or [Path(FOLDER) / 'no file at all']


@pytest.mark.skipif(not FOLDER, reason='MEDJAX_REFERENCE_ARRAYS names no folder of reference arrays')
@pytest.mark.parametrize('path', files(), ids=lambda path: f'{path.parent.name}-{path.name}')
def test_arrays(path: Path) -> None:
    assert path.exists(), f'{path} is not there'
    if path.is_dir():
        pytest.skip(f'{path.name}: this method is not in medjax yet')
    kinds = METHODS[path.parent.name]
    fitting = sorted((kind for kind in kinds if path.stem.startswith(kind)), key=len)
    assert fitting and path.suffix == '.npz', f'{path.name} is of no known kind: {", ".join(kinds)}'
    kinds[fitting[-1]](path)
