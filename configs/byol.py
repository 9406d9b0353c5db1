"""BYOL (arXiv 2006.07733) with a ResNet-50: each crop predicts what a teacher makes of the other crop. No negatives.

    medjax train --config byol --data DATA --workdir RUN

Certain (code, deepmind-research/byol): the loss, the squared distance of unit vectors in both directions; projector and
predictor with 4,096 hidden and 256 outputs, and a BatchNorm after the hidden layer; LARS without decay on biases and
norms; for 1,000 epochs the learning rate .2 x batch / 256, weight decay 1.5e-6, teacher momentum from .996 to 1 by a
cosine, 10 epochs of warm-up.
Recalled from the paper, not read again: batch 4,096; crops of 8 to 100 % of the area; the colours; blur for all first
and a tenth of the second crops; a fifth of the second crops solarised.
Different: the teacher normalises by running statistics (arXiv 2101.08482), in the original by those of its batch; LARS
adds the norms of gradient and decay, in the original it takes the norm of their sum.
Micro-batches are refused, because the BatchNorms of tower and heads need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .07 TFLOP an image, 84 EFLOP in all: 80 hours of one H100 at 30 % of its peak.
Published (recalled): ImageNet, linear evaluation 74.3 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 4_096
EPOCH = 313  # steps: 1,281,167 images of ImageNet
STEPS = 1_000 * EPOCH


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
            towers=dict(image=dict(tower='resnet', variant='50', norm='batch')),
            heads=dict(
                projector=dict(head='mlp', out=256, hidden=4_096, bias=False, batch_norm=True),
                predictor=dict(head='mlp', out=256, hidden=4_096, bias=False, batch_norm=True),
            ),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/projector'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=0.996, end=1.0),
                )
            ),
            terms=[
                dict(
                    term='regress',
                    name='first_to_second',
                    student='student/image/first/cls>projector>predictor',
                    teacher='teacher/image/second/cls>projector',
                    loss='cosine',
                    normalise=None,
                    weight=2.0,
                ),
                dict(
                    term='regress',
                    name='second_to_first',
                    student='student/image/second/cls>projector>predictor',
                    teacher='teacher/image/first/cls>projector',
                    loss='cosine',
                    normalise=None,
                    weight=2.0,
                ),
            ],
            optim=dict(
                rule='lars',
                lr=0.2 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=10 * EPOCH),
                weight_decay=1.5e-6,
                b1=0.9,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
