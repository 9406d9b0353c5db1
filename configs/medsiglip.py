"""MedSigLIP (arXiv 2507.05201): SigLIP continued on medical pairs among natural ones, with a sigmoid for every pair.

    medjax train --config medsiglip --data DATA --workdir RUN \\
        --config.tokenizer.path=siglip/tokenizer.json --config.tokenizer.pad='</s>' \\
        --config.init_from='dict(path="siglip_so400m.safetensors", take=["towers/image", "towers/text", "heads/text"])'

DATA holds images with texts. The authors mixed medical pairs into natural ones, so that SigLIP keeps its abilities. For
such a mixture write `sources=dict(natural=.98, medical=.02)` or similar below, and give `--data natural=DATA1
--data medical=DATA2`. Without SigLIP's files, train a tokenizer with `medjax tokenizer DATA` and leave `init_from` out.

Certain (model card): two towers with 400 M parameters; 448 px; 64 tokens; embeddings of 1,152 numbers; grey values in
[-1, 1]; the sigmoid loss with a learned temperature (starts at 1/10) and bias (starts at -10).
Recalled: about 33 M medical pairs with a small weight; slices of CT in several windows as colour channels.
Ours: batch, learning rate, steps, decay and warm-up, which were not found; the weights above; the text is the
impression, or the next section that a record has. A start from SigLIP takes over its towers and head. Temperature and
bias belong to the term and begin anew. Then set `terms.0.temperature` and `terms.0.bias` to the values of the file
(exp(-logit_scale), logit_bias).
Not here: images padded to a square. This recipe stretches the whole image to a square (up to 1 : 2).

Cost: 3.1 TFLOP a pair, 3.2 PFLOP a step. Published hardware and hours were not found.
Published (card): zero-shot classification and linear probes in chest radiography, dermatology, ophthalmology and
pathology. The figures were not read again.
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
            heads=dict(text=dict(head='linear', out=1_152, bias=True)),  # for texts only, as in SigLIP
            terms=[
                dict(
                    term='pair_sigmoid',
                    rows='student/image/picture/cls',
                    columns='student/text/report/cls>text',
                    positives='identity',
                    temperature=dict(learned=0.1, low=0.001),  # SigLIP has no bound and ends below .01
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
