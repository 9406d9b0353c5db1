"""The header of a DICOM file: ids, number of frames, and the attributes that may leave the file.

Names, numbers, dates and free comments stay in the file. Of the other fields, a value leaves only if all its words are
in `ATTRIBUTES`, or its words that are in `KNOWN_WORDS` leave: names of people have been typed into every field. The
pixels are read by dicom_pixels.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from medjax.data.images import headers
from medjax.data.types import Unreadable

BARE = (b'\x02\x00\x00\x00', b'\x08\x00')  # the start of files without the preamble: group 0002 or 0008
NO_PICTURES = {  # Modality -> the kind of object; some of these have pixel data, but no image for a reader
    'SEG': 'a segmentation',
    'RTDOSE': 'a dose distribution',
    'REG': 'a registration',
    'RWV': 'a map of real-world values',
}
SQUARE = 0.01  # by this share height and width of a square pixel may differ; writers round their spacing
LONGEST = 10  # times as high as wide; pixels that are longer are an error of the header
MEASURES = 'PixelMeasuresSequence'  # the functional group with the spacing
OLDEST = 90.0  # years; older people are so few that their age could identify them; they are stored as 90
IMPOSSIBLE = 120.0  # years; a higher age is an error (releases contain 148 and 411)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The attributes that leave a header: name -> DICOM's name of the field, and the words that its value may consist of, in
# upper or lower case.
ATTRIBUTES = {
    'modality': (
        'Modality',  # PS3.3 C.7.3.1.1.1
        _word_set("""
            AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
            IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF
            RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP
            TG US VA XA XAPROTOCOL XC
        """),
    ),
    'body_part': (
        'BodyPartExamined',  # the common terms of PS3.16 annex L, with and without spaces
        _word_set("""
            ABDOMEN ABDOMENPELVIS ABDOMINAL ADRENAL ANKLE AORTA ARM AXILLA BACK BILE BLADDER BODY BONE BRAIN BREAST
            BRONCHUS BUTTOCK CALCANEUS CALF CARDIAC CAROTID CEREBELLUM CERVICAL CERVIX CHEEK CHEST CHESTABDOMEN
            CHESTABDPELVIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUCT DUODENUM EAR ELBOW ESOPHAGUS
            EXTREMITY EYE EYELID FACE FEMUR FETUS FINGER FOOT FOREARM GALLBLADDER GLAND HAND HEAD HEADNECK HEART HIP
            HUMERUS ILEUM ILIUM INTESTINE JAW JEJUNUM JOINT KIDNEY KNEE LARGE LARYNX LEFT LEG LIVER LOWER LSPINE LSSPINE
            LUMBAR LUNG LUNGS MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE
            ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RIB RIBS RIGHT SACRAL
            SACRUM SCAPULA SCROTUM SELLA SHOULDER SINUS SINUSES SKULL SMALL SPINE SPLEEN SSPINE STERNUM STOMACH
            SUBMANDIBULAR TESTIS THIGH THORACIC THORAX THUMB THYMUS THYROID TIBIA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE
            ULNA UPPER URETER URETHRA UTERUS VAGINA VULVA WHOLE WHOLEBODY WRIST ZYGOMA C T L S AND TO
        """),
    ),
    'view': (
        'ViewPosition',
        _word_set("""
            AP PA L R LL RL LAT LATERAL LLD RLD LLO RLO LPO RPO LAO RAO FRONTAL POSTERIOR ANTERIOR ANTEROPOSTERIOR
            POSTEROANTERIOR OBL OBLIQUE DECUBITUS LEFT RIGHT SUPINE PRONE ERECT UPRIGHT SITTING STANDING SEMI PORTABLE
            BEDSIDE HORIZONTAL VERTICAL AXIAL SAGITTAL CORONAL TRANSVERSE COSTAL LORDOTIC APICAL INSPIRATION EXPIRATION
            INTERNAL EXTERNAL ROTATION FLEXION EXTENSION SWIMMERS SUNRISE TANGENTIAL AX FROG CROSSTABLE CROSS TABLE
            CC MLO ML LM LMO XCC XCCL XCCM FB SIO ISO CV AT RM TAN SPOT MAG
        """),
    ),
    'sex': ('PatientSex', _word_set('M F O')),
    'laterality': ('ImageLaterality', _word_set('L R B U')),
    'scanner': (
        'Manufacturer',
        _word_set("""
            AGFA GEVAERT ALOKA BRUKER CANON CARESTREAM CURVEBEAM DEL DETECTION ESAOTE FISCHER FONAR FUJI FUJIFILM PHOTO
            FILM GE G E GENDEX GMM HITACHI HOLOGIC IMAGING DYNAMICS KODAK EASTMAN KONICA MINOLTA LODOX LORAD LUMISYS
            MARCONI MINDRAY NEUSOFT OEC PHILIPS PICKER PLANMECA RAYENCE SAMSUNG MEDISON SECTRA SHIMADZU SIEMENS
            HEALTHINEERS SONOSITE STERLING SUPERSONIC SWISSRAY TOSHIBA TOSHIBA MEC TROPHY UNITED UIH VAREX VARIAN
            VATECH VIEWORKS VIDAR ZIEHM MEDICAL SYSTEMS SYSTEM HEALTH HEALTHCARE ELECTRONICS COMPANY CORPORATION CORP CO
            LTD INC GMBH AG NV N V BV AND DIAGNOSTICS DIGITAL
        """),
    ),
    'burned_in': ('BurnedInAnnotation', _word_set('YES NO')),
    'presentation_intent': ('PresentationIntentType', _word_set('FOR PROCESSING PRESENTATION')),
}
# Of these fields the known words alone leave, in upper case: name -> DICOM's name of the field, and the known words.
KNOWN_WORDS = {
    'image_type': (
        'ImageType',  # the defined terms of PS3.3 C.7.6.1.1.2, C.8.2.1.1.1 and C.8.16.1, and common ones of vendors
        _word_set("""
            ORIGINAL DERIVED PRIMARY SECONDARY LOCALIZER SCOUT TOPOGRAM TOPOGRAMM
            AXIAL SAGITTAL CORONAL OBLIQUE TRANSVERSE MPR REFORMATTED
            CPR MIP MINIP MAX MIN MEAN AVERAGE PROJECTION IMAGE VOLUME RENDERED SURFACE SCREEN SAVE OTHER
            NONE ADDITION SUBTRACTION DIVISION MULTIPLICATION RESAMPLED FILTERED MASKED STITCHED SINGLE BIPLANE PLANE
            WHOLE BODY STATIC DYNAMIC GATED TOMO RECON EMISSION TRANSMISSION TOMOSYNTHESIS GENERATED SYNTHETIC 2D 3D
            MAGNITUDE PHASE REAL IMAGINARY WATER FAT MOSAIC DIFFUSION PERFUSION ADC FA TRACEW ISOTROPIC ANISOTROPIC
            T1 T2 PD MAP VELOCITY FLOW ANGIO TIME DENSITY EFFECTIVE MONOENERGETIC ENERGY MATERIAL VIRTUAL CONTRAST
            MIXED WEIGHTED NORM DIS2D DIS3D SPI DOSE REPORT PROTOCOL REFERENCE QUALITY CONTROL POST PROCESSED STRESS
            REST ATTENUATION CORRECTED UNCORRECTED FUSED COLOR OVERLAY CT MR PET
        """),
    ),
    'series_description': (
        'SeriesDescription',
        _word_set("""
            ABDOMEN ANGIO ANGIOGRAPHY ANKLE AORTA AP ARTERIAL AX AXIAL BASELINE BODY BONE BRAIN BREAST C CALIBRATION CC
            CARDIAC CERVICAL CHEST CINE CONTRAST COR CORONAL CORONARY COW CSPINE CT CTA CTPA DELAYED DERIVED DIFFUSION
            DOSE DWI ADC DYNAMIC DYN ECHO ELBOW EXPIRATION FAT FEET FEMUR FILTER FINE FLAIR FOOT FRONTAL FS GADOLINIUM
            GRE HEAD HEART HIP HR HRCT INSPIRATION KIDNEY KNEE KUB L LAO LAT LATERAL LEFT LIVER LOCALIZER LSPINE LUMBAR
            LUNG LUNGS MEDIASTINUM MIP MINIP MLO MPR MR MRA MRI NATIVE NECK NON OBL OBLIQUE PA PARENCHYMA PATIENT PD PE
            PELVIS PERFUSION PET PHASE PLAIN PORTABLE PORTAL POST PRE PROTOCOL PULMONARY R RAO RECON REFORMAT RENAL
            REPORT RIGHT RIBS SAG SAGITTAL SCOUT SHOULDER SINUS SKULL SMOOTH SHARP SOFT SPINE STANDARD STD SUBTRACTION
            SUMMARY SUPINE PRONE ERECT SURVIEW SWI T1 T1W T2 T2W TE TR TIRM STIR SE TSE FSE THIN THICK THORACIC THORAX
            TISSUE TOF TOMO TOMOSYNTHESIS TOPO TOPOGRAM TRA TRANSVERSE TSPINE US ULTRASOUND VENOUS VIEW WITH WITHOUT
            TOPOGRAMM SCOUTVIEW NATIV LUNGE LUNGENFENSTER WEICHTEIL WEICHTEILFENSTER KNOCHEN KNOCHENFENSTER
            KONTRASTMITTEL POUMON THORACIQUE TORAX PULMON CABEZA CRANEO WHOLE WINDOW WRIST 2D 3D
        """),
    ),
}


class Header(NamedTuple):
    """The header of a file. The ids are plain, '' if the file has none; they must not leave the machine."""

    patient: str
    study: str
    instance: str
    accession: str
    frames: int
    attributes: dict[str, str | float]
    series: str = ''


def looks_like(data: bytes) -> bool:
    """Whether the bytes begin like a DICOM file: with its preamble or, in old files, without it."""
    return data[128:132] == b'DICM' or data.startswith(BARE)


def header(file: BinaryIO) -> Header:
    """Ids, attributes and number of frames, from one pass over the header.

    Raises Unreadable if the file holds no image: a report, a PDF, a presentation state, a DICOMDIR.
    """
    size = _size(file)
    if not looks_like(file.read(132)):
        raise Unreadable('no DICOM file' if size else 'an empty file')
    file.seek(0)
    with step('its header'):
        fields = open_file(file, header_only=True)
    modality = str(get(fields, 'Modality') or '').strip().upper()
    if modality in NO_PICTURES or not get(fields, 'Rows'):
        raise Unreadable(f'no picture but {NO_PICTURES.get(modality) or _kind(fields)}')

    def plain(tag: str) -> str:
        return str(get(fields, tag) or '').replace('\0', '').strip()

    return Header(
        plain('PatientID'), plain('StudyInstanceUID'), plain('SOPInstanceUID'), plain('AccessionNumber'),
        _frame_count(fields, size), _attributes(fields), plain('SeriesInstanceUID'),
    )  # fmt: skip


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """A step of reading a file. Whatever goes wrong in it becomes an Unreadable that names the step: 'its VOI LUT'.

    On damaged files pydicom and the decoders raise almost any exception. Their messages may quote fields of the file.
    """
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception:
        raise Unreadable(f'damaged DICOM: {what} cannot be read') from None


def frames(file: BinaryIO) -> int:
    """The number of frames of an open file, from its header. 1: the header names no number, or it cannot be read.

    A file that is damaged or no DICOM file counts as one frame. Reading its pixels then gives the reason.
    """
    try:
        return header(file).frames
    except Unreadable:
        return 1


def shape(data: bytes) -> tuple[int, int]:
    """Rows and columns, from the header. (0, 0): the header has none. Reading the pixels then gives the reason."""
    try:
        fields = open_file(io.BytesIO(data), header_only=True)
        rows, columns = int(fields.Rows), int(fields.Columns)
        headers.check_size(rows, columns)
        return rows, columns
    except Exception:
        return 0, 0


def attributes(data: bytes) -> dict[str, str | float]:
    """The attributes of a file: those of `ATTRIBUTES` and `KNOWN_WORDS`, age in years, spacing of the pixels in mm.

    A value with a word that is not in `ATTRIBUTES` is left out: such fields have held names of people.
    """
    try:
        return _attributes(open_file(io.BytesIO(data), header_only=True))
    except Exception:
        return {}


def open_file(file: BinaryIO, header_only: bool = False) -> Any:
    """The pydicom data set of a file. A file that does not name its transfer syntax is taken as uncompressed."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    _silence()
    _check_inflated(file)
    fields = pydicom.dcmread(file, force=True, stop_before_pixels=header_only)
    if 'TransferSyntaxUID' not in fields.file_meta:
        implicit, little = fields.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        fields.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return fields


