"""DICOM files to pixels, as a reader of films sees them: rescaled, windowed, bright = dense; and the few facts of the
header that may leave the file. Nothing else does: names, numbers, dates and free comments stay where they are, and of
the fields that leave, only words that are known here, since people have been typed into every field.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from medjax.data.images import headers
from medjax.data.types import Unreadable

BARE = (b'\x02\x00\x00\x00', b'\x08\x00')  # how files without the preamble begin: with group 0002 or 0008
NO_PICTURES = {  # Modality -> what the object is; some of these have pixel data that show nothing to a reader
    'SEG': 'a segmentation',
    'RTDOSE': 'a dose distribution',
    'REG': 'a registration',
    'RWV': 'a map of real-world values',
}
OLDEST, IMPOSSIBLE = 90.0, 120.0  # years; so few are older that they are told as 90; releases hold 148 and 411
COLOURS = ('MONOCHROME1', 'MONOCHROME2', 'PALETTE COLOR', 'RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
NEEDED = ('Rows', 'Columns', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated')


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDS = {  # what leaves a header: our name -> DICOM's, and the words that its value may consist of, in any case
    'modality': (
        'Modality',  # PS3.3 C.7.3.1.1.1
        _words("""
            AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
            IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF
            RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP
            TG US VA XA XAPROTOCOL XC
        """),
    ),
    'body_part': (
        'BodyPartExamined',  # the terms of PS3.16 annex L that are common, with spaces and without
        _words("""
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
        _words("""
            AP PA L R LL RL LAT LATERAL LLD RLD LLO RLO LPO RPO LAO RAO FRONTAL POSTERIOR ANTERIOR ANTEROPOSTERIOR
            POSTEROANTERIOR OBL OBLIQUE DECUBITUS LEFT RIGHT SUPINE PRONE ERECT UPRIGHT SITTING STANDING SEMI PORTABLE
            BEDSIDE HORIZONTAL VERTICAL AXIAL SAGITTAL CORONAL TRANSVERSE COSTAL LORDOTIC APICAL INSPIRATION EXPIRATION
            INTERNAL EXTERNAL ROTATION FLEXION EXTENSION SWIMMERS SUNRISE TANGENTIAL AX FROG CROSSTABLE CROSS TABLE
            CC MLO ML LM LMO XCC XCCL XCCM FB SIO ISO CV AT RM TAN SPOT MAG
        """),
    ),
    'sex': ('PatientSex', _words('M F O')),
    'laterality': ('ImageLaterality', _words('L R B U')),
    'scanner': (
        'Manufacturer',
        _words("""
            AGFA GEVAERT ALOKA BRUKER CANON CARESTREAM CURVEBEAM DEL DETECTION ESAOTE FISCHER FONAR FUJI FUJIFILM PHOTO
            FILM GE G E GENDEX GMM HITACHI HOLOGIC IMAGING DYNAMICS KODAK EASTMAN KONICA MINOLTA LODOX LORAD LUMISYS
            MARCONI MINDRAY NEUSOFT OEC PHILIPS PICKER PLANMECA RAYENCE SAMSUNG MEDISON SECTRA SHIMADZU SIEMENS
            HEALTHINEERS SONOSITE STERLING SUPERSONIC SWISSRAY TOSHIBA TOSHIBA MEC TROPHY UNITED UIH VAREX VARIAN
            VATECH VIEWORKS VIDAR ZIEHM MEDICAL SYSTEMS SYSTEM HEALTH HEALTHCARE ELECTRONICS COMPANY CORPORATION CORP CO
            LTD INC GMBH AG NV N V BV AND DIAGNOSTICS DIGITAL
        """),
    ),
    'burned_in': ('BurnedInAnnotation', _words('YES NO')),
}


class Header(NamedTuple):
    """What is known of a file without its pixels. The ids are plain, '' where there is none; never tell them."""

    patient: str
    study: str
    instance: str
    accession: str
    frames: int
    facts: dict[str, str | float]


