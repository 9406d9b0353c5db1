"""Visual prompts: a ViT stays as it is, and tokens beside its patches learn the labels (DVPT); configs/prompts.py.

See medjax/probes/tuning.py for where the training lies and how its export is chosen.
"""

from __future__ import annotations

from medjax.probes.tuning import Tuning

job = Tuning('prompts', tower='vit')
name, requirements, run = job.name, job.requirements, job.run
