"""Masked autoencoder with a ResNet-50 (SparK, arXiv 2301.03580; on small sets of CT slices, arXiv 2308.06534).

    medjax train --config spark_resnet50 --data DATA --workdir RUN

Six of ten cells of 32 x 32 px are hidden from the encoder in every layer, and its batch norms count the other places
alone. A U-shaped decoder fills in the hidden cells from the maps of all four stages, and the loss is the squared error
of their pixels, each cell normalised by its own mean and deviation. The decoder is not exported.

For another ResNet: --config.towers.image.variant=101. For a ConvNeXt-T:

    --config.towers.image='dict(tower="convnext")' --config.towers.decoder.norm=layer --config.optim.b2=.999

Certain (arrays of the original code): the number of cells that stay (their share, rounded), the sparse layers, the
decoder, normalised pixels, LAMB with eps 1e-6 and clipping at 5, weight decay by a cosine on convolutions alone,
warm-up from .005 of the learning rate, then half a cosine to .001 of it.
Recalled: a mask of .6, the decoder's width 512, betas (.9, .95), weight decay .04 to .2, batch 4,096, learning rate
2e-4 x batch / 256, 1,600 epochs with 40 of warm-up, crops of 224 px with 67 to 100 % of the area, flips. The study on
CT slices names these settings of SparK as its own.
Ours: 500,000 steps, which are 1,600 epochs of ImageNet. All batch norms start at scale 1; those at the end of a block
start at 0 in timm. Batch norms need the whole batch, so micro-batches are refused.

Cost: 10 billion multiply-adds for the forward pass of an image, 4.1 of them in the encoder (counted by hand). The mask
saves none, because the convolutions run over whole maps.
Published (recalled): ImageNet, 80.6 % after fine-tuning; on CT slices it holds up best when the labelled set shrinks,
beside SwAV, MoCo v2 and BYOL. Not reproduced here.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 500_000, 4_096


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
                crop=dict(view='crop', part='images', size=224, area=(0.67, 1.0), flip=0.5, photometric=None),
            ),
            masks={'crop~random': dict(mask='random', mode='zero', share=0.6)},
            towers=dict(
                image=dict(tower='resnet', variant='50'),
                decoder=dict(tower='unet_decoder', reads=['image'], width=512),
            ),
            terms=[dict(term='pixels', of='student/decoder/crop~random/pixels')],
            optim=dict(
                rule='lamb',
                lr=2e-4 * BATCH / 256,
                schedule=dict(rule='cosine', start=1.0, end=0.001, warmup=STEPS // 40, warmup_start=0.005),
                weight_decay=dict(rule='cosine', start=0.04, end=0.2),
                b2=0.95,
                eps=1e-6,
                clip=5.0,
                no_decay=['*/bias', '*/scale', '*/gamma?', '*/mask_token'],
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
