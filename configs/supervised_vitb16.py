"""A ViT-B/16 that learns the labels of the data: the fine-tuning of masked autoencoders, and a supervised baseline.

    medjax train --config supervised_vitb16 --data DATA --workdir RUN --config.init_from.path=MAE_RUN/exports/250000
    medjax probe --run RUN --data DATA                            # the trained classifier too

The tower is that of `mae_vitb16`, so an export of that recipe or public MAE weights fit. From new weights a ViT needs
far more images than most labelled sets have; compare with `supervised_resnet50` then. Labels, policy and options of the
term are as there: docs/learn_from_labels.md.

Recalled, not read again: MAE (arXiv 2111.06377) fine-tunes a ViT-B with AdamW at 5e-4 x batch / 256, layer-wise decay
.65, weight decay .05, drop path .1 and a warm-up over 5 of 100 epochs; Medical MAE (2210.12843) fine-tunes for 75
epochs at 224 px with layer-wise decay .55 and drop path .2.
Ours: drop path .125, which is one row of each group of 8; the batch of 256, crops of 50 to 100 % of the area, changes
of exposure, and 25,000 steps, which are 75 epochs of the 86,524 training images of NIH ChestX-ray14. Mean and deviation
are those of the data, as in `medical_mae`.
Not here: mixup, CutMix, random erasing, and the mean of patches in place of the CLS token.

Cost: .1 TFLOP an image, .7 EFLOP in all: 40 minutes of one H100 at 30 % of its peak.
Expect (published for NIH after MAE on radiographs, recalled): mean AUROC .82 to .83. Not run at this size.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 25_000, 256


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='cxr',
                    count=1,
                    size=224,
                    area=(0.5, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
            ),
            towers=dict(
                image=dict(
                    tower='vit', variant='B/16', family='mae', positions='sincos', start='xavier', drop_path=0.125
                )
            ),
            heads=dict(classifier=dict(head='linear', bias=True)),  # the term knows the number of outputs
            terms=[
                dict(
                    term='supervised',
                    of='student/image/crop/cls>classifier',
                    policy=dict(uncertain='ignore', blank='ignore', conflicting='ignore'),
                ),
            ],
            optim=dict(
                lr=5e-4 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.002, warmup=STEPS // 20),
                weight_decay=0.05,
                groups=[dict(match='towers/image/*', layerwise=0.65)],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=2_500),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
