"""Barlow Twins (arXiv 2103.03230) with a ResNet-50: two crops agree in each dimension, and dimensions do not repeat.

    medjax train --config barlow_twins --data DATA --workdir RUN

Certain (code, facebookresearch/barlowtwins): the loss with .0051 on the other correlations; the projector of three
layers with 8,192 numbers; crops, colours, blur and solarising of both crops; batch 2,048; 1,000 epochs; LARS without
decay on biases and norms; the learning rate .2 x batch / 256 for matrices and .0048 x batch / 256 for biases and norms;
10 epochs of warm-up, then half a cosine to a thousandth; weight decay 1e-6.
Different: LARS adds the norms of gradient and decay, in the original it takes the norm of their sum; the last norm of a
ResNet block starts with scale 1, in the original with 0.
Micro-batches are refused, because the BatchNorms of tower and head need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .05 TFLOP an image, 67 EFLOP in all: 63 hours of one H100 at 30 % of its peak.
Published (recalled): ImageNet, linear evaluation 73.2 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 2_048
EPOCH = 625  # steps: 1,281,167 images of ImageNet
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
            heads=dict(projector=dict(head='mlp', out=8_192, hidden=8_192, layers=3, bias=False, batch_norm=True)),
            terms=[
                dict(
                    term='cross_correlation',
                    of=['student/image/first/cls>projector', 'student/image/second/cls>projector'],
                    off_diagonal=0.0051,
                )
            ],
            optim=dict(
                rule='lars',
                lr=0.2 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=1e-3, warmup=10 * EPOCH),
                weight_decay=1e-6,
                b1=0.9,
                groups=[dict(match='*/bias', lr_scale=0.0048 / 0.2), dict(match='*/scale', lr_scale=0.0048 / 0.2)],
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
