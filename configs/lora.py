"""LoRA: small matrices beside the weights of a ViT learn labels, and the ViT stays.

    medjax train --config lora --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax probe --run RUN --data DATA --probes lora              # from an export, and judged

ENCODER is a run, an export or public weights of a ViT. Its exports have the small matrices merged into the weights, so
they are plain ViTs. Size and preprocessing of the images as in `fine_tune`.

Certain (arXiv 2106.09685): the method, medjax/models/lora.py. (MohammedSB/DINOv2ForRadiology, arXiv 2312.02366): rank
48 and alpha 16, on queries, keys, values and both layers of the MLP; the matrices are apart for queries, keys and
values here, and one of them is shared there.
Ours: 1e-3, 50 passes, and the views of `fine_tune`.

Cost: about nine tenths of `fine_tune` (estimated). Adam still keeps moments of all parameters. Not run at this size;
measured small in docs/learn_from_labels.md.
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
            towers=dict(
                image=dict(
                    tower='vit',
                    variant='B/16',
                    drop_path=0.0,
                    lora=dict(rank=48, alpha=16.0, targets=['q', 'k', 'v', 'mlp']),
                )
            ),
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
                    dict(match='towers/image/*/lora*', frozen_until=0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
