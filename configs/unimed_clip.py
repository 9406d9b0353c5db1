"""UniMed-CLIP (arXiv 2412.10372): contrast with classification sets too, whose labels become sentences.

    medjax build … --out CHEXPERT …                        # one data set for each source of the mixture
    medjax train --config unimed_clip --data DATA --workdir RUN \\
        --config.views.caption.prompts=prompts.json --config.tokenizer.path=biomedbert/vocab.txt \\
        --config.init_from='[dict(path="metaclip_b16.safetensors", take=["towers/image"]),
            dict(path="biomedbert.safetensors")]'

DATA holds images with texts, with labels, or with both. A record without any of the sections gets sentences from its
labels. prompts.json has sentences for each label (docs/learn_from_reports.md); the authors have ten a class, written
by a language model. For the authors' mixture write the 13 sources below with their weights, here by size, and give
`--data NAME=PATH` for each:

    sources=dict(radimagenet=1_049, chexpert=212, openi=7, nih=113, mimic=270, roco=61, pmc_oa=1_645, llava_med=468,
                 llava_med_more=265, quilt=1_018, retina_a=155, retina_b=13, retina_c=6)     # thousands: 5.28 M in all

Certain (code): MetaCLIP's ViT-B/16 with quick GELU at 224 px; BiomedBERT base with 256 tokens; the softmax in both
directions, with a temperature that starts at .07 and stays above .01; crops of area .9 to 1; mean and deviation of
OpenAI; 128 x 16 A100 (40 GB) = 2,048 pairs a step; 10 epochs; learning rate 5e-4; betas .9 and .98; weight decay .2;
2,000 warm-up steps. The large model is a ViT-L/14 at 336 px with learning rate 4e-4.
Recalled: embeddings of 512 numbers; the text head is that of BiomedCLIP.
Ours: 25,800 steps, which are 10 epochs; no decay of biases, norms and temperature; bfloat16 for mixed float16. The
authors count only the own pair as positive, although all records of a class have the same sentences. The obvious
correction is ['identity', 'label'], but it is not what was published.

Cost: .24 TFLOP a pair, .5 PFLOP a step, 12 hours of one H100 at 30 % of its peak in all.
Published: zero-shot over 21 sets 61.63 (ViT-B/16), 62.09 and 64.84 (ViT-L/14 with the large and the base text tower);
by modality X-ray 68.78, fundus 31.23, CT 85.54, MRI 68.83, ultrasound 68.64, histology 59.96. Several of these test
sets share images with the training sets. `medjax probe` prints how many of its test records the run has seen.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=25_800,
            batch_size=2_048,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(
                channels=3,
                mean=[0.48145466, 0.4578275, 0.40821073],
                std=[0.26862954, 0.26130258, 0.27577711],
            ),
            data=dict(pairs=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='pairs',
                    count=1,
                    size=224,
                    area=(0.9, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    photometric=None,
                ),
                caption=dict(
                    view='text',
                    part='pairs',
                    length=256,
                    count=1,
                    sections=['findings+impression', 'report', 'caption'],
                    prompts=None,
                ),
            ),
            towers=dict(
                image=dict(tower='vit', variant='B/16', family='clip', native_size=224),
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
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=2_580),  # every epoch
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
