"""A mixture: images with reports, images with labels, and images alone, in one run with contrast and DINOv2's terms.

    medjax build … --out PAIRED;  medjax build … --out LABELLED;  medjax build … --out BARE
    medjax tokenizer PAIRED --size 8000
    medjax train --config mixture --workdir RUN \\
        --data paired=PAIRED --data labelled=LABELLED --data bare=BARE --config.views.report.prompts=prompts.json

Every batch has 32 rows with a report, 16 rows with labels and 16 rows with neither (the weights below). A report is
read as it is. Labels become sentences by prompts.json (docs/learn_from_reports.md). Rows with neither take no part in
the contrast, which counts them (`term/pair_softmax/left_out`). All rows take part in the terms of DINOv2. Equal texts,
which prompts often give, are positives of each other. The contrast uses the student's two global crops without masks,
so the tower sees each of them twice. One image tower serves both kinds of terms.

This is no published recipe. All numbers are ours, and none was tuned. DINOv2's part is that of dinov2_vits14.py for a
small batch, with Sinkhorn instead of a centre.

Cost: .23 TFLOP a row, 14 TFLOP a step.
Measured: only that the loss of every term falls below its start value.
"""

from ml_collections import ConfigDict

STEPS = 20_000


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=STEPS * 30 // 100)
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=64,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=None, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(paired=0.5, labelled=0.25, bare=0.25))),
            views={
                'global': dict(
                    view='crop',
                    part='cxr',
                    count=2,
                    size=224,
                    area=(0.32, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    photometric='radiograph',
                ),
                'local': dict(
                    view='crop',
                    part='cxr',
                    count=6,
                    size=98,
                    area=(0.05, 0.32),
                    aspect=(3 / 4, 4 / 3),
                    photometric='radiograph',
                ),
                'report': dict(view='text', part='cxr', length=128, count=1, prompts=None, absent=0),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(tower='vit', variant='S/14', native_size=224, layerscale=1e-5),
                text=dict(tower='text', family='bert', variant='S', depth=6, vocabulary=8_000, context=128, pool='cls'),
            ),
            heads=dict(
                dino=dict(head='dino_head', prototypes=8_192, hidden=2_048, bottleneck=256),
                vi=dict(head='mlp', out=256, hidden=512),
                vt=dict(head='mlp', out=256, hidden=512),
            ),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino'], rule='ema', momentum=dict(rule='cosine', start=0.994, end=1.0)
                )
            ),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/global/cls>vi',
                    columns='student/text/report/cls>vt',
                    positives=['identity', 'text'],
                    temperature=dict(learned=0.07, low=0.01),
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
                lr=2e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=STEPS // 20),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4),
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip_group='image'),
                    dict(match='towers/text/*', clip_group='text'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=2_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
