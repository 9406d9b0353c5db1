"""Fine-tuning: a trained encoder, all of it, learns the labels of the data.

    medjax train --config fine_tune --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax train --config fine_tune:20 …                          # 20 passes over the train split, not 50
    medjax probe --run RUN --data DATA --probes fine_tune         # from an export, and judged

ENCODER is a run, an export or public weights, a ViT or a ResNet. The probe takes size and preprocessing of the images
from the encoder; by hand, write them as --config.views.crop.size=336 and --config.image.mean=.5.

Certain (arXiv 2111.06377, 2106.08254): layer-wise decay of the learning rate, so that the first layers change least. In
a ResNet the stages are the layers.
Ours: the decay .75, as BEiT has for a large ViT; 5e-4 x batch / 256 and weight decay .05 as in `supervised_vitb16`; 50
passes; crops of 50 to 100 % of the area, flips, changes of exposure. Set `flip` to 0 if left and right matter.

Cost: that of `supervised_vitb16` for the same images. Not run at this size; measured small in
docs/learn_from_labels.md.
"""

from typing import Any

from ml_collections import ConfigDict

from medjax import presets

BATCH = 64


def get_config(data: Any = None, epochs: str = '50') -> ConfigDict:
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
            towers=dict(image=dict(tower='vit', variant='B/16', drop_path=0.125)),  # one row of each group of 8
            heads=dict(classifier=dict(head='linear', bias=True)),  # the term knows the number of outputs
            terms=[
                dict(
                    term='supervised',
                    of='student/image/crop/cls>classifier',
                    policy=dict(uncertain='ignore', blank='ignore', conflicting='ignore'),
                ),
            ],
            optim=dict(
                lr=5e-4 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.002, warmup=steps // 10),
                weight_decay=0.05,
                clip=1.0,
                groups=[dict(match='towers/image/*', layerwise=0.75)],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
