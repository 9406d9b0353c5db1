"""The names of columns: 'Patient-ID', 'MRN' and 'patient_id' all name patients, and 'fold' names no finding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from medjax.data.text.language import fold

# Field -> other names that people give its column, without blanks, signs and accents; the best one first.
NAMES = {
    'image': 'image',
    'patient_id': """patientid patient patid pat patientno patientnr patientnum patientnumber patientuid patientkey pid
        mrn medicalrecordnumber subjectid subject subjid subj subjectno subjectnumber personid person participantid
        participant empianon empi patientenid patientennummer patientennr patnr idpatient ipp idpaciente paciente nhc
        prontuario paziente ptid patientidentifier subjectcode subjectidentifier pseudonym pseudonymid pseudoid
        patientpseudonym patientcode""",
    'study_id': """studyid studyuid studyinstanceuid accessionnumber accessionno accession accno accanon examid
        examinationid""",
    'split': """split splits splitname datasplit datasetsplit setname subset partition traintest trainvaltest
        traintestsplit set dataset phase usage""",
    'text': 'text',
    'age': """age patientage ageyears ageinyears ageatstudy ageatexam ageatscan alter alterjahre alterinjahren
        patientenalter edad edadanos edaddelpaciente idade idadeanos idadedopaciente eta leeftijd agepatient
        agedupatient ageans""",
    'sex': 'sex gender patientsex patientgender geschlecht sexe sexo genero sesso geslacht',
    'view': 'view viewposition viewpos projection',
    'mask': 'mask',
    'license': 'license licence lizenz licencia',
}
# Field -> what its column holds
HOLDS = {
    'image': 'the names of the images', 'patient_id': 'ids of patients', 'study_id': 'ids of studies',
    'split': 'train, val and test', 'text': 'reports', 'age': 'ages', 'sex': 'sexes', 'view': 'views',
    'mask': 'the names of masks', 'license': 'licences',
}  # fmt: skip
# Names that look like something that is read, but may mean something else: the table's owner decides.
SIMILAR = {
    'image': """imageid imagepath imagefile imagename imageindex img imgid imgpath filename file filepath path dicom
        dicomid dicompath id pngpath picture bild datei fichier archivo""",
    'patient_id': """caseid case fallnummer fallid patientname name nom nombre id usubjid uhid
        anonid anonymizedid anonymisedid proband probandenid hospitalno hospitalid""",
    'study_id': 'study exam examination untersuchung visit series seriesinstanceuid',
    'split': 'originalsplit officialsplit',
    'text': """report reporttext reports radiologyreport fulltext findings impression caption description narrative
        befund befundtext bericht informe laudo rapport compterendu""",
    'mask': 'maskpath maskfile maskname segmentation segmentationpath',
}
# Words of names that are no findings. A name is no finding if all its words are here, so 'device' is none and
# 'support device' is one.
_OTHER_WORDS = frozenset(
    word
    for words in """
    fold folds cv kfold split set subset partition sex gender male female is age group site center centre hospital
    clinic institution institute location country city ward department unit scanner device machine vendor manufacturer
    model detector station batch index idx id ids uid row line number no nr num count n counter serial key hash code
    year month day days date time hour weekday visit followup follow up series study accession exam patient subject
    person case reader rater annotator radiologist rad view position projection laterality side width height
    size rows columns cols bits depth channel channels spacing weight bmi seed random rand frame frames slice slices
    page order rank version source origin dataset cohort domain project protocol
    holdout train val test valid validation training testing eval outer inner exclude excluded include included mask
    unnamed inverted portable institut krankenhaus abteilung spital particao particion partizione
    geschlecht mannlich weiblich alter standort klinik gerat hersteller zentrum nummer jahr monat tag datum faltung
    seite sexe homme femme hopital appareil numero annee mois jour cote pli
    sexo hombre mujer centro equipo ano mes dia fecha lado pliegue paciente genero homem mulher aparelho data
    qc qa quality ok pass passed usable consent consented verified checked reviewed annotated labeled labelled
    adjudicated duplicate duplicated public adult child pediatric paediatric emergency inpatient outpatient icu
    weekend night text report available frontal lateral supine erect standing ap pa read
    over under
    """.splitlines()
    for word in words.split()
)
# A word for a person with words for an id around it: 'anon_patient_id', 'Patientnummer', 'PatientID_hash'
_PERSON_ID = re.compile(
    r'(?:(?:anon|anonym|anonymi[sz]ed|deid|deidentified|pseudo|pseudonym|pseudonymi[sz]ed|hash|hashed|encrypted|new|old'
    r'|study|original|research|trial|database|db)(?:id)?)*'
    r'(?:patient(?:en|in)?|pat|pid|mrn|subject|subj|participant|person|proband(?:en)?|paciente|paziente)'
    r'(?:ids?|uid|guid|no|nr|num|number|nummer|numero|key|code|kennung|hash|hashed|identifier|identifikation'
    r'|identification|anon|anonym|anonymi[sz]ed|deid|deidentified|pseudo|pseudonym|pseudonymi[sz]ed|new)*'
)
_SMALL_WORDS = frozenset(('in', 'has', 'was', 'is', 'by', 'for', 'lat', 'ct', 'mr'))


def plain(name: str) -> str:
    """'Patient-ID', 'PatientID' and 'patient id' -> 'patientid'."""
    return re.sub(r'[^a-z0-9]', '', fold(name))


_FIELD = {name: field for field, names in NAMES.items() for name in names.split()}
_SIMILAR = {name: field for field, names in SIMILAR.items() for name in names.split()}


def fields(
    columns: Sequence[str], is_filled: Callable[[str], bool], can_hold: Callable[[str, str], bool]
) -> dict[str, str]:
    """Field -> the column that holds it. An exact name goes first, then the order of `NAMES`.

    is_filled: whether a cell of a column says something. An empty column `patient_id` leaves its field to a filled MRN.
    can_hold: whether the cells of a column can be those of a field. It is asked only for names that are not exact: a
    column `set` is the split only if its cells are splits.
    """
    found: dict[str, str] = {}
    for field, names in NAMES.items():
        if field in columns and is_filled(field):
            found[field] = field
            continue
        order = names.split()
        candidates = sorted(
            (order.index(plain(c)) if plain(c) in order else len(order), i, c)
            for i, c in enumerate(columns)
            if is_name(c, field) and c != field
        )
        column = next((c for _, _, c in candidates if can_hold(field, c)), field)
        if column in columns:
            found[field] = column
    return found


def is_name(column: str, field: str) -> bool:
    """Whether the name of a column says that it holds a field: 'MRN' and 'anon_patient_id' hold patient_id."""
    name = plain(column)
    return name in NAMES[field].split() or (field == 'patient_id' and bool(_PERSON_ID.fullmatch(name)))


def looks_like(column: str) -> str:
    """The field that a column may mean by its name: 'patinet_id' -> 'patient_id'. '' if its name is like none."""
    name = plain(column)
    if name in _FIELD or name in _SIMILAR:
        return _FIELD.get(name) or _SIMILAR[name]
    if is_name(column, 'patient_id'):
        return 'patient_id'
    near = difflib.get_close_matches(name, [plain(field) for field in NAMES if len(field) > 4], n=1, cutoff=0.8)
    return next((field for field in NAMES if near and plain(field) == near[0]), '')


def is_no_finding(column: str) -> bool:
    """Whether the name of a column says that it holds no finding: 'fold', 'SiteID', 'Unnamed: 0', 'cv_fold_3'."""
    spaced = re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', column)
    found = re.findall(r'[^\W\d_]+', fold(spaced))
    if not found or all(word in _OTHER_WORDS for word in found):
        return True
    # 'Fold_A', 'in_train', 'view_PA': beside a word of a name that is no finding, small words say nothing
    small = [word for word in found if word in _SMALL_WORDS or (len(word) == 1 and word.isascii())]
    return len(small) < len(found) and all(word in _OTHER_WORDS or word in small for word in found)
