"""SimCLR (arXiv 2002.05709) with a ResNet-50: contrast of two crops of each image with all other crops of the batch.

    medjax train --config simclr --data DATA --workdir RUN

Certain (code, google-research/simclr): the loss, with all 2 N - 1 other crops as candidates; the projector, whose last
layer has a BatchNorm too; LARS without decay on biases and norms; the learning rate .3 x batch / 256; half a cosine to
0 after 10 epochs of warm-up.
Recalled from the paper, not read again: temperature .1; crops of 8 to 100 % of the area; colour jitter of strength 1;
blur for half of the crops; batch 4,096; weight decay 1e-6; 1,000 epochs of ImageNet.
Different: the learning rate acts after the momentum, in the original before it; the last BatchNorm has no scale.
Micro-batches are refused, because the BatchNorms of tower and head need the whole batch.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.
A batch of 256 needs a rate of .3, and loses a few points (the paper's figure 9, recalled).

Cost: .05 TFLOP an image, 64 EFLOP in all: 60 hours of one H100 at 30 % of its peak.
Published (recalled): ImageNet, linear evaluation 69.3 %. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 4_096
EPOCH = 313  # steps: 1,281,167 images of ImageNet
STEPS = 1_000 * EPOCH


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='images',
                    count=2,
                    size=224,
                    area=(0.08, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, solarise=0.0),
                ),
            ),
            towers=dict(image=dict(tower='resnet', variant='50', norm='batch')),
            heads=dict(
                projector=dict(head='mlp', out=128, hidden=2_048, bias=False, batch_norm=True, last_batch_norm=True)
            ),
            terms=[dict(term='nt_xent', of='student/image/crop/cls>projector', temperature=0.1, weight=2.0)],
            optim=dict(
                rule='lars',
                lr=0.3 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=10 * EPOCH),
                weight_decay=1e-6,
                b1=0.9,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
