"""Contrast with few pairs (after arXiv 2303.17644), on top of an image tower that was trained on images alone.

    medjax train --config rad_dino_vitb14 --data IMAGES --workdir RUN1          # or any other recipe without texts
    medjax train --config low_data --data DATA --workdir RUN2 \\
        --config.tokenizer.path=cxrbert/vocab.txt \\
        --config.init_from='[dict(path="RUN1/exports/35000"), dict(path="cxrbert.safetensors")]'

DATA holds a few thousand images with reports from one's own site. The study measures text -> image retrieval against
the number of training pairs. Training has no option for this number. Build one data set for each number: remove the
lines of the other training patients from the table, and keep the same lines for val and test in all of them.

Certain (abstract): the study compares general models, pretraining on images alone, pretraining on texts alone and a
start from the domain, by retrieval as a function of the number of pairs.
Ours: all numbers below, because no more of the paper was read. They are chosen so that little is learned from scratch.
The image tower is frozen for the first fifth of the steps, because gradients from new heads would damage it. Then it
trains with a tenth of the learning rate, and with less in layers nearer to the input. The embeddings and the lower
half of the text tower are frozen for the whole run. `init_from` is left out below, so that the recipe runs by itself.
Then both stay random: the rules of `optim.groups` make sense only with `init_from`.

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
            image=dict(channels=3, mean=0.5307, std=0.2583),  # those of the image tower's pretraining
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
