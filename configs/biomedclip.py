"""BiomedCLIP (arXiv 2303.00915): contrast of article figures with their captions, read as 256 tokens.

    medjax build biomedclip FILE --out DATA --size 336      # the lines that BiomedCLIP's own pipeline writes
    medjax train --config biomedclip --data DATA --workdir RUN \\
        --config.tokenizer.path=pubmedbert/vocab.txt --config.init_from='dict(path="pubmedbert.safetensors")'

DATA holds images with captions. The authors trained on 15.28 M pairs from 4.4 M articles. `medjax build pmc_oa` and
`medjax build roco` make smaller sets of this kind. Without PubMedBERT's files, train a tokenizer with
`medjax tokenizer DATA` and leave `init_from` out.

Certain (name of the checkpoint, code of its data): ViT-B/16 at 224 px; PubMedBERT with 256 tokens; the softmax in both
directions with a learned temperature; the numbers of pairs and articles.
Recalled: batch 4,096; learning rate 5e-4; 32 epochs; at most 16 A100; embeddings of 512 numbers; mean and deviation of
OpenAI; a text head with two layers and no biases, the first layer as wide as the mean of its two ends; a ViT as in
timm.
Recalled of open_clip, the authors' training code: crops of area .9 to 1; weight decay .2 for matrices only; betas .9
and .98; epsilon 1e-6; 2,000 warm-up steps; a temperature that starts at .07 and stays above .01.
Ours: 119,400 steps, which are 32 epochs at batch 4,096; no decay of biases, norms and temperature.
Not here: the authors also tried a batch size that grows during the run.

Cost: .24 TFLOP a pair, 1 PFLOP a step, 111 hours of one H100 at 30 % of its peak in all. `micro_batches` gives the same
gradient on fewer devices.
Published: better than BioViL on RSNA (abstract). The paper also reports retrieval among held-out pairs and zero-shot
results on PCam, LC25000, TCGA-TIL and RSNA; these figures were not read again. The paper of UniMed-CLIP gives
BiomedCLIP 49.02 on the average of its 21 zero-shot sets.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=119_400,
            batch_size=4_096,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(
                channels=3,
                mean=[0.48145466, 0.4578275, 0.40821073],
                std=[0.26862954, 0.26130258, 0.27577711],
            ),
            data=dict(figures=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='figures',
                    count=1,
                    size=224,
                    area=(0.9, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    photometric=None,
                ),
                caption=dict(
                    view='text', part='figures', length=256, count=1, sections=['caption', 'report', 'impression']
                ),
            ),
            towers=dict(
                image=dict(tower='vit', variant='B/16', family='dinov2', layerscale=None, native_size=224),
                text=dict(tower='text', family='bert', variant='B', vocabulary=30_522, pool='cls'),
            ),
            heads=dict(
                vi=dict(head='linear', out=512),
                vt=dict(head='mlp', out=512, hidden=640, activation='gelu', bias=False),
            ),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/caption/cls>vt',
                    temperature=dict(learned=0.07, low=0.01),
                    positives='identity',
                ),
            ],
            optim=dict(
                lr=5e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=2_000),
                weight_decay=0.2,
                b1=0.9,
                b2=0.98,
                eps=1e-6,
                groups=[
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=3_730),  # every epoch
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
