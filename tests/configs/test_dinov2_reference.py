"""medjax against outputs of the original DINOv2 code: every file of the folder that MEDJAX_DINOV2_REFERENCE names.

The kind of a file is the start of its name; a kind that is not known here fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import reference_losses as losses
import reference_models as models
import reference_steps as steps

FOLDER = os.environ.get('MEDJAX_DINOV2_REFERENCE')

KINDS = {
    'dino_loss_': losses.check_dino_loss,
    'sinkhorn_overflow': losses.check_sinkhorn_overflow,
    'ibot_loss_': losses.check_ibot_loss,
    'koleo': losses.check_koleo,
    'schedules': losses.check_schedules,
    'param_groups': losses.check_param_groups,
    'masking_stats': losses.check_masking_stats,
    'dino_head_init_stats': models.check_head_init_stats,
    'dino_head_': models.check_dino_head,
    'vit_': models.check_vit,
    'pos_embed_interp': models.check_pos_embed,
    'drop_path_subset': models.check_drop_path,
    'step_': steps.check_step,
    'lockstep_': steps.check_lockstep,
}


SLOW = ('step_', 'lockstep_', 'masking_stats')  # files that take half a minute and more


def files() -> list[Path]:
    if not FOLDER:
        return []
    arrays = sorted(p for p in Path(FOLDER).iterdir() if p.suffix.lower() != '.md' and not p.name.startswith('.'))
    return arrays or [Path(FOLDER) / 'no file at all']


@pytest.mark.skipif(not FOLDER, reason='MEDJAX_DINOV2_REFERENCE names no folder of reference arrays')
@pytest.mark.parametrize(
    'path',
    [pytest.param(p, marks=[pytest.mark.slow] * p.name.startswith(SLOW)) for p in files()],
    ids=lambda path: path.name,
)
def test_file(path: Path) -> None:
    kinds = sorted((kind for kind in KINDS if path.stem.startswith(kind)), key=len)
    assert path.exists(), f'{path} is not there'
    assert kinds and path.suffix in ('.npz', '.json'), f'{path.name} is of no known kind: {", ".join(KINDS)}'
    KINDS[kinds[-1]](path)
