"""The smallest run that has everything, for tests and for a first look at a new machine.

    medjax build phantom --records 64 --size 32 --out data/tiny
    medjax train --config tiny --data data/tiny --workdir runs/tiny

Cost: seconds for its 8 steps, after about half a minute of compilation on two CPU cores.
Expect all files of a run, and nothing learned.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=8,
            batch_size=8,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=1, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views={
                'global': dict(view='crop', part='cxr', count=2, size=32, area=(0.4, 1.0)),
                'local': dict(view='crop', part='cxr', count=2, size=16, area=(0.1, 0.4)),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5), min_patches=1)},
            towers=dict(image=dict(tower='vit', variant='Ti/8', width=32, depth=2, heads=2, drop_path=0.0)),
            heads=dict(dino=dict(head='dino_head', prototypes=64, hidden=64, bottleneck=16)),
            teachers=dict(teacher=dict(of=['towers/image', 'heads/dino'], rule='ema', momentum=0.99)),
            terms=[
                dict(
                    term='distill_cls',
                    student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>dino',
                    teacher='teacher/image/global/patches@block>dino',
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=2),
                weight_decay=0.04,
                clip=3.0,
                no_decay=[],
            ),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=4),
            checkpoint=dict(every=4, keep=2),
            log=dict(every=2),
        )
    )
