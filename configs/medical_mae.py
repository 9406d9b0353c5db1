"""Masked autoencoder for chest radiographs with a ViT-S/16 (Medical MAE, arXiv 2210.12843).

    medjax train --config medical_mae --data DATA --workdir RUN

It differs from `mae_vitb16` in what suits radiographs: nine tenths of the patches are masked, because neighbouring
patches of a radiograph say much about each other; crops keep at least half of the area; mean and deviation are those
of the data; and the decoder is small.

Certain (paper and code): mask ratio .9, crops of 50 to 100 % of the area, flips, own mean and deviation, decoder of
width 512 and depth 2, batch 2,048, learning rate 1.5e-4 x batch / 256, weight decay .05, betas (.9, .95), warm-up over
40 of 800 epochs, 266,340 images of NIH, CheXpert and others.
Ours: 104,000 steps, which are 800 epochs of these images. A mirrored radiograph has its heart on the wrong side; set
`flip` to 0 if that matters.

Published: mean AUROC on NIH after fine-tuning, 82.3 % (ViT-S). Not reproduced here.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 104_000, 2_048


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
                crop=dict(view='crop', part='images', size=224, area=(0.5, 1.0), flip=0.5, photometric=None),
            ),
            masks={'crop~random': dict(mask='random', share=0.9)},
            towers=dict(
                image=dict(tower='vit', variant='S/16', family='mae', positions='sincos', start='xavier'),
                decoder=dict(tower='decoder', reads=['image'], width=512, depth=2, heads=16),
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