def uid_name(uid: Any) -> str:
    """The standard's name of a UID; '' if it has none. So nothing else that the field may hold is passed on."""
    from pydicom.uid import UID_dictionary

    return UID_dictionary[str(uid)][0] if str(uid) in UID_dictionary else ''


def frame_bytes(fields: Any) -> int:
    """The bytes of an uncompressed frame. With single bits, incomplete bytes are not counted."""
    bits = int(fields.Rows) * int(fields.Columns) * int(fields.SamplesPerPixel) * int(fields.BitsAllocated)
    return bits * (2 if fields.PhotometricInterpretation == 'YBR_FULL_422' else 3) // 24


def several(value: Any) -> list[Any]:
    """The values of a field, which may hold one value or several."""
    return list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == 'MultiValue' else [value]


def first_value(value: Any) -> Any:
    """The first of several values, ready for `float`: a text has a point for its comma, '0.7' for ' 0,7'."""
    first = next(iter(several(value)), None)
    return first.strip().replace(',', '.') if isinstance(first, str) else first


def first_number(value: Any) -> float | None:
    """The first of several values. None: there is no value, or it is no finite number."""
    try:
        number = float(first_value(value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def grouped(file: Any, frame: int, sequence: str, name: str) -> Any:
    """A field of a frame: of its own functional group `sequence`, else of the shared one, else of the file.

    None: none of them has the field. Multi-frame files have these groups (PS3.3 C.7.6.16).
    """
    found = levels(file, frame, sequence, [name])
    return get(found[0], name) if found else None


def levels(file: Any, frame: int, sequence: str, names: Sequence[str]) -> list[Any]:
    """The data sets that have one of the fields `names`: that of the frame, then that of all frames, then the file.

    Fields that belong together, such as centre and width of a window, are read from one of them.
    """
    groups = _items(file, 'PerFrameFunctionalGroupsSequence')[frame : frame + 1]
    groups = [*groups, *_items(file, 'SharedFunctionalGroupsSequence')[:1]]
    found = [item for group in groups for item in _items(group, sequence)[:1]]
    return [level for level in (*found, file) if not all(_is_empty(get(level, name)) for name in names)]


def _items(fields: Any, sequence: str) -> Any:
    """The items of a sequence; none if it is missing, or no sequence."""
    items = get(fields, sequence)
    return items if type(items).__name__ == 'Sequence' else ()


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, '__len__') and len(value) == 0)


