"""Gradual unfreezing after a linear-probe warm-up, with discriminative rates and CutMix; configs/bpd.py.

It is made for few films. See medjax/probes/tuning.py for where the training lies and how its export is chosen.
"""

from __future__ import annotations

from medjax.probes.tuning import Tuning

job = Tuning('bpd')
name, requirements, run = job.name, job.requirements, job.run
