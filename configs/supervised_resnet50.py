"""A ResNet-50 that learns the labels of the data: the supervised baseline of chest radiographs.

    medjax train --config supervised_resnet50 --data DATA --workdir RUN --config.init_from.path=resnet50.safetensors
    medjax probe --run RUN --data DATA                            # the trained classifier too

It predicts all labels of the data, each by itself (multi-label). `labels` in the term chooses some. Uncertain, blank
and conflicting labels do not count. In CheXpert and MIMIC-CXR, blank means "not mentioned", and most papers count it as
negative: --config.terms.0.policy.blank=negative. Uncertain ones may count as positive (U-Ones, arXiv 1901.07031):
--config.terms.0.policy.uncertain=positive. docs/learn_from_labels.md explains all options of the term.

This is the kind of baseline that papers compare with, and no copy of one paper.
Recalled, not read again: CheXNet (arXiv 1711.05225) trains a DenseNet-121 of ImageNet at 224 px with flips and Adam at
1e-3; CheXpert (1901.07031) a DenseNet-121 at 320 px with Adam at 1e-4 for 3 epochs; both have batches of 16.
Ours: the ResNet-50, the batch of 128, crops of 70 to 100 % of the area, changes of exposure, the cosine, the weight
decay and the number of steps, which are 30 epochs of the 86,524 training images of NIH ChestX-ray14.
`init_from` is left out below, so that the recipe runs by itself. From new weights, optim.lr=1e-3 learns faster. CheXNet
flips images; set `flip` to 0 if left and right matter.

Cost: .05 TFLOP an image, .13 EFLOP in all: less than an hour of one H100.
Expect (published for NIH, recalled): mean AUROC about .80 to .82 on the official test split at this size. Not run at
this size. Measured small, at 64 px in 900 steps: .929 on paediatric radiographs, where raw pixels have .902
(docs/learn_from_labels.md).
"""

from ml_collections import ConfigDict

STEPS = 20_000


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=128,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),  # those of the public ResNet
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='cxr',
                    count=1,
                    size=320,
                    area=(0.7, 1.0),
                    aspect=(9 / 10, 10 / 9),
                    flip=0.5,
                    photometric='radiograph',
                ),
            ),
            towers=dict(image=dict(tower='resnet', variant='50', norm='batch')),
            heads=dict(classifier=dict(head='linear', bias=True)),  # the term knows the number of outputs
            terms=[
                dict(
                    term='supervised',
                    of='student/image/crop/cls>classifier',
                    policy=dict(uncertain='ignore', blank='ignore', conflicting='ignore'),
                ),
            ],
            optim=dict(
                lr=1e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=STEPS // 20),
                weight_decay=1e-4,
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=2_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
