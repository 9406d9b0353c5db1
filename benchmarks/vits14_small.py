"""DINOv2's recipe at a size for a CPU, for benchmarks/step.py: ViT-S/14, 2 x 98 + 4 x 42 px, 4 images, float32.

It has two heads with 4,096 prototypes, Sinkhorn, three channels and no drop path. All other values are those of
configs/dinov2_vits14.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).parents[1] / 'configs' / 'dinov2_vits14.py'))['get_config']()
    config.update(total_steps=1_000, batch_size=4, rows_per_group=4, dtype='float32')
    config.views['global'].size, config.views['local'].size, config.views['local'].count = 98, 42, 4
    config.towers.image.native_size = 98
    config.towers.image.unroll = 1  # on a CPU, unrolled blocks need more memory and are no faster
    config.heads.dino.prototypes = 4_096
    config.heads.ibot = ConfigDict(config.heads.dino.to_dict())
    config.teachers.teacher.of = ['towers/image', 'heads/dino', 'heads/ibot']
    cls, patch, _ = config.terms
    cls['centring'] = patch['centring'] = 'sinkhorn'
    for feature in ('student', 'teacher'):
        patch[feature] = patch[feature].replace('>dino', '>ibot')
    config.optim.groups = [*config.optim.groups, dict(match='heads/ibot/*', clip_group='ibot')]
    return config
