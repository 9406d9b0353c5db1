"""RAD-DINO (arXiv 2401.10815): DINOv2's ViT-B/14 continued on chest radiographs at 518 px, on a pod.

    medjax train --config rad_dino_vitb14 --data DATA --workdir RUN \\
        --config.init_from.path=dinov2_vitb14.safetensors

Build DATA with `medjax build … --size 777` or so: at most 1.5 times the size of the global crops. For a mixture write
`sources=dict(mimic=.4, nih=.6)` below and give `--data mimic=DATA1 --data nih=DATA2`.

Certain of RAD-DINO (model card and published files): the start is the public DINOv2 ViT-B/14 with new heads; crops of
518 px, which are 37 x 37 patches; 64 GPUs x 40 images = 2,560 a step; grey values on three channels with mean .5307 and
deviation .2583; about 840,000 to 880,000 images; one head with 65,536 prototypes for both losses (from the size of its
file).
From DINOv2 (arXiv 2304.07193), whose code RAD-DINO used; these settings of RAD-DINO were not found: areas of crops;
masks; losses and their weights; teacher temperature and momentum; weight decay; drop path .3; layer-wise decay .9;
clipping.
Ours: local crops of 196 px; exposure and contrast instead of colours; milder blur; no flips, because the heart is on
the left; the learning rate 2e-4 sqrt(2560 / 1024) / 2 = 1.6e-4 (another continued run reports collapse from 3.5e-4
on); 35,000 steps, which are 100 passes over 880,000 images; a tenth of them for warm-up. With rows_per_group=5, drop
path keeps 7 of 10 global crops and 28 of 40 local crops: exactly .3 are dropped. A batch has 512 groups, so that
data x fsdp may be up to 512 devices; the 40 images of each of 64 devices are 8 groups, which 2, 4 or 8 micro-batches
divide. All 12 blocks are unrolled, which spares a GPU the copies that a loop stacks; a TPU compiles faster with
`--config.towers.image.unroll=1`.

Cost: 2.5 TFLOP an image, 6.5 PFLOP a step: .34 s on 64 H100 at 30 % of their peak, 3.3 hours in all.
"""

from ml_collections import ConfigDict

STEPS = 35_000
EPOCH = 1_250  # steps: DINOv2's epoch
LR = 2e-4 * (2_560 / 1_024) ** 0.5 / 2


def get_config() -> ConfigDict:
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=STEPS * 30 // 100)
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=2_560,
            seed=0,
            rows_per_group=5,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=0.5307, std=0.2583),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views={
                'global': dict(
                    view='crop',
                    part='cxr',
                    count=2,
                    size=518,
                    area=(0.32, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.0,
                    blur=(0.0, 0.5),
                    sigma=(0.1, 1.0),
                    photometric='radiograph',
                ),
                'local': dict(
                    view='crop',
                    part='cxr',
                    count=8,
                    size=196,
                    area=(0.05, 0.32),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.0,
                    blur=0.25,
                    sigma=(0.1, 1.0),
                    photometric='radiograph',
                ),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(tower='vit', variant='B/14', native_size=518, layerscale=1e-5, drop_path=0.3, unroll=12),
            ),
            heads=dict(dino=dict(head='dino_head', prototypes=65_536, hidden=2_048, bottleneck=256)),
            teachers=dict(
                teacher=dict(
                    of=['towers/image', 'heads/dino'], rule='ema', momentum=dict(rule='cosine', start=0.994, end=1.0)
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
                schedule=dict(rule='cosine', start=1.0, end=1e-6 / LR, warmup=STEPS // 10),
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
            init_from=dict(path='dinov2_vitb14.safetensors'),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=2_500),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
