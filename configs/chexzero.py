"""CheXzero (code: rajpurkarlab/CheXzero on GitHub): CLIP continued on radiographs and the impressions of reports.

    medjax build mimic_cxr DIR --out DATA --size 320
    medjax train --config chexzero --data DATA --workdir RUN \\
        --config.tokenizer.path=clip/tokenizer.json --config.init_from='dict(path="clip_vit_b32.safetensors",
        take=["towers/image", "towers/text", "heads/image", "heads/text"])'

DATA holds images of all views with reports that have an impression. The authors used MIMIC-CXR. Without CLIP's files,
train a tokenizer with `medjax tokenizer DATA` and leave `init_from` out. With CLIP's files, also set the temperature
with which CLIP ended, because a term holds it and `init_from` does not take it over:
`--config.terms.0.temperature.learned=.01`.

Certain (code): CLIP's ViT-B/32 and text tower; 77 tokens; the last impression of a report; images stored at 320 px with
a black margin to a square; batch 16; SGD at 1e-4 with momentum .9; 4 epochs; ten checkpoints whose outputs are averaged
in the test; the prompts "X" and "no X" in the test.
Recalled: the tower sees 224 px; mean and deviation of grey values are 101.49 and 83.44 of 255.
Ours: AdamW at 1e-5, because SGD is not available here; the whole image stretched to a square, without the margin;
94,000 steps, which are four passes over 377,000 images; an export after every tenth of the steps. Records without an
impression take no part. The authors pair them with a sentence that says so.

Cost: 44 GFLOP a pair, .7 TFLOP a step. Published hardware and hours were not read again.
Published: not read again. `medjax probe --probes zero_shot` gives AUROC by finding with intervals.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=94_000,
            batch_size=16,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=3, mean=101.48761 / 255, std=83.43944 / 255),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                picture=dict(
                    view='crop',
                    part='cxr',
                    count=1,
                    size=224,
                    area=(1.0, 1.0),
                    aspect=(1 / 2, 2.0),
                    photometric=None,
                ),
                impression=dict(view='text', part='cxr', length=77, count=1, sections=['impression']),
            ),
            towers=dict(
                image=dict(tower='vit', variant='B/32', family='clip', native_size=224),
                text=dict(tower='text', family='clip', variant='B', width=512, heads=8),
            ),
            heads=dict(image=dict(head='linear', out=512), text=dict(head='linear', out=512)),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/picture/cls>image',
                    columns='student/text/impression/cls>text',
                    positives='identity',
                    temperature=dict(learned=0.07, low=0.01),
                ),
            ],
            optim=dict(lr=1e-5, b1=0.9, b2=0.98, eps=1e-6, no_decay=[]),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['image', 'text'], every=9_400),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
