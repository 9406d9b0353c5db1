"""ConVIRT (arXiv 2010.00747): contrast of radiographs with single sentences of their reports.

    medjax build mimic_cxr DIR --out DATA --size 336
    medjax train --config convirt --data DATA --workdir RUN \\
        --config.tokenizer.path=clinicalbert/vocab.txt \\
        --config.init_from='[dict(path="resnet50.safetensors"), dict(path="clinicalbert.safetensors")]'

DATA holds images with reports. The authors used about 217,000 pairs of MIMIC-CXR. Any data set with texts works.
ConVIRT starts from a ResNet-50 of ImageNet and from ClinicalBERT. ClinicalBERT's embeddings and first six layers are
frozen. `init_from` is left out below, so that the recipe runs by itself. Then these layers stay random: remove their
rules from `optim.groups`. Without the public files, train a tokenizer with `medjax tokenizer DATA`.

There is no official code.
Recalled from the paper, not read again: the loss, with weight 3/4 for image -> text; temperature .1; embeddings of 512
numbers; max-pooling over tokens; the frozen layers; one sentence drawn from the report; crops of area .6 to 1; flips;
brightness and contrast of .6 to 1.4; blur with sigma .1 to 3; Adam at 1e-4; weight decay 1e-6; batch 32.
edreisMD/ConVIRT-pytorch (read): batch 112; 300 px; twice the weighted loss.
Ours: 224 px; 64 tokens; the width of the hidden layer of the heads; blur for every crop.
Not here: rotations by up to 20 degrees and shears. The authors halve the learning rate when validation stops improving;
here it follows a cosine over 200,000 steps (30 passes). Their weight decay was part of the gradient; here it is
decoupled.

Cost: 57 GFLOP a pair, 1.8 TFLOP a step. Published hardware and hours were not found.
Published (recalled): AUROC of a linear probe with 1 / 10 / 100 % of the labels is 90.7 / 91.7 / 92.1 on RSNA and
85.9 / 86.8 / 87.3 on CheXpert. In all four tasks, a tenth of the labels reaches the result of an ImageNet start
(abstract).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=200_000,
            batch_size=32,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='float32',
            image=dict(channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),  # those of the public ResNet
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='cxr',
                    count=1,
                    size=224,
                    area=(0.6, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    flip=0.5,
                    blur=1.0,
                    sigma=(0.1, 3.0),
                    photometric=dict(
                        set='dinov2',
                        brightness=0.4,
                        contrast=0.4,
                        saturation=0.0,
                        hue=0.0,
                        jitter=1.0,
                        grey=0.0,
                        solarise=0.0,
                    ),
                ),
                sentence=dict(
                    view='text',
                    part='cxr',
                    length=64,
                    count=1,
                    sections=['findings+impression', 'report', 'caption'],
                    sentences=1,
                ),
            ),
            towers=dict(
                image=dict(tower='resnet', variant='50', norm='batch'),
                text=dict(tower='text', family='bert', variant='B', vocabulary=28_996, pool='max'),
            ),
            heads=dict(
                vi=dict(head='mlp', out=512, hidden=1_024),
                vt=dict(head='mlp', out=512, hidden=1_024),
            ),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/sentence/cls>vt',
                    row_weight=0.75,
                    temperature=0.1,
                    positives='identity',
                ),
            ],
            optim=dict(
                lr=1e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.01, warmup=500),
                weight_decay=1e-6,
                b1=0.9,
                b2=0.999,
                no_decay=[],  # ConVIRT decays every parameter
                groups=[
                    dict(match='towers/text/words', lr_scale=0.0),
                    dict(match='towers/text/positions', lr_scale=0.0),
                    dict(match='towers/text/segments', lr_scale=0.0),
                    dict(match='towers/text/embed_norm/*', lr_scale=0.0),
                    dict(match='towers/text/blocks[0:6]/*', lr_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=10_000),
            checkpoint=dict(every=2_000, keep=2),
            log=dict(every=50),
        )
    )
