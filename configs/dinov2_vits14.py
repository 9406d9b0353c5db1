"""DINOv2 (arXiv 2304.07193) with a ViT-S/14: the recipe for ImageNet-1k (ssl_default_config and vitl16_short).

    medjax train --config dinov2_vits14 --data DATA --workdir RUN
    … --config.micro_batches=8             the same gradient in less memory

From the original: 125,000 steps with 2,048 images; 2 crops of 224 px and 8 crops of 98 px; the colours, flips and blur
with which the published models were really trained; block masks; one head with 65,536 prototypes for DINO and iBOT;
centring by a running mean; learning rate .004 sqrt(2048 / 1024) with layer-wise decay .9; all schedules.

Different from the original:
- The tower is a ViT-S/14. The original trains a ViT-L/16, and its public ViT-S is distilled from a ViT-g.
- There is no drop path, because so small a tower does not need it.
- Local crops have 98 px, a multiple of 14, as in the original's long recipe.
- Masks have exact counts.
- KoLeo compares the whole batch. The original compares the rows of one GPU; `within='group'` with rows_per_group=64
  does the same.
- Mean and deviation are those of the data set, not of ImageNet.

All 12 blocks are unrolled, which spares a GPU the copies that a loop stacks. A CPU compiles faster with
`--config.towers.image.unroll=1`, and needs less memory.
Flips and colours are made for photographs. For radiographs look at rad_dino_vitb14.py first.

Cost: .16 TFLOP an image, 42 EFLOP in all: 40 hours of one H100 at 30 % of its peak.
"""

from ml_collections import ConfigDict

STEPS = 125_000
EPOCH = 1_250  # steps: the original's epoch, for a data set of any size
LR = 0.004 * (2_048 / 1_024) ** 0.5


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=30 * EPOCH)
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=2_048,
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
                    area=(0.32, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=(0.0, 0.9),
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=(0.0, 0.2)),
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=8,
                    size=98,
                    area=(0.05, 0.32),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric='dinov2',
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(tower='vit', variant='S/14', native_size=224, layerscale=1e-5, drop_path=0.0, unroll=12)
            ),
            heads=dict(dino=dict(head='dino_head', prototypes=65_536, hidden=2_048, bottleneck=256)),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino'], rule='ema', momentum=dict(rule='cosine', start=0.992, end=1.0)
                )
            ),
            terms=[
                dict(
                    term='distill_cls',
                    student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                    centring='centre',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>dino',
                    teacher='teacher/image/global/patches@block>dino',
                    centring='centre',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=LR,
                schedule=dict(rule='cosine', start=1.0, end=1e-6 / LR, warmup=10 * EPOCH),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4),
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', layerwise=0.9, clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='towers/image/patch_embed/*', lr_scale=0.2),
                    dict(match='heads/*/prototypes/*', frozen_until=EPOCH),
                ],
            ),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=12_500),
            checkpoint=dict(every=3 * EPOCH, keep=3),
            log=dict(every=50),
        )
    )
