"""Supervised learning beside self-distillation, on one ViT-S/14: labels for some patients, DINOv2's terms for all.

    medjax train --config supervised_beside_dinov2 --data DATA --workdir RUN
    medjax train --config supervised_beside_dinov2 --data DATA --workdir RUN --config.terms.0.share=.01
    medjax probe --run RUN --data DATA                            # the trained classifier too

`share` is the share of the patients whose labels are used; all images take part in the terms of DINOv2. The classifier
reads the CLS token of the student's global crops, half of which are under a mask, so it costs no further pass. The
teacher, a running average of tower and classifier, is exported. To compare: `supervised_vitb16` and
`supervised_resnet50` with the same `share` learn from these labels alone, and `medjax probe` of this recipe with
--config.terms.0.weight=0 shows what no label adds. Labels, policy and options of the term: docs/learn_from_labels.md.

This is no published recipe. All numbers are ours, and none was tuned. DINOv2's part is that of dinov2_vits14.py for a
small batch, with Sinkhorn instead of a centre, and the changes of grey values are those of radiographs.

Cost: .16 TFLOP an image, 1.6 EFLOP in all: 90 minutes of one H100 at 30 % of its peak. Not run at this size.
"""

from ml_collections import ConfigDict

STEPS = 40_000


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=STEPS * 30 // 100)
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=256,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=None, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views={
                'global': dict(
                    view='crop',
                    part='cxr',
                    count=2,
                    size=224,
                    area=(0.32, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
                'local': dict(
                    view='crop',
                    part='cxr',
                    count=8,
                    size=98,
                    area=(0.05, 0.32),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(image=dict(tower='vit', variant='S/14', native_size=224, layerscale=1e-5)),
            heads=dict(
                classifier=dict(head='linear', bias=True),  # the term knows the number of outputs
                dino=dict(head='dino_head', prototypes=8_192, hidden=2_048, bottleneck=256),
            ),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino', 'heads/classifier'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=0.994, end=1.0),
                )
            ),
            terms=[
                dict(
                    term='supervised',
                    of='student/image/global~block/cls>classifier',
                    policy=dict(uncertain='ignore', blank='ignore', conflicting='ignore'),
                    share=1.0,
                    weight=1.0,
                ),
                dict(
                    term='distill_cls',
                    student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>dino',
                    teacher='teacher/image/global/patches@block>dino',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=4e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=STEPS // 20),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4),
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', layerwise=0.9, clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/classifier/*', clip_group='classifier'),
                ],
            ),
            export=dict(network='teacher', towers=['image'], heads=['classifier'], every=4_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
