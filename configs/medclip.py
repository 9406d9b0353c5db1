"""MedCLIP (arXiv 2210.10163): contrast of unpaired images and sentences, by the similarity of their labels.

    medjax train --config medclip --data images=CHEXPERT --data texts=MIMIC --workdir RUN \\
        --config.tokenizer.path=clinicalbert/vocab.txt \\
        --config.init_from='[dict(path="resnet50.safetensors"), dict(path="clinicalbert.safetensors")]'

DATA: two data sets with the same label names. One is read for its images, the other for its texts. Both may be the same
folder. They are two parts of the batch, and each part is shuffled on its own, so images and texts are unpaired. Without
the public files, train a tokenizer with `medjax tokenizer` and leave `init_from` out.

Certain (code): the softmax over the similarities of label sets gives the targets of both directions; batch 100;
learning rate 2e-5; 10 epochs.
Recalled: ResNet-50 (or Swin, which is not available here); ClinicalBERT; embeddings of 512 numbers without biases;
temperature .07; weight decay 1e-4; 224 px; a tenth of the steps for warm-up; 14 labels of CheXpert, which a rule-based
labeller gives to each sentence.
Ours: the labels of a text are those of its record, where the authors label each sentence; similarity is the cosine of
label sets, with "none of them" as a label of its own; 77 tokens; mean pooling; crops of area .8 to 1; 50,000 steps. The
images of the part `texts` are not used, and are read at 8 px.

Cost: 64 GFLOP for an image and a text, 6.4 TFLOP a step. Published hardware and hours were not read again.
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
