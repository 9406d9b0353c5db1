"""DINOv2's ViT-B/14 continued on radiographs, CT and MRI together, with DINOv2's terms and its layer-wise decay.

    medjax build dicom CT_FOLDER --out CT_ALL
    medjax reduce CT_ALL --out CT --by hash          # the same for MRI: neighbouring slices are nearly equal
    medjax train --config dinov2_radiology:gpu --workdir RUN --config.init_from.path=dinov2-base/ \\
        --data xray=XRAY --data ct=CT --data mri=MRI

Behind the colon stands the preset: gpu (one GPU, batches of 256), node (8 GPUs, 1,024), pod (64 GPUs, 2,560). It gives
batch, length, learning rate, momentum, prototypes and micro-batches; `medjax/presets.py` has the reason of each number.
`--config.towers.image=dinov2-small/` takes another size of DINOv2. Each row of a batch is drawn from one of three
sources. For other sources: --config.data.images.sources='dict(xray=.5, ct=.5)'.

Why: "DINOv2 on radiology" (arXiv 2312.02366) probes the public DINOv2 on radiographs, CT and MRI in more than 200
evaluations, and trains it no further (its abstract and its code, MohammedSB/DINOv2ForRadiology). This recipe takes the
same encoder one step on, with the same kinds of images. `medjax probe` compares both, and has the study's protocols:

    medjax probe --run RUN --data DATA --encoder dinov2-base/ --probes knn,linear,few_shot

Certain (arXiv 2304.07193 and its code): the terms and their weights, Sinkhorn, teacher temperature .04 to .07, weight
decay .04 to .4, clipping by network at 3, areas of crops, layer-wise decay .9 and a fifth of the rate for the patch
embedding, no decay of biases and norms, one head for both losses with a last layer that is frozen at first.
Ours: to continue; half of the rows radiographs, a quarter CT and a quarter MRI; drop path .25, where DINOv2 has .3 or
.4; no flips, because heart and liver have a side; exposure and contrast instead of colours, milder blur; mean and
deviation of your data.

Cost: .46 TFLOP an image. At 30 % of the peak of H100s 1.1 hours on one GPU, 1.1 on a node, 40 minutes on a pod. Not run
at this size. Expect `similarity/start` in metrics.jsonl to fall slowly from 1; it compares the features with those of
the start. Where the linear probe falls below the start on one kind of images, give that source more weight.
"""

from ml_collections import ConfigDict

from medjax import presets


def get_config(preset: str = 'gpu') -> ConfigDict:
    size = presets.find(preset)
    teacher_temperature = dict(rule='linear', start=0.04, end=0.07, steps=size.steps * 30 // 100)
    crop = dict(view='crop', part='images', aspect=(3 / 4, 4 / 3), flip=0.0, photometric='radiograph')
    return ConfigDict(
        dict(
            total_steps=size.steps,
            batch_size=size.batch_size,
            seed=0,
            rows_per_group=8,  # 16 global crops of a group keep 12 under drop path .25
            micro_batches=size.micro_batches,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(xray=0.5, ct=0.25, mri=0.25))),
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
                teacher=dict(
                    of=['towers/image', 'heads/dino'],
                    rule='ema',
                    momentum=dict(rule='cosine', start=size.momentum(), end=1.0),
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
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=size.steps // 10),
                weight_decay=dict(rule='cosine', start=0.04, end=0.4),
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[
                    dict(match='towers/image/*', layerwise=0.9, clip_group='image'),
                    dict(match='towers/image/patch_embed/*', lr_scale=0.2),
                    dict(match='heads/dino/*', clip_group='dino'),
                    dict(match='heads/*/prototypes/*', frozen_until=size.steps // 20),
                ],
            ),
            init_from=dict(path='dinov2-base/', take=['towers/image=towers/image']),
            export=dict(network='teacher', towers=['image'], heads=['dino'], every=size.steps // 10),
            checkpoint=dict(every=size.steps // 20, keep=2),
            log=dict(every=50),
        )
    )
