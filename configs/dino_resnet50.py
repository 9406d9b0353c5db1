"""DINO (arXiv 2104.14294) with a ResNet-50: crops predict a teacher's distribution over prototypes.

    medjax train --config dino_resnet50 --data DATA --workdir RUN

Certain (facebookresearch/dino at 7c446df, the command for a ResNet-50 in its README and the defaults of main_dino.py):
the run of 100 epochs on 8 GPUs with 64 images each; SGD with momentum .9, learning rate .03 x batch / 256, 10 epochs of
warm-up, half a cosine to 1e-6; weight decay 1e-4 without biases and norms; 2 crops of 224 px (14 to 100 % of the area)
and 8 crops of 96 px (5 to 14 %); flips, colours; blur of all first, a tenth of the second and half of the local crops;
a fifth of the second crops solarised; teacher temperature .04; centring by a running mean with momentum .9; teacher
momentum .996 to 1; clipping at 3; 65,536 prototypes of fixed norm, frozen for one epoch; no batch norm in the head.
Different: the norms of gradients are those of tower and head, in the original those of each parameter; the teacher
normalises by running statistics (arXiv 2101.08482), in the original by those of its batch; prototypes that are frozen
enter the momentum.
Not this run: the published weights. Their author (issue 133 of the code) names a batch of 4,080 on 80 GPUs with other
arguments. Recalled of these, not read again: LARS with the rate .3 x batch / 256, weight decay 1e-6, a teacher
temperature of .04 to .07, batch norm in the head, 800 epochs. The head `dino_head` has no batch norm.
Micro-batches are refused, because the BatchNorms of the tower need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .10 TFLOP an image, 13 EFLOP in all: 12 hours of one H100 at 30 % of its peak.
Published (README): ImageNet, kNN 67.5 %, linear evaluation 75.3 %, both of the published weights. Expect less of this
shorter run. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 512
EPOCH = 2_502  # steps: 1,281,167 images of ImageNet
STEPS = 100 * EPOCH
LR = 0.03 * BATCH / 256


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
            views={
                'global': dict(
                    view='crop',
                    part='images',
                    count=2,
                    size=224,
                    area=(0.14, 1.0),
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
                    area=(0.05, 0.14),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.0),
                ),
            },
            towers=dict(image=dict(tower='resnet', variant='50', norm='batch')),
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
                    teacher_temperature=0.04,
                )
            ],
            optim=dict(
                rule='sgd',
                lr=LR,
                schedule=dict(rule='cosine', start=1.0, end=1e-6 / LR, warmup=10 * EPOCH),
                weight_decay=1e-4,
                b1=0.9,
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/*/prototypes/*', frozen_until=EPOCH),
                    dict(match='heads/*/prototypes/gain', frozen_until='end'),
                ],
            ),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
