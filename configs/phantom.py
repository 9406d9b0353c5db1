"""Learning, shown: a small ViT on thorax phantoms, against random init and raw pixels (three seeds).

medjax build phantom --records 8000 --size 64 --out data/phantom
medjax train --config configs/phantom.py --data data/phantom --workdir runs/phantom [--config.seed=1]
medjax probe --run runs/phantom --data data/phantom
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    students = ['student/image/global~block/cls>dino', 'student/image/local/cls>dino']
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=600)
    return ConfigDict(
        dict(
            total_steps=2_000,
            batch_size=64,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=1, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views={
                'global': dict(
                    view='crop',
                    part='cxr',
                    count=2,
                    size=64,
                    area=(0.4, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.0,
                    blur=0.2,
                    sigma=(0.1, 1.0),
                    photometric='radiograph',
                ),
                'local': dict(
                    view='crop',
                    part='cxr',
                    count=4,
                    size=32,
                    area=(0.1, 0.4),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.0,
                    blur=0.2,
                    sigma=(0.1, 1.0),
                    photometric='radiograph',
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(tower='vit', variant='Ti/8', width=192, depth=4, heads=3, native_size=64, layerscale=0.1)
            ),
            heads=dict(
                dino=dict(head='dino_head', prototypes=1_024, hidden=512, bottleneck=128),
                ibot=dict(head='dino_head', prototypes=1_024, hidden=512, bottleneck=128),
            ),
            copies=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino', 'heads/ibot'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=0.99, end=1.0),
                )
            ),
            terms=[
                dict(
                    term='distill_cls',
                    student=students,
                    teacher='teacher/image/global/cls>dino',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>ibot',
                    teacher='teacher/image/global/patches@block>ibot',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=200),
                weight_decay=dict(rule='cosine', start=0.04, end=0.2),
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip='image'),
                    dict(match='heads/dino/*', clip='dino'),
                    dict(match='heads/ibot/*', clip='ibot'),
                    dict(match='towers/image/patch_embed/*', rate=0.2),
                    dict(match='*/bias', decay=0.0),
                    dict(match='*/scale', decay=0.0),
                    dict(match='*/gamma?', decay=0.0),
                    dict(match='heads/*/prototypes/*', frozen_until=50),
                ],
            ),
            export=dict(copy='teacher', towers=['image'], heads=['dino', 'ibot'], every=500),
            checkpoint=dict(every=500, keep=2),
            log=dict(every=20),
        )
    )
