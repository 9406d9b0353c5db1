"""DINOv3 (arXiv 2508.10104) with a ViT-B/16: DINO, iBOT and KoLeo with constant schedules, then Gram anchoring.

    medjax train --config dinov3_vitb16 --data DATA --workdir RUN

The first stage is self-distillation as in DINOv2, with rotary positions and registers. In long runs its patches grow
alike. So from step 200,000 on, the similarities between the patches of a crop are kept near those of an earlier
teacher, `gram`, which sees the same crop at 512 px. It is refreshed three times, 2,000 steps apart, and then stays.
Before that step the term has weight 0, and its teacher sees crops of 32 px, which cost next to nothing. To lengthen the
first stage, change total_steps and `at` of both entries of `stages`.

Certain (code, dinov3_vit7b16_pretrain.yaml and dinov3_vit7b16_gram_anchor.yaml of facebookresearch/dinov3): 2 crops of
256 px and 8 of 112 px, no flips; block masks; a head for DINO and one for iBOT, Sinkhorn; KoLeo; 4 registers, rotary
positions that are rescaled by up to 2 in training; constant rate, weight decay .04 and momentum .994 after a warm-up of
a tenth; AdamW with b2 .99, clipping at 30, layer-wise decay .98, a fifth of the rate for the patch embedding. In the
second stage: similarities of unit patches, masked ones and negative values included; the teacher's patches resized by
bicubic interpolation without antialiasing; no colours or blur for `gram`; three refreshes; rate .6 times the first one,
momentum .999; weight 2, and half the weight of local crops, both reached within a two-hundredth of the stage.
Certain of another file (vitl_im1k_lin834.yaml): 65,536 prototypes in both heads, batch 2,048.
Ours: the ViT-B/16, which the original distils from a 7B; all lengths are a fifth (200,000 and 40,000 steps, refreshed
every 2,000); no drop path; exposure and contrast of radiographs in place of colours.
Different: prototypes are unit vectors with gains, in the original plain vectors; one norm for the CLS tokens of global
and local crops; places are rescaled once a step and not in each block; masks have exact counts.

Users report little gain from Gram anchoring with small towers and short runs, because there the patches do not decay.
Compare early and late exports by the probe `segmentation` before you pay for the second stage; with
total_steps=200_000 and stages=[] there is none.

Cost: .6 TFLOP an image, 1.1 in the second stage, 340 EFLOP in all: 320 hours of one H100 at 30 % of its peak.
Published: ADE20k, linear, 51.8 for the distilled ViT-B (model card). Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 2_048
FIRST = 200_000  # steps of the first stage
SECOND = 40_000
REFRESH = 2_000  # FIRST is a multiple, so that the second stage begins with a fresh teacher
WARMUP = FIRST // 10
LR = 5e-5 * 4 * (BATCH / 1_024) ** 0.5
GLOBAL_PAIRS, LOCAL_PAIRS = 2 / 18, 16 / 18  # shares of the pairs of a student's crop and a teacher's


def get_config() -> ConfigDict:
    crop = dict(view='crop', part='images', count=2, aspect=(3 / 4, 4 / 3), flip=0.0, photometric='radiograph')
    temperature = dict(rule='linear', start=0.04, end=0.07, steps=WARMUP)
    distilled = dict(centring='sinkhorn', teacher_temperature=temperature)

    def soon(start: float, end: float) -> dict:
        """Half a cosine at the beginning of the second stage."""
        return dict(rule='cosine', start=start, end=end, steps=SECOND // 200)

    return ConfigDict(
        dict(
            total_steps=FIRST + SECOND,
            batch_size=BATCH,
            seed=0,
            rows_per_group=16,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views={
                'global': crop | dict(size=256, area=(0.32, 1.0), blur=(0.0, 0.9), sigma=(0.1, 2.0)),
                'local': crop | dict(count=8, size=112, area=(0.05, 0.32), blur=0.5, sigma=(0.1, 2.0)),
                'anchor': crop | dict(size=32, boxes='global', photometric=None),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(
                    tower='vit',
                    variant='B/16',
                    family='dinov3',
                    native_size=256,
                    registers=4,
                    rope_rescale=2.0,
                    drop_path=0.0,
                    unroll=12,
                )
            ),
            heads=dict(
                dino=dict(head='dino_head', prototypes=65_536, hidden=2_048, bottleneck=256),
                ibot=dict(head='dino_head', prototypes=65_536, hidden=2_048, bottleneck=256),
            ),
            teachers=dict(
                teacher=dict(of=['towers/image', 'heads/dino', 'heads/ibot'], rule='ema', momentum=0.994),
                gram=dict(of=['towers/image'], rule='refreshed', source='teacher', every=REFRESH),
            ),
            terms=[
                dict(
                    term='distill_cls',
                    name='dino_global',
                    student='student/image/global~block/cls>dino',
                    teacher='teacher/image/global/cls>dino',
                    weight=GLOBAL_PAIRS,
                    **distilled,
                ),
                dict(
                    term='distill_cls',
                    name='dino_local',
                    student='student/image/local/cls>dino',
                    teacher='teacher/image/global/cls>dino',
                    weight=LOCAL_PAIRS,
                    **distilled,
                ),
                dict(
                    term='distill_patch',
                    student='student/image/global~block/patches@block>ibot',
                    teacher='teacher/image/global/patches@block>ibot',
                    weight=1.0,
                    **distilled,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
                dict(
                    term='gram',
                    student='student/image/global~block/patches',
                    teacher='gram/image/anchor/patches',
                    weight=0.0,
                ),
            ],
            optim=dict(
                lr=LR,
                schedule=dict(rule='cosine', start=1.0, end=1.0, warmup=WARMUP, steps=WARMUP),
                weight_decay=0.04,
                b1=0.9,
                b2=0.99,
                clip=30.0,
                groups=[
                    dict(match='towers/image/*', layerwise=0.98, clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/ibot/*', clip_group='ibot'),
                    dict(match='towers/image/patch_embed/*', lr_scale=0.2),
                    dict(match='heads/*/prototypes/*', frozen_until=FIRST // 200),
                ],
            ),
            stages=[
                dict(
                    at=FIRST,
                    change={
                        'views.anchor.size': 512,
                        'terms.1.weight': soon(LOCAL_PAIRS, LOCAL_PAIRS / 2),
                        'terms.4.weight': soon(0.0, 2.0),
                        'optim.lr': 0.6 * LR,
                        'teachers.teacher.momentum': 0.999,
                    },
                ),
                dict(at=FIRST + 3 * REFRESH, change={'teachers.gram.every': 2 * (FIRST + SECOND)}),  # never again
            ],
            export=dict(network='teacher', towers=['image'], heads=['dino', 'ibot'], every=FIRST // 10),
            checkpoint=dict(every=REFRESH, keep=2),
            log=dict(every=50),
        )
    )
