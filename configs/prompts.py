"""Visual prompts: a ViT stays as it is, and prompts that depend on the image learn labels (DVPT).

    medjax train --config prompts --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax probe --run RUN --data DATA --probes prompts           # from an export, and judged

ENCODER is a run, an export or public weights of a ViT. Exports hold the prompts. Plain visual prompts (VPT), which are
the same for all images: --config.towers.image.prompts.bottleneck=0. Size and preprocessing of the images as in
`fine_tune`.

Certain (abstract of arXiv 2307.09787): a bottleneck, learned queries and cross-attention give the prompts, one module
serves all blocks, and it has .5 % of the parameters of a ViT-B. medjax/models/prompts.py says what is ours.
Ours: 10 prompts, a bottleneck of 256, which makes .5 % of a ViT-B; 1e-3, 50 passes, and the views of `fine_tune`.

Cost: that of `fine_tune`. Adam still keeps moments of all parameters. Not run at this size; measured small in
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
            towers=dict(image=dict(tower='vit', variant='B/16', drop_path=0.0, prompts=dict(count=10, bottleneck=256))),
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
                    dict(match='towers/image/prompts/*', frozen_until=0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
