"""DINOv2's ViT-B/14 continued on radiographs: 224 px for most of the run, 518 px for its last fifth.

    medjax train --config continue_resolution:gpu --data DATA --workdir RUN --config.init_from.path=dinov2-base/

Behind the colon stands the preset: gpu (one GPU, batches of 256), node (8 GPUs, 1,024), pod (64 GPUs, 2,560). It gives
batch, length, learning rate, momentum, prototypes and micro-batches; `medjax/presets.py` has the reason of each number.
`--config.towers.image=dinov2-small/` takes another size of DINOv2. With another `total_steps`, move the border too:
`--config.stages.0.at=STEP`.

Why: nodules and catheters need high resolution, and RAD-DINO (arXiv 2401.10815) trains at 518 px throughout. DINOv2 was
trained at low resolution and then for 10,000 steps at 518 px: nearly the gain of a whole run at high resolution, its
paper says, for a third of the cost. Build DATA with `medjax build … --size 777` or so, for crops of 518 px.

Stage 1: crops of 224 and 98 px. Stage 2: crops of 518 and 196 px, all schedules anew and compressed into the stage
(learning rate, weight decay, momentum, teacher temperature), and a lower rate.

Certain (arXiv 2304.07193 and its code): two resolutions; 518 px at the end, with schedules compressed and a lower rate;
the terms and their weights, Sinkhorn, teacher temperature .04 to .07, weight decay .04 to .4, clipping by network at 3,
areas of crops, no decay of biases and norms, one head for both losses with a last layer that is frozen at first.
Ours: a fifth of the run at 518 px, at half the rate (DINOv2's own share is 2 %, after far more steps; its rate is not
known); local crops of 196 px; drop path .25, where DINOv2 has .3 or .4; radiographs as in `rad_dino_vitb14`: no flips,
exposure and contrast instead of colours, milder blur; mean and deviation of your data.

Cost: .46 TFLOP an image at 224 px, 2.6 at 518 px. At 30 % of the peak of H100s 2.2 hours on one GPU, 2.2 on a
node, 1.2 on a pod. Not run at this size. Expect the losses to jump at the border and to fall again.
"""

from ml_collections import ConfigDict

from medjax import presets


def get_config(preset: str = 'gpu') -> ConfigDict:
    size = presets.find(preset)
    border = size.steps * 4 // 5
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=border * 30 // 100)
    temperature_518 = dict(rule='linear', start=0.04, end=0.07, steps=(size.steps - border) * 30 // 100)
    momentum = dict(rule='cosine', start=size.momentum(), end=1.0)
    weight_decay = dict(rule='cosine', start=0.04, end=0.4)
    schedule = dict(rule='cosine', start=1.0, end=0.01)
    crop = dict(view='crop', part='cxr', aspect=(3 / 4, 4 / 3), flip=0.0, photometric='radiograph')
    return ConfigDict(
        dict(
            total_steps=size.steps,
            batch_size=size.batch_size,
            seed=0,
            rows_per_group=8,  # 16 global crops of a group keep 12 under drop path .25
            micro_batches=size.micro_batches,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views={
                'global': crop | dict(count=2, size=224, area=(0.32, 1.0), blur=(0.0, 0.5), sigma=(0.1, 1.0)),
                'local': crop | dict(count=8, size=98, area=(0.05, 0.32), blur=0.25, sigma=(0.1, 1.0)),
            },
            masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
            towers=dict(
                image=dict(tower='vit', variant='B/14', native_size=518, layerscale=1e-5, drop_path=0.25, unroll=12),
            ),
            heads=dict(dino=dict(head='dino_head', prototypes=size.prototypes, hidden=2_048, bottleneck=256)),
            teachers=dict(
                teacher=dict(of=['towers/image', 'heads/dino'], rule='ema', momentum=momentum | dict(steps=border))
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
                    student='student/image/global~block/patches@block>dino',
                    teacher='teacher/image/global/patches@block>dino',
                    centring='sinkhorn',
                    teacher_temperature=teacher_temperature,
                    weight=1.0,
                ),
                dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
            ],
            optim=dict(
                lr=size.lr,
                schedule=schedule | dict(warmup=border // 10, steps=border),
                weight_decay=weight_decay | dict(steps=border),
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', clip_group='image'),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/*/prototypes/*', frozen_until=border // 20),
                ],
            ),
            stages=[
                dict(
                    at=border,
                    change={
                        'views.global.size': 518,
                        'views.local.size': 196,
                        'micro_batches': size.micro_batches_518,
                        'optim.lr': size.lr / 2,
                        'optim.schedule': schedule | dict(warmup=(size.steps - border) // 10),
                        'optim.weight_decay': weight_decay,
                        'teachers.teacher.momentum': momentum,
                        'terms.0.teacher_temperature': temperature_518,
                        'terms.1.teacher_temperature': temperature_518,
                    },
                )
            ],
            init_from=dict(path='dinov2-base/', take=['towers/image=towers/image']),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=size.steps // 10),
            checkpoint=dict(every=size.steps // 20, keep=2),
            log=dict(every=50),
        )
    )