def _attributes(fields: Any) -> dict[str, str | float]:
    result: dict[str, str | float] = {}
    for name, (tag, allowed) in ATTRIBUTES.items():
        value = str(get(fields, tag) or '').strip()
        words = re.findall('[A-Z0-9]+', value.upper())
        if words and allowed.issuperset(words) and re.fullmatch(r'[A-Za-z0-9 ,.&/()_-]{1,40}', value):
            result[name] = value
    for name, (tag, known) in KNOWN_WORDS.items():
        value = get(fields, tag)
        text = ' '.join(map(str, value)) if type(value).__name__ == 'MultiValue' else str(value or '')
        if words := [word for word in re.findall('[A-Z0-9]+', text.upper()[:200]) if word in known]:
            result[name] = ' '.join(words)
    if (age := _years(str(get(fields, 'PatientAge') or ''))) is not None and age <= IMPOSSIBLE:
        result['age'] = min(age, OLDEST)
    if spacing := _spacing(fields, 0):
        result['spacing'] = spacing[0]
    return result


def pixel_aspect(fields: Any, frame: int) -> float:
    """The height of a pixel of a frame divided by its width, by its spacing or its stated ratio. 1: unknown."""
    height, width = _spacing(fields, frame) or _pair(get(fields, 'PixelAspectRatio')) or (1.0, 1.0)
    return height / width if abs(height / width - 1) > SQUARE else 1.0


