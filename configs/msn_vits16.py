"""MSN (arXiv 2204.07141) with a ViT-S/16: masked and small crops predict a teacher's prototypes of another crop.

    medjax train --config msn_vits16 --data DATA --workdir RUN

The student sees one crop without 15 % of its patches, and ten small crops. The teacher, an average of the student, sees
another crop whole. The student's crops predict which prototypes the teacher's crop is near.

Certain (code and msn_vits16.yaml of facebookresearch/msn): the loss, with 1,024 prototypes,
temperature .1, sharpening .25, the entropy of the mean prediction with weight 1, Sinkhorn for the targets; crops of 224
px (30 to 100 % of the area), ten of 96 px (5 to 30 %); 15 % of the patches dropped, in the large anchor alone; colours
of half strength, blur for half of the crops; a head of three layers with 2,048 hidden, 256 outputs, BatchNorm and GELU;
batch 16 x 64, 800 epochs; AdamW with rate .001, 15 epochs of warm-up from .0002, half a cosine to 1e-6 and weight decay
.04 to .4, both as if the run had 1,000 epochs; teacher momentum .996 to 1 on the same scale; clipping at 3; no weight
decay of prototypes.
Different: the teacher's BatchNorms have running statistics, in the original those of the batch; the original does not
clip the gradient of the prototypes, here it is clipped by itself.
Micro-batches are refused, because the BatchNorms of the head need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .08 TFLOP an image, 83 EFLOP in all: 78 hours of one H100 at 30 % of its peak.
Published: ImageNet, linear evaluation 76.9 %, and 67.2 % with 1 % of the labels (recalled). Not reproduced here. What
to expect: the loss begins near ln 1,024 = 6.9 and falls; `prototypes` must stay far above 1, and `me_max` near 0.
"""

from ml_collections import ConfigDict

EPOCH = 1_251  # steps: 1,281,167 images of ImageNet in batches of 1,024
STEPS = 800 * EPOCH
SCHEDULED = 1_000 * EPOCH  # the length of all schedules; the run ends before they do
LR = 1e-3


def get_config() -> ConfigDict:
    crop = dict(
        view='crop',
        part='images',
        aspect=(3 / 4, 4 / 3),
        flip=0.5,
        blur=0.5,
        sigma=(0.1, 2.0),
        photometric=dict(set='dinov2', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    )
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=1_024,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                target=crop | dict(size=224, area=(0.3, 1.0)),
                anchor=crop | dict(size=224, area=(0.3, 1.0)),
                focal=crop | dict(count=10, size=96, area=(0.05, 0.3)),
            ),
            masks={'anchor~drop': dict(mask='random', share=0.15, mode='drop')},
            towers=dict(image=dict(tower='vit', variant='S/16', native_size=224, layerscale=None, drop_path=0.0)),
            heads=dict(projector=dict(head='mlp', out=256, hidden=2_048, layers=3, activation='gelu', batch_norm=True)),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/projector'],
                    rule='ema',
                    momentum=dict(rule='linear', start=0.996, end=1.0, steps=SCHEDULED),
                )
            ),
            terms=[
                dict(
                    term='msn',
                    of=['student/image/anchor~drop/cls>projector', 'student/image/focal/cls>projector'],
                    target='teacher/image/target/cls>projector',
                    prototypes=1_024,
                    temperature=0.1,
                    sharpening=0.25,
                    me_max=1.0,
                    iterations=3,
                )
            ],
            optim=dict(
                lr=LR,
                schedule=dict(
                    rule='cosine', start=1.0, end=1e-6 / LR, warmup=15 * EPOCH, warmup_start=0.2, steps=SCHEDULED
                ),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4, steps=SCHEDULED),
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[dict(match='terms/msn/prototypes', wd_scale=0.0, clip_group='prototypes')],
            ),
            export=dict(network='teacher', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
