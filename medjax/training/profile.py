"""A profile of some steps on demand: `medjax train --profile 100:105` -> RUN/profile, for TensorBoard or Perfetto."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax

from medjax import files
from medjax.errors import UserError


@dataclasses.dataclass
class Profile:
    """The steps `first` to `last`, both included, are recorded. Steps before them have ended when it begins."""

    first: int
    last: int
    _folder: Path | None = None  # set while it records

    def check(self, start: int, total: int) -> None:
        """UserError where the session does not do these steps."""
        if not start < self.first <= self.last <= total:
            raise UserError(
                f'--profile {self.first}:{self.last}: this session does the steps {start + 1:,} to {total:,}; name the '
                'first and the last step of some of them'
            )

    def before(self, step: int, state: object, folder: Path) -> None:
        if step == self.first:
            jax.block_until_ready(state)
            with files.writing(f'the profile {folder / "profile"}'):
                jax.profiler.start_trace(folder / 'profile')
            self._folder = folder / 'profile'

    def after(self, step: int, state: object) -> Path | None:
        """The folder of the profile when its last step is over."""
        if step != self.last or self._folder is None:
            return None
        jax.block_until_ready(state)
        return self.close()

    def close(self) -> Path | None:
        """Ends the recording also where the run stops before its last step."""
        folder, self._folder = self._folder, None
        if folder is not None:
            with files.writing(f'the profile {folder}'):
                jax.profiler.stop_trace()
        return folder


def parse(text: str) -> Profile:
    """'100:105' -> the steps 100 to 105."""
    match = re.fullmatch(r'(\d+):(\d+)', text.strip())
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise UserError(f'--profile {text}: write FIRST:LAST, two steps such as 100:105')
    return Profile(int(match[1]), int(match[2]))
