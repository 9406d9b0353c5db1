"""Few films: linear-probe warm-up, gradual unfreezing, discriminative rates and CutMix, as for BPD in 163 infants.

    medjax train --config bpd --data DATA --workdir RUN --config.towers.image=ENCODER
    medjax probe --run RUN --data DATA --probes bpd               # from an export, and judged

ENCODER is a run, an export or public weights, a ViT or a ResNet. Size and preprocessing of the images as in
`fine_tune`. The classifier learns alone for a fifth of the run. Then the layers follow from the last to the first; the
stem changes from half of the run on.

Certain (abstract of arXiv 2507.12269, a ResNet-50 from films of adults): warm-up by a linear probe,
discriminative rates, progressive freezing of layers, CutMix; in-domain weights before ImageNet's (p = .031).
Certain (arXiv 1801.06146): unfreezing from the last layer to the first, and a rate that falls by 2.6 from a layer to
the one below, for a model of three layers. (arXiv 1905.04899): CutMix with boxes of uniform area.
Ours: the steps; a factor of .65 a layer, as a ViT has more of them; CutMix for half of the crops; the rest is that of
`fine_tune`. Without CutMix: --config.views.crop.cutmix=0.

Cost: that of `fine_tune`. Not run at this size; measured small in docs/learn_from_labels.md.
"""

from typing import Any

from ml_collections import ConfigDict

from medjax import presets

BATCH = 64


def get_config(data: Any = None, epochs: str = '50') -> ConfigDict:
    steps = presets.steps(data, epochs, BATCH)
    return ConfigDict(
        dict(
            total_steps=steps,
            batch_size=BATCH,
            seed=0,
            rows_per_group=8,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=None, std=None),
            data=dict(images=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='images',
                    count=1,
                    size=224,
                    area=(0.5, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                    cutmix=0.5,
                ),
            ),
            towers=dict(image=dict(tower='vit', variant='B/16', drop_path=0.0)),
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
                schedule=dict(rule='cosine', start=1.0, end=0.002, warmup=steps // 10),
                weight_decay=0.05,
                clip=1.0,
                groups=[dict(match='towers/image/*', layerwise=0.65, unfreeze=(steps // 5, steps // 2))],
            ),
            init_from=None,
            export=dict(network='student', towers=['image'], heads=['classifier'], every=max(steps // 5, 1)),
            checkpoint=dict(every=max(steps // 5, 1), keep=2),
            log=dict(every=10),
        )
    )