def _spacing(fields: Any, frame: int) -> tuple[float, float] | None:
    """The distances between rows and between columns, mm. None: they are unknown, or impossible."""
    for tag in ('PixelSpacing', 'ImagerPixelSpacing', 'NominalScannedPixelSpacing'):
        pair = _pair(grouped(fields, frame, MEASURES, tag))
        if pair and max(pair) < 100:
            return pair
    return None


def _pair(value: Any) -> tuple[float, float] | None:
    """Two positive numbers; a field of one number gives it twice. None: it has none, or they differ too much."""
    values = several(value)
    first = first_number(values[:1])
    second = first_number(values[1:2]) if len(values) > 1 else first
    if first is None or second is None or min(first, second) <= 0:
        return None
    return (first, second) if max(first, second) <= LONGEST * min(first, second) else (first, first)


def _kind(fields: Any) -> str:
    """The class of an object without pixels, such as 'Encapsulated PDF Storage'."""
    uid = get(fields, 'SOPClassUID') or get(fields.file_meta, 'MediaStorageSOPClassUID') or ''
    return uid_name(uid) or 'an object of an unknown class'


def _frame_count(fields: Any, size: int) -> int:
    """NumberOfFrames. 1: it is no number, or more frames than a file of `size` bytes can hold."""
    try:
        count = int(get(fields, 'NumberOfFrames') or 1)
        return count if count == 1 or 0 < count * max(_least_bytes(fields), 1) <= size else 1
    except Exception:  # a damaged field may raise almost any exception
        return 1


