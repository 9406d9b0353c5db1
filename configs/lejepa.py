"""LeJEPA (arXiv 2511.08544) with a ViT-S/14: crops of an image are near, and the embeddings of a batch are normal.

    medjax train --config lejepa --data DATA --workdir RUN

Certain (README and MINIMAL.md of rbalestr-lab/lejepa): the loss; 2 global crops of 224 px (30 to 100 % of the area) and
6 local crops of 98 px (5 to 30 %); one set of colours, blur and solarising for all crops; 17 points; 1,024 directions;
the projector of three layers with 2,048 hidden; AdamW with rate 5e-4 and weight decay .05; half a cosine to a
thousandth; no teacher, no stopped gradient.
Recalled from the paper, not read again: the share .05 of the regulariser (MINIMAL.md has .02).
Ours: the ViT-S/14; 64 outputs of the projector (MINIMAL.md has 16); batch 512; 100 epochs of ImageNet, one of them
warm-up; no drop path.
Micro-batches are refused, because the BatchNorm of the head needs the whole batch. With batch_norm=False in the head
they are exact.

Flips and colours are made for photographs. For radiographs take flip=0. and photometric='radiograph' in all views.

Cost: .1 TFLOP an image, 13 EFLOP in all: 12 hours of one H100 at 30 % of its peak.
Published (abstract, recalled): ImageNet, linear evaluation 79 % with a ViT-H/14. Not reproduced here.
"""

from ml_collections import ConfigDict

BATCH = 512
EPOCH = 2_502  # steps: 1,281,167 images of ImageNet
STEPS = 100 * EPOCH


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
            views={
                'global': dict(
                    view='crop',
                    part='images',
                    count=2,
                    size=224,
                    area=(0.3, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.2),
                ),
                'local': dict(
                    view='crop',
                    part='images',
                    count=6,
                    size=98,
                    area=(0.05, 0.3),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=0.5,
                    sigma=(0.1, 2.0),
                    photometric=dict(set='dinov2', solarise=0.2),
                ),
            },
            towers=dict(image=dict(tower='vit', variant='S/14', native_size=224, layerscale=None, drop_path=0.0)),
            heads=dict(projector=dict(head='mlp', out=64, hidden=2_048, layers=3, batch_norm=True)),
            terms=[
                dict(
                    term='lejepa',
                    of='student/image/global/cls>projector',
                    others='student/image/local/cls>projector',
                    share=0.05,
                    directions=1_024,
                )
            ],
            optim=dict(
                lr=5e-4,
                schedule=dict(rule='cosine', start=1.0, end=1e-3, warmup=EPOCH),
                weight_decay=0.05,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=10 * EPOCH),
            checkpoint=dict(every=EPOCH, keep=2),
            log=dict(every=50),
        )
    )
