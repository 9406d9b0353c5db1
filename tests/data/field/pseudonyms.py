"""An export whose pseudonyms are ANON001, ANON002, …: 30 people, 4 studies each. All of it is made up.

Want: the studies of one person stay in one split. `write` returns the person of each instance, which is no part of the
export.
"""

import pathlib

from releases_text import dicom, save

PEOPLE, STUDIES = 30, 4


def write(folder: pathlib.Path, pseudonym: str = 'ANON{:03d}', people: int = PEOPLE) -> dict[str, str]:
    """Writes the export and returns instance -> person."""
    truth = {}
    for person in range(people):
        for study in range(STUDIES):
            instance, name = f'1.2.{person + 1}.{study + 1}.1', pseudonym.format(person)
            save(
                folder / f'{person:02d}{study}.dcm',
                dicom(SOPInstanceUID=instance, StudyInstanceUID=f'1.2.{person + 1}.{study + 1}', PatientID=name),
            )
            truth[instance] = name
    return truth
