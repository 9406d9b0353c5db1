"""Bias only: a trained encoder learns labels by its biases alone, and everything else stays (BitFit).

    medjax train --config bias_only --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax probe --run RUN --data DATA --probes bias_only         # from an export, and judged

ENCODER is a run, an export or public weights. In a ViT these are the biases of products and norms, .1 % of the
parameters; in a ResNet those of the norms. Size and preprocessing of the images as in `fine_tune`.

Certain (arXiv 2106.10199): which parameters learn, with a new classifier, and that the rate is far above that of
fine-tuning.
Ours: 1e-3, 50 passes, and the views of `fine_tune`. In a ResNet the running statistics of the norms move too; norm=
'frozen' in its section keeps them.

Cost: about two thirds of `fine_tune` (estimated), because no gradient of a frozen weight is computed. Adam
still keeps moments of all parameters. Not run at this size; measured small in docs/learn_from_labels.md.
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
            towers=dict(image=dict(tower='vit', variant='B/16', drop_path=0.0)),
            heads=dict(classifier=dict(head='linear', bias=True)),  # the term knows the number of outputs
            terms=[
                dict(
                    term='supervised',
                    of='student/image/crop/cls>classifier',
                    policy=dict(uncertain='ignore', blank='ignore', conflicting='ignore'),
                ),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=0.002, warmup=steps // 10),
                weight_decay=0.05,
                clip=1.0,
                groups=[
                    dict(match='towers/image/*', frozen_until='end'),
                    dict(match='towers/image/*/bias', frozen_until=0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
