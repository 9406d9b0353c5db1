"""Sources: where images come from. A source is data and two functions; everything else is done by `data.write`.

A module `medjax/data/sources/<kind>.py` has two functions, and `medjax build <kind>` is there:

    arguments(parser) -> None       adds its own options to an argparse parser
    source(**options) -> Source     the options by their names in the parser; a user's mistake raises UserError
    SPLITS = ('official', …)        if the release has splits: their names in `data.splits`, the first is the default;
                                    `source` then takes the chosen one as `split=` ('drawn' leaves Entry.split None)

`Source.entries` says what is known before an image is opened: plain ids and perhaps a split. `Source.label(i)` gives
its labels, without opening it either. `Source.load(i)` opens or renders entry i and gives the rest; it is called from
several threads and processes at once and in any order, so it must be a pure function of i. A file that cannot be read
raises `Unreadable(reason)`: the entry is set aside with the reason and the build goes on.
`medjax.data.builder.write.write(source, out)` then does, for every source alike: splits, hashed ids, bounded size,
encoding, pixel and perceptual hashes, mean and deviation, the list of what was set aside, the audit, publishing.

Ids are plain strings, unique within `Source.namespace` for their kind; they never reach the disk unhashed.
"""

from __future__ import annotations

from medjax.data.types import (
    BLANK,
    CONFLICTING,
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    Drop,
    Entry,
    Example,
    Origin,
    Source,
    Unreadable,
)

__all__ = [
    'BLANK',
    'CONFLICTING',
    'NEGATIVE',
    'POSITIVE',
    'UNCERTAIN',
    'Drop',
    'Entry',
    'Example',
    'Origin',
    'Source',
    'Unreadable',
]
