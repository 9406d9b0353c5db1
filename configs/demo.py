"""The demo: self-supervised pretraining of a very small ViT, in minutes, on any data set.

    medjax build phantom --records 2000 --size 64 --out data/demo
    medjax train --config demo --data data/demo --workdir runs/demo

Channels, mean and deviation come from the data. The sizes come from the data too: crops of 64 and 32 px in patches of
16 px. Smaller images (MedMNIST has 28 px) give crops of their whole and half size, in patches of a quarter. Crops are
flipped at random. Set `flip` to 0 in both views if left and right matter.

Cost: 3:52 minutes for `make demo` in a fresh clone on two idle CPU cores, before probes tried 45 strengths and gave
BCa intervals; 11:15 minutes since then, beside other work. This includes installation, compilation and the four
commands.
Expect a page to look at, not an encoder to use. Measured after 300 steps, mean AUROC on the 421 test phantoms: kNN .522
[.488, .554] and linear .542 [.512, .570]; random init .501 and .542; raw pixels .560 and .559. Other machines gave .533
and .525, .544 and .544 with an earlier linear probe.
On the 3,882 radiographs of a MedMNIST subset, 400 steps give linear .941; random init .912; raw pixels .926
(BUILD_NOTES.md).
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(data: Any = None) -> ConfigDict:
    side = 64 if data is None else data.size
    patch = max(min(side, 64) // 4, 2)
    large, small = 4 * patch, 2 * patch  # 16 and 4 tokens: in a few minutes, more images help more than more tokens
    photometric = dict(set='radiograph', brightness=0.3, contrast=0.6, gamma=0.6, share=1.0)
    teacher_temperature = 0.015
    return ConfigDict(
        dict(
            total_steps=300,
            batch_size=64,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=None, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views={
                'global': dict(
                    view='crop',
                    part='images',
                    count=2,
                    size=large,
                    area=(0.3, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.0,
                    photometric=photometric,
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=4,
                    size=small,
                    area=(0.2, 0.7),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.0,
                    photometric=photometric,
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(
                    tower='vit', variant=f'Ti/{patch}', width=192, depth=4, heads=3, native_size=large, layerscale=1.0
                )
            ),
            heads=dict(
                dino=dict(head='dino_head', prototypes=1_024, hidden=384, bottleneck=96),
                ibot=dict(head='dino_head', prototypes=1_024, hidden=384, bottleneck=96),
            ),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino', 'heads/ibot'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=0.99, end=1.0),
                )
            ),
            terms=[
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
                    student='student/image/global~block/patches@block>ibot',
                    teacher='teacher/image/global/patches@block>ibot',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=0.3,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=25),
                weight_decay=dict(rule='cosine', start=0.04, end=0.2),
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/ibot/*', clip_group='ibot'),
                ],
            ),
            export=dict(network='teacher', towers=['image'], heads=['dino', 'ibot'], every=100),
            checkpoint=dict(every=100, keep=2),
            log=dict(every=10),
        )
    )