def looks_like(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does, with its preamble or, as old files, without."""
    return data[128:132] == b'DICM' or data.startswith(BARE)


def header(file: BinaryIO) -> Header:
    """Ids, facts and the number of pictures, from one pass over the header. Unreadable where it holds no picture:
    a report, a PDF, a presentation state, a DICOMDIR."""
    size = _size(file)
    if not looks_like(file.read(132)):
        raise Unreadable('no DICOM file' if size else 'an empty file')
    file.seek(0)
    try:
        found = _open(file, header_only=True)
    except Unreadable:
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise Unreadable(f'a damaged DICOM header: {type(error).__name__}') from None
    modality = str(_get(found, 'Modality') or '').strip().upper()
    if modality in NO_PICTURES or not _get(found, 'Rows'):
        raise Unreadable(f'no picture but {NO_PICTURES.get(modality) or _kind(found)}')

    def plain(tag: str) -> str:
        return str(_get(found, tag) or '').replace('\0', '').strip()

    return Header(
        plain('PatientID'), plain('StudyInstanceUID'), plain('SOPInstanceUID'), plain('AccessionNumber'),
        _frames(found, size), _facts(found),
    )  # fmt: skip


def frames(file: BinaryIO) -> int:
    """How many pictures an open file holds; 1 where it does not say. Reads its header alone; damaged files count as
    one, and so do those that are no DICOM: what is wrong with them is told when their pixels are read."""
    try:
        return header(file).frames
    except Unreadable:
        return 1


def shape(data: bytes) -> tuple[int, int]:
    """Rows and columns, from the header alone; (0, 0) where it does not say."""
    try:
        file = _open(io.BytesIO(data), header_only=True)
        rows, columns = int(file.Rows), int(file.Columns)
        headers.check_size(rows, columns)
        return rows, columns
    except Exception:  # what is wrong with it is told when its pixels are read
        return 0, 0


def facts(data: bytes) -> dict[str, str | float]:
    """Modality, body part, view, side, sex, age in years, scanner, spacing in mm, and whether text is burned in
    ('YES'). A value with a word that is not among WORDS is left out: such fields have held names.
    """
    try:
        return _facts(_open(io.BytesIO(data), header_only=True))
    except Exception:
        return {}


@np.errstate(all='ignore')  # what is no number is looked for at the end
def pixels(data: bytes, frame: int = 0) -> np.ndarray:
    """uint8 or uint16 [H,W,C]: more than 8 stored bits become full-scale 16, so that none is lost.

    Grey: modality LUT or rescale, then the first VOI LUT or window (without one: the frame's own range, padding
    left out), then MONOCHROME1 inverted (DICOM PS3.3 C.11.1, C.11.2). Colour and palettes: 8 bits, RGB.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

    file = _open(io.BytesIO(data))
    if 'PixelData' not in file:
        raise Unreadable('a DICOM file without pixel data')
    if missing := [name for name in NEEDED if file.get(name) is None]:
        raise Unreadable(f'a DICOM file whose header lacks {", ".join(missing)}')
    kind, bits = str(file.PhotometricInterpretation), int(file.BitsAllocated)
    if kind not in COLOURS:  # then it may be any text
        raise Unreadable('a DICOM file in an unknown colour space')
    _check_plugins(file)
    stored = _stored(file, frame)
    if kind == 'PALETTE COLOR':
        colours = apply_color_lut(stored, file)[..., :3]
        return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours.astype(np.uint8)
    if stored.ndim == 3 and stored.shape[2] == 3 and stored.dtype == np.uint8:
        return stored
    if kind not in ('MONOCHROME1', 'MONOCHROME2') or stored.ndim != 2:
        raise Unreadable(f'a DICOM file in {kind} of {bits} bits; grey, palettes and 8-bit colour can be read')

    values = np.asarray(apply_modality_lut(stored, file), np.float64)
    if file.get('VOILUTSequence'):
        lut = file.VOILUTSequence[0]
        shown = apply_voi(np.asarray(apply_modality_lut(stored, file)), file) / (2.0 ** lut.LUTDescriptor[2] - 1)
    elif (window := _window(file)) is not None:
        shown = _windowed(values, *window)
    else:
        picture = values[~_padding(stored, file)]
        low, high = (picture.min(), picture.max()) if picture.size else (0.0, 1.0)
        shown = (values - low) / max(high - low, 1e-12)
    if not np.isfinite(shown).all():
        raise Unreadable('a DICOM file whose rescaling or window makes no numbers of its pixels')
    shown = np.clip(shown, 0.0, 1.0)
    if kind == 'MONOCHROME1':
        shown = 1.0 - shown
    scale, kept = (255, np.uint8) if int(file.get('BitsStored') or bits) <= 8 else (65_535, np.uint16)
    return np.round(shown * scale).astype(kept)[..., None]


def _facts(file: Any) -> dict[str, str | float]:
    found: dict[str, str | float] = {}
    for name, (tag, known) in WORDS.items():
        value = str(_get(file, tag) or '').strip()
        words = re.findall('[A-Z0-9]+', value.upper())
        if words and known.issuperset(words) and re.fullmatch(r'[A-Za-z0-9 ,.&/()_-]{1,40}', value):
            found[name] = value
    if (age := _years(str(_get(file, 'PatientAge') or ''))) is not None and age <= IMPOSSIBLE:
        found['age'] = min(age, OLDEST)
    for tag in ('PixelSpacing', 'ImagerPixelSpacing', 'NominalScannedPixelSpacing'):
        spacing = _first(_get(file, tag))
        if spacing is not None and 0 < spacing < 100:
            found['spacing'] = spacing
            break
    return found


def _kind(file: Any) -> str:
    """What an object without pixels is, by its class: 'Encapsulated PDF Storage'."""
    given = _get(file, 'SOPClassUID') or _get(file.file_meta, 'MediaStorageSOPClassUID') or ''
    return _name(given) or 'an object of an unknown class'


def _name(uid: Any) -> str:
    """The standard's name of a UID; '' where it has none, whatever the field holds then."""
    from pydicom.uid import UID_dictionary

    return UID_dictionary[str(uid)][0] if str(uid) in UID_dictionary else ''


def _frames(file: Any, size: int) -> int:
    """NumberOfFrames, or 1 where it is none or more than the file has room for."""
    try:
        count = int(_get(file, 'NumberOfFrames') or 1)
        return count if count == 1 or 0 < count * max(_least_bytes(file), 1) <= size else 1
    except (ValueError, TypeError, AttributeError, OverflowError):
        return 1


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _open(file: BinaryIO, header_only: bool = False) -> Any:
    """The data set. A file that does not say how it is coded is taken as it could be read: uncompressed."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    _silence()
    _check_inflated(file)
    found = pydicom.dcmread(file, force=True, stop_before_pixels=header_only)
    if 'TransferSyntaxUID' not in found.file_meta:
        implicit, little = found.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return found


def _silence() -> None:
    """What pydicom complains of quotes the file's fields: it reaches neither terminal nor log."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    if not any(
        kind == 'ignore' and module and module.pattern == 'pydicom' for kind, _, _, module, _ in warnings.filters
    ):
        warnings.filterwarnings('ignore', module='pydicom')


