"""MedSigLIP (arXiv 2507.05201): SigLIP trained on with medical pairs among natural ones, a sigmoid for every pair.

    medjax train --config configs/medsiglip.py --data DATA --workdir RUN \\
        --config.tokenizer.path=siglip/tokenizer.json --config.tokenizer.pad='</s>' \\
        --config.init_from='dict(path="siglip_so400m.safetensors", take=["towers/image", "towers/text", "heads/text"])'

DATA: images with texts. Theirs mixed medical pairs into natural ones, so that what SigLIP knows is kept: write
`sources=dict(natural=.98, medical=.02)` or so below and give `--data natural=DATA1 --data medical=DATA2`. Without
SigLIP's files: a tokenizer of `medjax tokenizer DATA`, and `init_from` left out as below.

Certain (model card): two towers of 400 M parameters, 448 px, 64 tokens, 1,152 numbers, grey values in [-1, 1], the
sigmoid loss with learned temperature (from 1/10) and bias (from -10).
Recalled: about 33 M medical pairs at a small weight; slices of CT in several windows as colours.

Ours: batch, learning rate, steps, decay and warm-up, none of which were found; the weights above; text from the
impression on. A start from SigLIP takes over its towers and head; temperature and bias, which a term keeps, begin
anew: with it, set `terms.0.temperature` and `terms.0.bias` to those of the file (exp(-logit_scale), logit_bias). What
theirs had and ours has not: pictures padded to a square. Here the whole picture is stretched to it (up to 1 : 2).

Cost: 3.1 TFLOP a pair, 3.2 PFLOP a step. Published hardware and hours: not found.
Published (card): zero-shot and linear probes of radiograph findings, dermatology, ophthalmology, pathology; figures
not read again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=50_000,
            batch_size=1_024,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=0.5, std=0.5),
            data=dict(pairs=dict(sources=dict(main=1.0))),
            views=dict(
                picture=dict(
                    view='crop',
                    part='pairs',
                    count=1,
                    size=448,
                    area=(1.0, 1.0),
                    aspect=(1 / 2, 2.0),
                    photometric=None,
                ),
                report=dict(view='text', part='pairs', length=64, count=1),
            ),
            towers=dict(
                image=dict(tower='vit', variant='So400m/14', family='siglip', native_size=448),
                text=dict(tower='text', variant='So400m', family='siglip', context=64),
            ),
            heads=dict(text=dict(head='linear', out=1_152, bias=True)),  # of the texts alone, as in SigLIP
            terms=[
                dict(
                    term='pair_sigmoid',
                    rows='student/image/picture/cls',
                    columns='student/text/report/cls>text',
                    positives='identity',
                    temperature=dict(learned=0.1, low=0.001),  # SigLIP's has no bound and ends below .01
                    bias=-10.0,
                ),
            ],
            optim=dict(
                lr=1e-5,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=1_000),
                weight_decay=1e-4,
                b1=0.9,
                b2=0.95,
                clip=1.0,
                groups=[
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['text'], every=5_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
