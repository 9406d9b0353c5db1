"""MedCLIP (arXiv 2210.10163): images and sentences that do not belong together, joined by how alike their labels are.

    medjax train --config configs/medclip.py --data images=CHEXPERT --data texts=MIMIC --workdir RUN \\
        --config.tokenizer.path=clinicalbert/vocab.txt \\
        --config.init_from='[dict(path="resnet50.safetensors"), dict(path="clinicalbert.safetensors")]'

Two data sets with labels over one vocabulary, the one read for its images and the other for its texts; both may be
the same folder. They are two parts of the batch, each with its own order, so nothing is paired. Without the public
files: a tokenizer of `medjax tokenizer`, and `init_from` left out as below.

Certain (code): the softmax over the similarities of label sets as the positives of both directions, batch 100,
learning rate 2e-5, 10 epochs.
Recalled: ResNet-50 (or a Swin, which is not here), ClinicalBERT, 512 numbers without biases, temperature .07, weight
decay 1e-4, 224 px, a tenth of the steps for warm-up; 14 labels of CheXpert, those of sentences by a rule-based
labeller.

Ours: a text's labels are those of its record, where theirs are of the sentence; the cosine of label sets with "none
of them" as a label of its own; 77 tokens; mean pooling; crops of .8 to 1; 50,000 steps. Pictures of the texts' part
are not looked at, and read at 8 px.

Cost: 64 GFLOP for an image and a text, 6.4 TFLOP a step. Published hardware and hours: not read again.
Published: not read again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=50_000,
            batch_size=200,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            data=dict(
                images=dict(rows=100, sources=dict(images=1.0)),
                texts=dict(rows=100, sources=dict(texts=1.0), canvas=8),
            ),
            views=dict(
                crop=dict(
                    view='crop',
                    part='images',
                    count=1,
                    size=224,
                    area=(0.8, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
                sentence=dict(
                    view='text',
                    part='texts',
                    length=77,
                    count=1,
                    sections=['findings+impression', 'report', 'caption'],
                    sentences=1,
                ),
            ),
            towers=dict(
                image=dict(tower='resnet', variant='50', norm='batch'),
                text=dict(tower='text', family='bert', variant='B', vocabulary=28_996, pool='mean'),
            ),
            heads=dict(vi=dict(head='linear', out=512), vt=dict(head='linear', out=512)),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/sentence/cls>vt',
                    positives=dict(soft='labels'),
                    temperature=dict(learned=0.07, low=0.01),
                ),
            ],
            optim=dict(
                lr=2e-5,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=5_000),
                weight_decay=1e-4,
                groups=[
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=5_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
