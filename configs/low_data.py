"""Few pairs (after arXiv 2303.17644): a contrast on top of an image tower that was trained on images alone.

    medjax train --config configs/rad_dino_vitb14.py --data IMAGES --workdir RUN1          # or any image-only recipe
    medjax train --config configs/low_data.py --data DATA --workdir RUN2 \\
        --config.tokenizer.path=cxrbert/vocab.txt \\
        --config.init_from='[dict(path="RUN1/exports/35000"), dict(path="cxrbert.safetensors")]'

DATA: a few thousand images with reports, of one's own site. The study trains on growing parts of its pairs and
measures text -> image retrieval against their number. Training has no option for that: a part is a data set of its
own, built from the table without the lines of the other training patients; the lines of val and test stay the same in
all of them.

Certain (abstract): it compares adapting general models, image-only and text-only training before, and a start in the
domain, by retrieval as a function of the number of pairs. No more was read: every number below is ours, chosen so
that little is learned from scratch. The image tower stands still for the first fifth of the steps, as what new heads
send back would spoil it, then moves at a tenth of the rate, less so the deeper the layer; of the text tower the
embeddings and the lower half stand still for good. Without `init_from`, which is left out so that the config runs by
itself, both stay random there: the groups of `optim` only make sense with it.

Cost: .21 TFLOP a pair, 13 TFLOP a step.
Published: no numbers in the abstract.
"""

from ml_collections import ConfigDict

STEPS = 5_000


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=64,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=3, mean=0.5307, std=0.2583),  # of the image tower's own training
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='cxr',
                    count=1,
                    size=224,
                    area=(0.6, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    photometric='radiograph',
                ),
                report=dict(view='text', part='cxr', length=128, count=1, sentences=3),
            ),
            towers=dict(
                image=dict(tower='vit', variant='B/14', native_size=224, layerscale=1e-5),
                text=dict(tower='text', family='bert', variant='B', vocabulary=30_522, pool='cls'),
            ),
            heads=dict(vi=dict(head='mlp', out=256, hidden=512), vt=dict(head='mlp', out=256, hidden=512)),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/report/cls>vt',
                    positives=['identity', 'text'],
                    temperature=dict(learned=0.07, low=0.01),
                ),
            ],
            optim=dict(
                lr=2e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=STEPS // 20),
                weight_decay=0.05,
                clip=1.0,
                groups=[
                    dict(match='towers/image/*', lr_scale=0.1, layerwise=0.8, frozen_until=STEPS // 5),
                    dict(match='towers/text/words', lr_scale=0.0),
                    dict(match='towers/text/positions', lr_scale=0.0),
                    dict(match='towers/text/segments', lr_scale=0.0),
                    dict(match='towers/text/blocks[0:6]/*', lr_scale=0.0),
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=500),
            checkpoint=dict(every=500, keep=2),
            log=dict(every=20),
        )
    )