def _check_inflated(file: BinaryIO) -> None:
    """Raises Unreadable for a deflated file that is too large inside, without keeping what is inside."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    start = file.tell()
    read_preamble(file, True)
    syntax = _read_file_meta_info(file).get('TransferSyntaxUID')
    if syntax != DeflatedExplicitVRLittleEndian:
        file.seek(start)
        return
    size = 0
    inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), file.read()
    while left and not inflater.eof:
        size += len(inflater.decompress(left, 1 << 24))
        left = inflater.unconsumed_tail
        if size > headers.MOST_INFLATED:
            raise Unreadable(f'a deflated DICOM file of more than {headers.MOST_INFLATED >> 30} GB inside')
    file.seek(start)


def _least_bytes(file: Any) -> int:
    """The bytes of a file, at least, that a frame takes; a file cannot hold more frames than that."""
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return 64  # no coding has a shorter header
    return _frame_bytes(file) // 1032 if syntax.is_deflated else _frame_bytes(file)  # what deflate reaches at best


def _frame_bytes(file: Any) -> int:
    """The bytes of an uncompressed frame, which are whole or, of single bits, rounded down."""
    bits = int(file.Rows) * int(file.Columns) * int(file.SamplesPerPixel) * int(file.BitsAllocated)
    return bits * (2 if file.PhotometricInterpretation == 'YBR_FULL_422' else 3) // 24


def _stored(file: Any, frame: int) -> np.ndarray:
    """The values of a frame as they are stored: [H,W] or [H,W,3]. Sizes and coding are checked before it is decoded."""
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    rows, columns, samples = int(file.Rows), int(file.Columns), int(file.SamplesPerPixel)
    count = int(file.get('NumberOfFrames') or 1)
    syntax, data = file.file_meta.TransferSyntaxUID, file.PixelData
    headers.check_size(rows, columns)
    if samples not in (1, 3):
        raise Unreadable(f'a DICOM file of {samples} samples a pixel; 1 and 3 can be read')
    if not syntax.is_encapsulated:
        if len(data) < count * _frame_bytes(file):
            raise Unreadable(f'damaged DICOM: it is cut short: {len(data)} bytes of {count * _frame_bytes(file)}')
        return pixel_array(file, index=frame)

    tables = ('ExtendedOffsetTable', 'ExtendedOffsetTableLengths')
    offsets = tuple(file[name].value for name in tables) if all(name in file for name in tables) else None
    coded = get_frame(data, frame, number_of_frames=count, extended_offsets=offsets)
    if syntax != RLELossless:
        _check_coded(coded, (rows, columns, samples))
    # What was checked is what is decoded, alone.
    file.PixelData, file.NumberOfFrames = encapsulate([coded]), 1
    for name in tables:
        file.pop(name, None)
    # Damaged data end pylibjpeg-rle in a panic, which is no Exception; pydicom's own decoder is quick enough.
    return pixel_array(file, index=0, decoding_plugin='pydicom' if syntax == RLELossless else '')


def _check_coded(coded: bytes, size: tuple[int, int, int]) -> None:
    """Raises Unreadable where a compressed picture has another size (height, width, channels), or is damaged."""
    if coded[:2] == b'\xff\xd8':
        jpeg = headers.jpeg(coded)
        told = jpeg.height, jpeg.width, jpeg.channels
    else:
        jpeg, told = None, headers.jpeg2000(coded)
    if told != size:
        its, coded_size = (' x '.join(map(str, (width, height, samples))) for height, width, samples in (size, told))
        raise Unreadable(f'a DICOM file of {its} whose coded picture has {coded_size}')
    strictly = headers.STRICT if size[2] == 1 else headers.STRICT - {headers.LOSSLESS}
    if jpeg and jpeg.bits == 8 and jpeg.process in strictly:
        import simplejpeg

        # For its strictness: the decoder of pylibjpeg, which gives the pixels, fills what is missing.
        simplejpeg.decode_jpeg(coded, colorspace='GRAY')


def _check_plugins(file: Any) -> None:
    """Raises Unreadable with what to install where no decoder for the file's compression is there."""
    from pydicom.pixels import get_decoder

    syntax = file.file_meta.TransferSyntaxUID
    try:
        missing = not get_decoder(syntax).is_available
    except NotImplementedError:
        told = f'the coding {_name(syntax)}' if _name(syntax) else 'an unknown coding'
        raise Unreadable(f'a DICOM file in {told}, which nothing here decodes') from None
    if missing:
        raise Unreadable(f"a DICOM file in {_name(syntax)}; its decoder comes with: pip install 'medjax[dicom]'")


