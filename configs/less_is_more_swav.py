"""SwAV (arXiv 2006.09882) with a ResNet-50 on CT slices without the similar ones (Less is More, arXiv 2410.14524).

    medjax build dicom DIR --out DATA
    medjax reduce DATA --out LESS --by hash
    medjax train --config less_is_more_swav --data LESS --workdir RUN

The paper's point is the second line: slices whose difference hash is within 6 bits of a kept slice of the same volume
are left out, and encoders get better. `medjax reduce` does that by default.

Certain (code, facebookresearch/swav, as arrays in a test): the loss with Sinkhorn for each global crop, the multi-crop
head with one BatchNorm over all crops, the queue, unit prototypes that are frozen at first without moments, LARS on all
parameters with its decay inside.
Certain (Less is More, code): 500 prototypes; 2 crops of 224 px (90 to 100 % of the area) and 6 crops of 96 px (10 to
33 %); temperature .1, epsilon .05, 3 iterations; LARS with rate .15; batch 128; 800 epochs; slices without a window.
Recalled, not read again: SwAV's head of 2,048 hidden and 128 outputs; weight decay 1e-6; 10 epochs of warm-up from
half the rate, then half a cosine to a thousandth; colours of strength .8 and blur for half of the crops; prototypes
frozen in the first epoch; a queue of 3,840 rows from epoch 15 on.
Ours: an epoch of 780 steps, which are 100,000 reduced slices; exposure and contrast in place of colours; the queue,
which Less is More may not have (queue=0 leaves it out).
Micro-batches are refused, because the BatchNorms of tower and head need the whole batch.

Cost: .08 TFLOP an image, 6 EFLOP in all: 6 hours of one H100 at 30 % of its peak.
Published (abstract): against all slices, AUROC .78 to .83 on COVID CT, .97 to .98 on OrganSMNIST, .73 to .83 on
haemorrhage, in a ninth of the time at best. Not reproduced here.
"""

from ml_collections import ConfigDict

EPOCH = 780  # steps: 100,000 slices
STEPS = 800 * EPOCH


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=128,
            seed=0,
            rows_per_group=1,
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
                    area=(0.9, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric='radiograph',
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=6,
                    size=96,
                    area=(0.1, 0.33),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric='radiograph',
                ),
            },
            towers=dict(image=dict(tower='resnet', variant='50', norm='batch')),
            heads=dict(projector=dict(head='mlp', out=128, hidden=2_048, batch_norm=True, together=True)),
            terms=[
                dict(
                    term='swav',
                    of='student/image/global/cls>projector',
                    others='student/image/local/cls>projector',
                    prototypes=500,
                    temperature=0.1,
                    epsilon=0.05,
                    iterations=3,
                    queue=3_840,
                    queue_from=15 * EPOCH,
                    frozen=EPOCH,
                )
            ],
            optim=dict(
                rule='lars',
                lr=0.15,
                schedule=dict(rule='cosine', start=1.0, end=1e-3, warmup=10 * EPOCH, warmup_start=0.5),
                weight_decay=1e-6,
                b1=0.9,
                no_decay=[],
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
