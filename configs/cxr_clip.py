"""CXR-CLIP (arXiv 2310.13292): contrast of two images with two texts of a study, and within images and within texts.

    medjax build mimic_cxr DIR --out MIMIC --size 336
    medjax train --config cxr_clip --data MIMIC --workdir RUN \\
        --config.views.report.prompts=prompts.json --config.tokenizer.path=clinicalbert/vocab.txt \\
        --config.init_from='[dict(path="resnet50.safetensors"), dict(path="clinicalbert.safetensors")]'

DATA: images with findings and impressions (the authors used MIMIC-CXR), and sets with labels (CheXpert and
ChestX-ray14). Two prompts per record turn labels into two texts. For several sets write
`sources=dict(mimic=…, chexpert=…)` below. A text that a record does not have takes no part. Without the public files,
train a tokenizer with `medjax tokenizer` and leave `init_from` out.

Certain (code): two image views; two texts (findings and impression, or two prompts); the loss is the mean softmax over
the combinations of image view and text; the same loss among images and among texts; 256 tokens.
Recalled: ResNet-50 (or Swin, which is not available here); ClinicalBERT; linear projections to 512; a learned
temperature that starts at .07; weight 1 for images and .5 for texts; batch 128; AdamW at 5e-5; weight decay 1e-4; 15
epochs, the first one for warm-up; 224 px.
Ours: 45,000 steps; a temperature of its own for every term; two crops of one image as the two views. The authors take
two images of the study where it has two. A record with one section has one text here. The authors translate the text
into another language and back for a second one. `views.report.sentences=3` deals the sentences of one section into two
texts instead.

Cost: .32 TFLOP a row of two images and two texts, 42 TFLOP a step. Published hardware and hours were not read again.
Published: not read again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=45_000,
            batch_size=128,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='cxr',
                    count=2,
                    size=224,
                    area=(0.8, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    photometric='radiograph',
                ),
                report=dict(
                    view='text',
                    part='cxr',
                    length=256,
                    count=2,
                    sections=['findings', 'impression', 'report'],
                    sentences=None,
                    prompts=None,
                ),
            ),
            towers=dict(
                image=dict(tower='resnet', variant='50', norm='batch'),
                text=dict(tower='text', family='bert', variant='B', vocabulary=28_996, pool='cls'),
            ),
            heads=dict(vi=dict(head='linear', out=512), vt=dict(head='linear', out=512)),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/report/cls>vt',
                    temperature=dict(learned=0.07, low=0.01),
                    positives='identity',
                ),
                dict(
                    term='pair_softmax',
                    name='images',
                    rows='student/image/crop/cls>vi',
                    columns='student/image/crop/cls>vi',
                    temperature=dict(learned=0.07, low=0.01),
                    positives='identity',
                    weight=1.0,
                ),
                dict(
                    term='pair_softmax',
                    name='texts',
                    rows='student/text/report/cls>vt',
                    columns='student/text/report/cls>vt',
                    temperature=dict(learned=0.07, low=0.01),
                    positives='identity',
                    weight=0.5,
                ),
            ],
            optim=dict(
                lr=5e-5,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=3_000),
                weight_decay=1e-4,
                groups=[
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=3_000),  # every epoch
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
