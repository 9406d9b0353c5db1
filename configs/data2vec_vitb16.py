"""data2vec for images (arXiv 2202.03555) with a ViT-B/16: predict a teacher's features of masked patches.

    medjax train --config data2vec_vitb16 --data DATA --workdir RUN

The student reads a crop with 120 of 196 patches masked. At these patches a linear head predicts what the teacher, an
average of the student, gives for the whole crop: the mean of its last six blocks. There are no pairs of views.

Certain (README and code of facebookresearch/data2vec_vision, beit/): the targets are the patches after the last six
blocks, before the final norm, each standardised, then averaged, then standardised again; smooth L1 with beta 2 over
masked patches alone; block masks of 120 patches, in rectangles of 16 patches or more; a linear head; teacher momentum
.9998; batch 16 x 128, 800 epochs; learning rate .002, 10 epochs of warm-up from 1e-6, half a cosine to 1e-5; weight
decay .05; clipping at 3; LayerScale from 1e-4; crops of 8 to 100 % of the area, flips, colours of strength .4.
Recalled: no weight decay of position embeddings; betas (.9, .999).
Different: learned positions, in the original a bias of attention by relative position; no CLS token, which no loss of
the original reads; drop path .125 in all blocks, in the original from 0 to .25; no dropout of attention, in the
original .05; weights start without a rescaling by depth. Every mask has 120 patches, and some of the original have
fewer.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric=None. The output `cls` is the
mean of the patches, as the original is fine-tuned.

Cost: .13 TFLOP an image, 130 EFLOP in all: 122 hours of one H100 at 30 % of its peak.
Published: ImageNet, fine-tuned 84.2 % (recalled). Not reproduced here. What to expect: as in `ijepa_vitb16`, the loss
first falls, because the targets are alike, and rises when they begin to differ. Look at the rank of the features and at
fine-tuning; kNN on frozen features says little about this method.
"""

from ml_collections import ConfigDict

EPOCH = 625  # steps: 1,281,167 images of ImageNet
STEPS = 800 * EPOCH
LR = 2e-3


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=2_048,
            seed=0,
            rows_per_group=8,  # drop path leaves out one of 8 crops
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='images',
                    size=224,
                    area=(0.08, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric=dict(
                        set='dinov2', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0, jitter=1.0, grey=0.0
                    ),
                ),
            ),
            masks={
                'crop~block': dict(
                    mask='blocks', share=1.0, ratio=(120 / 196, 120 / 196), min_patches=16, max_patches=196
                )
            },
            towers=dict(
                image=dict(
                    tower='vit',
                    variant='B/16',
                    family='ijepa',
                    positions='learned',
                    native_size=224,
                    layerscale=1e-4,
                    drop_path=0.125,
                )
            ),
            heads=dict(predictor=dict(head='linear', out=768, bias=True)),
            teachers=dict(teacher=dict(of=['towers/image'], rule='ema', momentum=0.9998)),
            terms=[
                dict(
                    term='regress',
                    student='student/image/crop~block/patches@block>predictor',
                    teacher='teacher/image/crop/mean6/standardised_patches@block',
                    loss='smooth_l1',
                    beta=2.0,
                )
            ],
            optim=dict(
                lr=LR,
                schedule=dict(rule='cosine', start=1.0, end=1e-5 / LR, warmup=10 * EPOCH, warmup_start=1e-6 / LR),
                weight_decay=0.05,
                b1=0.9,
                b2=0.999,
                clip=3.0,
                groups=[dict(match='towers/image/pos_grid', wd_scale=0.0)],
            ),
            export=dict(network='student', towers=['image'], heads=[], every=20 * EPOCH),
            checkpoint=dict(every=4 * EPOCH, keep=2),
            log=dict(every=50),
        )
    )