def _get(file: Any, tag: str) -> Any:
    """A field's value, None where it is missing or cannot be understood."""
    try:
        return file.get(tag)
    except Exception:
        return None


def _years(text: str) -> float | None:
    """DICOM's '061Y', '018M', '012W', '003D' in years; '61', as some releases have it, is years too."""
    match = re.fullmatch(r'(\d{1,3})([YMWD]?)', text.strip().upper())
    return int(match[1]) / dict(Y=1, M=12, W=52.18, D=365.25)[match[2] or 'Y'] if match else None


def _window(file: Any) -> tuple[float, float, str] | None:
    """The first window: (centre, width, function); None where the file has none that works."""
    centre, width = (_first(file.get(name)) for name in ('WindowCenter', 'WindowWidth'))
    function = str(file.get('VOILUTFunction') or 'LINEAR').upper()
    if centre is None or width is None or width <= 0 or (function == 'LINEAR' and width < 1):
        return None
    return centre, width, function


def _first(value: Any) -> float | None:
    """The first of several values, None where there is none that is a number."""
    if isinstance(value, (list, tuple)) or type(value).__name__ == 'MultiValue':
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The part of the display range that PS3.3 C.11.2.1.2 gives each value, 0 to 1 (before clipping)."""
    if function == 'SIGMOID':
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700, 700)))
    if function == 'LINEAR_EXACT':
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1.0, 1e-12) + 0.5


def _padding(stored: np.ndarray, file: Any) -> np.ndarray:
    """Where the detector saw nothing and the file says so."""
    low = file.get('PixelPaddingValue')
    if low is None:
        return np.zeros(stored.shape, bool)
    high = file.get('PixelPaddingRangeLimit', low)
    return (stored >= min(low, high)) & (stored <= max(low, high))
