"""Masked autoencoder with a ViT-B/16 (MAE, arXiv 2111.06377).

    medjax train --config mae_vitb16 --data DATA --workdir RUN

The encoder reads a quarter of the patches. A small decoder fills in the others, and the loss is the squared error of
their pixels, each patch normalised by its own mean and deviation. The decoder is not exported.

Certain (paper and code): mask ratio .75, normalised pixels, decoder of width 512, depth 8 and 16 heads, fixed
sine-cosine positions, Xavier start, crops of 20 to 100 % of the area, flips, AdamW with betas (.9, .95), weight decay
.05 on all matrices and tokens, batch 4,096, learning rate 1.5e-4 x batch / 256, warm-up over 40 of 800 epochs, then
half a cosine to 0, no clipping.
Ours: 250,000 steps, which are 800 epochs of ImageNet.

Published: ImageNet, 83.6 % after fine-tuning with 1,600 epochs. Not reproduced here.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 250_000, 4_096


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
                crop=dict(view='crop', part='images', size=224, area=(0.2, 1.0), flip=0.5, photometric=None),
            ),
            masks={'crop~random': dict(mask='random', share=0.75)},
            towers=dict(
                image=dict(tower='vit', variant='B/16', family='mae', positions='sincos', start='xavier'),
                decoder=dict(tower='decoder', reads=['image'], width=512, depth=8, heads=16),
            ),
            terms=[dict(term='pixels', of='student/decoder/crop~random/pixels')],
            optim=dict(
                lr=1.5e-4 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=STEPS // 20),
                weight_decay=0.05,
                b2=0.95,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
