"""MoCo v3 (arXiv 2104.02057) with a ViT-B/16: each crop finds the other crop of its image among those of a teacher.

    medjax train --config moco_v3 --data DATA --workdir RUN

Certain (code, facebookresearch/moco-v3): the loss, 2 temperature x cross-entropy in both directions; temperature .2;
projector of three layers and predictor of two, without biases, with a BatchNorm after every layer; a frozen patch
embedding and fixed sine-cosine positions; AdamW with the rate 1.5e-4 x batch / 256 and weight decay .1; 300 epochs,
40 of them warm-up; batch 4,096; the teacher's momentum from .99 to 1 by a cosine.
Recalled, not read again: crops of 8 to 100 % of the area; the colours; blur for all first and a tenth of the second
crops; a fifth of the second crops solarised; weight decay on all matrices.
Different: the teacher normalises by running statistics (arXiv 2101.08482), in the original by those of its batch; the
teacher moves at the end of a step, in the original before its pass; Xavier start as in `mae_vitb16`.
Micro-batches are refused, because the BatchNorms of the heads need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .28 TFLOP an image, 108 EFLOP in all: 100 hours of one H100 at 30 % of its peak.
Published (CONFIG.md): ImageNet, linear evaluation 76.7 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 4_096
EPOCH = 313  # steps: 1,281,167 images of ImageNet
STEPS = 300 * EPOCH
TEMPERATURE = 0.2


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                first=dict(
                    view='crop',
                    part='images',
                    count=1,
                    size=224,
                    area=(0.08, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=1.0,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.0),
                ),
                second=dict(
                    view='crop',
                    part='images',
                    count=1,
                    size=224,
                    area=(0.08, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.1,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.2),
                ),
            ),
            towers=dict(image=dict(tower='vit', variant='B/16', family='mae', positions='sincos', start='xavier')),
            heads=dict(
                projector=dict(
                    head='mlp', out=256, hidden=4_096, layers=3, bias=False, batch_norm=True, last_batch_norm=True
                ),
                predictor=dict(head='mlp', out=256, hidden=4_096, bias=False, batch_norm=True, last_batch_norm=True),
            ),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/projector'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=0.99, end=1.0),
                )
            ),
            terms=[
                dict(
                    term='pair_softmax',
                    name='first_to_second',
                    rows='student/image/first/cls>projector>predictor',
                    columns='teacher/image/second/cls>projector',
                    row_weight=1.0,
                    temperature=TEMPERATURE,
                    weight=2 * TEMPERATURE,
                ),
                dict(
                    term='pair_softmax',
                    name='second_to_first',
                    rows='student/image/second/cls>projector>predictor',
                    columns='teacher/image/first/cls>projector',
                    row_weight=1.0,
                    temperature=TEMPERATURE,
                    weight=2 * TEMPERATURE,
                ),
            ],
            optim=dict(
                lr=1.5e-4 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=40 * EPOCH),
                weight_decay=0.1,
                groups=[dict(match='towers/image/patch_embed/*', frozen_until='end')],
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