def _least_bytes(fields: Any) -> int:
    """The fewest bytes of the file that a frame can take."""
    syntax = fields.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return 64  # no coding has a shorter header
    return frame_bytes(fields) // 1032 if syntax.is_deflated else frame_bytes(fields)  # 1032: deflate's best ratio


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _silence() -> None:
    """Keeps pydicom's warnings out of terminal and log: they quote the fields of a file."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    if not any(
        kind == 'ignore' and module and module.pattern == 'pydicom' for kind, _, _, module, _ in warnings.filters
    ):
        warnings.filterwarnings('ignore', module='pydicom')


def _check_inflated(file: BinaryIO) -> None:
    """Raises Unreadable if a deflated file is too large once inflated. The inflated bytes are not kept."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    start = file.tell()
    read_preamble(file, True)
    syntax = _read_file_meta_info(file).get('TransferSyntaxUID')
    if syntax != DeflatedExplicitVRLittleEndian:
        file.seek(start)
        return
    size = 0
    inflater, deflated = zlib.decompressobj(-zlib.MAX_WBITS), file.read()
    while deflated and not inflater.eof:
        size += len(inflater.decompress(deflated, 1 << 24))
        deflated = inflater.unconsumed_tail
        if size > headers.MOST_INFLATED:
            raise Unreadable(f'a deflated DICOM file of more than {headers.MOST_INFLATED >> 30} GB inside')
    file.seek(start)


def get(fields: Any, tag: str) -> Any:
    """The value of a field. None: it is missing, or pydicom cannot parse it."""
    try:
        return fields.get(tag)
    except Exception:
        return None


def _years(text: str) -> float | None:
    """DICOM's '061Y', '018M', '012W' or '003D' in years. Some releases have '61', also in years."""
    match = re.fullmatch(r'(\d{1,3})([YMWD]?)', text.strip().upper())
    return int(match[1]) / dict(Y=1, M=12, W=52.18, D=365.25)[match[2] or 'Y'] if match else None
