"""Sources: each module of this folder turns one release into the records of a data set.

How to add a source
-------------------
Write a module with two functions and, if they apply, three constants:

    def arguments(parser):              adds the options of the source to an argparse parser
    def source(**options) -> Source:    takes the options by their names in the parser
    SPLITS = ('official', …)            the choices of --split, the first is the default; only if the release has
                                        splits. `source` then takes the choice as `split=`. The choice 'drawn' is
                                        always added: `source` leaves Entry.split None, and the builder draws splits
    LICENSE, LAYOUT                     texts for `medjax build --help`: the licence, and what the folder must hold

A mistake of the user raises UserError with a sentence that says what was wrong, where, and what would work.

A module <kind>.py in this folder is found as `medjax build <kind>`. Your own module, outside of medjax, is found by
its full name: `medjax build mypkg.mysource …`. It imports the names below from `medjax.data.sources`. The docstring of
the module is shown by `medjax build <kind> --help`, its first line by `medjax build --help`. Write in it how the folder
looks, how splits, labels and patients are decided, which traps the release has, what you checked, and the licence.

What a source returns
---------------------
A `Source` holds, among names and notes:

    entries     one `Entry` for each image: its id, patient, study and perhaps split. No image is opened for this
    label(i)    the label codes of entry i, one for each of `Source.labels`. No image is opened for this
    load(i)     opens or renders image i and returns an `Example`: image, text, mask, attributes. Threads and processes
                call it at once and in any order, so it must depend on i alone

In most sources of this folder, `label` and `load` are methods of a frozen dataclass, `Release`.

Ids are plain strings, unique within `Source.namespace`. They are never stored: only their keyed hash is.

An image that cannot be used is set aside with a reason, and the build goes on. If no image must be opened to see it,
`source` adds a `Drop` to `Source.dropped`. Otherwise `load` raises `Unreadable(reason)`. A reason is written and
printed as it is, so it must not hold an id, a name or a path.

Everything else is the same for all sources, and `medjax.data.builder.write.write(source, out)` does it: splits, hashed
ids, bounded size, encoding, hashes of pixels, mean and deviation, the list of drops, the audit, and the folder, which
appears whole or not at all.

Where to look
-------------
`medjax.data.releases` has what most sources need. `folders` checks a folder and lists its files. `tables` reads CSV and
JSON, and joins the lines of an image. `coding` turns cells into label codes, ages and roles. `published_splits` names
split lists and compares lists with them. Short sources to read first: `brax` reads a folder with a table, `phantom`
renders its images. docs/add_a_data_set.md has a complete source in 30 lines.
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
