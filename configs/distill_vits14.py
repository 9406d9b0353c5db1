"""A ViT-S/14 that learns the features of a public ViT-B/14: RAD-DINO (arXiv 2401.10815) or DINOv2 (2304.07193).

    medjax train --config distill_vits14:rad-dino.safetensors --data DATA --workdir RUN
    medjax train --config distill_vits14:dinov2_vitb14.safetensors --data DATA --workdir RUN \\
        --config.image.mean='[.485, .456, .406]' --config.image.std='[.229, .224, .225]'

The text behind the colon is the path of the teacher's weights. The teacher `public` is frozen: it has no gradient and
no moments, and it is not exported. The student predicts its CLS token and its patch tokens, each through a linear head
(feature distillation, arXiv 1412.6550). The targets are normalised over their 768 numbers, as in data2vec (2202.03555).

Certain (published files): the teachers are ViT-B/14 with positions for 518 px; RAD-DINO sees grey values on three
channels with mean .5307 and deviation .2583, DINOv2 has the mean and deviation of ImageNet. Keep those of the teacher.
Different from the original: the public ViT-S of DINOv2 is distilled from a ViT-g with DINOv2's own losses.
Ours: everything else. Crops have 224 px; --config.views.crop.size=518 shows the teacher what it was trained on, at six
times the cost.

A student of another kind is another entry `image` in `towers`; for a ResNet-50 see `distill_resnet50`. A teacher of
another width needs heads with that `out`.

Cost: .08 TFLOP an image, 4 EFLOP in all: 4 hours of one H100 at 30 % of its peak. Not run at this size.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 50_000, 1_024


def get_config(weights: str = 'rad-dino.safetensors') -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=0.5307, std=0.2583),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(view='crop', part='cxr', size=224, area=(0.25, 1.0), flip=0.0, photometric='radiograph'),
            ),
            towers=dict(
                image=dict(tower='vit', variant='S/14', native_size=224, layerscale=1e-5),
                large=dict(tower='vit', variant='B/14', native_size=518),
            ),
            heads=dict(
                cls=dict(head='linear', out=768, bias=True),
                patches=dict(head='linear', out=768, bias=True),
            ),
            teachers=dict(
                public=dict(
                    rule='frozen',
                    of=['towers/large'],
                    init_from=dict(path=weights, take=['towers/large=towers/image']),
                )
            ),
            terms=[
                dict(
                    term='regress',
                    name='cls',
                    student='student/image/crop/cls>cls',
                    teacher='public/large/crop/cls',
                    weight=1.0,
                ),
                dict(
                    term='regress',
                    name='patches',
                    student='student/image/crop/patches>patches',
                    teacher='public/large/crop/patches',
                    weight=1.0,
                ),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=1e-3, warmup=STEPS // 20),
                weight_decay=0.05,
                clip=3.0,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=5_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
