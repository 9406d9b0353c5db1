"""DINO (arXiv 2104.14294) with a ViT-S/16: crops predict a teacher's distribution over prototypes.

    medjax train --config dino --data DATA --workdir RUN

Certain (README of facebookresearch/dino): the run of 300 epochs on 16 GPUs with 64 images each: teacher temperature .04
to .07 in 30 epochs, trained norms of the prototypes.
Recalled (defaults of main_dino.py), not read again: 2 crops of 224 px (40 to 100 % of the area) and 8 crops of 96 px (5
to 40 %); blur of all first, a tenth of the second and half of the local crops; a fifth of the second crops solarised;
65,536 prototypes; centring by a running mean with momentum .9; teacher momentum .996 to 1; learning rate 5e-4 x batch /
256, 10 epochs of warm-up, half a cosine to 1e-6; weight decay .04 to .4; clipping at 3; prototypes frozen for one
epoch.
Different: the norms of gradients are those of tower and head, in the original those of each parameter; no drop path, in
the original .1; prototypes that are frozen enter the moments.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .11 TFLOP an image, 43 EFLOP in all: 40 hours of one H100 at 30 % of its peak.
Published (README): ImageNet, kNN 73.3 %, linear evaluation 76.1 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 1_024
EPOCH = 1_251  # steps: 1,281,167 images of ImageNet
STEPS = 300 * EPOCH
LR = 5e-4 * BATCH / 256


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=30 * EPOCH)
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
            views={
                'global': dict(
                    view='crop',
                    part='images',
                    count=2,
                    size=224,
                    area=(0.4, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=(1.0, 0.1),
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=(0.0, 0.2)),
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=8,
                    size=96,
                    area=(0.05, 0.4),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.0),
                ),
            },
            towers=dict(image=dict(tower='vit', variant='S/16', native_size=224, layerscale=None, drop_path=0.0)),
            heads=dict(dino=dict(head='dino_head', prototypes=65_536, hidden=2_048, bottleneck=256)),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino'], rule='ema', momentum=dict(rule='cosine', start=0.996, end=1.0)
                )
            ),
            terms=[
                dict(
                    term='distill_cls',
                    student=['student/image/global/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                    centring='centre',
                    teacher_temperature=teacher_temperature,
                )
            ],
            optim=dict(
                lr=LR,
                schedule=dict(rule='cosine', start=1.0, end=1e-6 / LR, warmup=10 * EPOCH),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4),
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/*/prototypes/*', frozen_until=EPOCH),
                ],
            ),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
