"""Segmentation: a trained encoder and a light decoder learn the structures that the masks of the data show.

    medjax train --config fine_tune_segmentation --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax probe --run RUN --data DATA --probes fine_tune_segmentation        # from an export, and judged

ENCODER is a run, an export or public weights, a ViT or a ResNet. Records without a mask have no part in the loss. A
frozen encoder: --config.optim.groups.0.frozen_until=end. Some structures: --config.terms.0.structures='["lung"]'. A
linear decoder: --config.terms.0.of='student/image/crop/patches>classifier', and leave out the tower `decoder`. The
probe takes size and preprocessing of the images from the encoder, and the `factor` that gives 48 rows of cells or more.

Certain: sub-pixel convolution (arXiv 1609.05158), medjax/models/towers/patch_decoder.py; layer-wise decay of the rate
(2106.08254).
Ours: the decoder, much smaller than UPerNet (1807.10221) and U-Net (1505.04597); the loss, a sigmoid for each structure
and cell; 1e-3 for the decoder and an eighth of it for the encoder; 100 passes, because sets with masks are small; crops
of 50 to 100 % of the area, flips, changes of exposure. Set `flip` to 0 if left and right matter.

Cost: that of `fine_tune` for the same images and a few percent (estimated). Not run at this size.
"""

from typing import Any

from ml_collections import ConfigDict

from medjax import presets

BATCH = 32


def get_config(data: Any = None, epochs: str = '100') -> ConfigDict:
    steps = presets.steps(data, epochs, BATCH)
    return ConfigDict(
        dict(
            total_steps=steps,
            batch_size=BATCH,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='images',
                    count=1,
                    size=224,
                    area=(0.5, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
            ),
            towers=dict(
                image=dict(tower='vit', variant='B/16', drop_path=0.125),  # one row of each group of 8
                decoder=dict(tower='patch_decoder', reads=['image'], width=64, depth=2, factor=4),  # 56 rows of cells
            ),
            heads=dict(classifier=dict(head='linear', bias=True)),  # the term knows the number of outputs
            terms=[
                dict(term='supervised', of='student/decoder/crop/cells>classifier', structures='all'),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=0.002, warmup=steps // 10),
                weight_decay=0.05,
                clip=1.0,
                groups=[dict(match='towers/image/*', lr_scale=0.125, layerwise=0.75)],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'decoder'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
