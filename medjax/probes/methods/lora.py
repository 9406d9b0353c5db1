"""LoRA: products of small matrices beside the weights of a ViT learn the labels; configs/lora.py.

The export that is judged has them merged into the weights. See medjax/probes/tuning.py for where the training lies and
how its export is chosen.
"""

from __future__ import annotations

from medjax.probes.tuning import Tuning

job = Tuning('lora', tower='vit')
name, requirements, run = job.name, job.requirements, job.run
