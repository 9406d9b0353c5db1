"""iBOT (arXiv 2111.07832) with a ViT-S/16: DINO on crops, and masked tokens predict the teacher's tokens.

    medjax train --config ibot --data DATA --workdir RUN

Certain (README of bytedance/ibot): 800 epochs on 16 GPUs with 64 images each; teacher temperature .04 to .07 in 30
epochs; one head with 8,192 prototypes for crops and tokens, with trained norms; 2 global crops (25 to 100 % of the
area) and 10 local crops (5 to 25 %); half of the global crops masked, with ratios around .3 +- .2.
Recalled (defaults of main_ibot.py), not read again: crops of 224 and 96 px; blur and solarising as in DINO; both losses
with weight 1; running means with momentum .9; teacher momentum .996 to 1; learning rate 5e-4 x batch / 256, 10 epochs
of warm-up, half a cosine to 1e-6; weight decay .04 to .4; clipping at 3; prototypes frozen for one epoch.
Different: masks have exact counts, uniform from .1 to .5, on exactly half of the crops; the norms of gradients are
those of tower and head, in the original those of each parameter; no drop path, in the original .1; prototypes that are
frozen enter the moments.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .13 TFLOP an image, 130 EFLOP in all: 120 hours of one H100 at 30 % of its peak.
Published (README): ImageNet, kNN 75.2 %, linear evaluation 77.9 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 1_024
EPOCH = 1_251  # steps: 1,281,167 images of ImageNet
STEPS = 800 * EPOCH
LR = 5e-4 * BATCH / 256


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=30 * EPOCH)
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=16,
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
                    area=(0.25, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=(1.0, 0.1),
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=(0.0, 0.2)),
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=10,
                    size=96,
                    area=(0.05, 0.25),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.0),
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(image=dict(tower='vit', variant='S/16', native_size=224, layerscale=None, drop_path=0.0)),
            heads=dict(dino=dict(head='dino_head', prototypes=8_192, hidden=2_048, bottleneck=256)),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino'], rule='ema', momentum=dict(rule='cosine', start=0.996, end=1.0)
                )
            ),
            terms=[
                dict(
                    term='distill_cls',
                    student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                    centring='centre',
                    teacher_temperature=teacher_temperature,
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>dino',
                    teacher='teacher/image/global/patches@block>dino',
                    centring='centre',
                    teacher_temperature=teacher_temperature,
                ),
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
