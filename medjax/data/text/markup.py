r"""Reports in the forms of other programs as plain text.

    plain('<p><b>FINDINGS:</b> Nodule &lt; 5 mm.<br/>Heart is normal.</p>')
    -> '**FINDINGS:** Nodule < 5 mm.\nHeart is normal.\n\n'

Systems of hospitals write reports as HTML or RTF, with entities of XML, with line breaks as '\n' or '\.br\' (HL7), or
with a bar for each line; language models write markdown. A text without such marks stays as it is.
"""

from __future__ import annotations

import html
import json
import re

_HIDDEN = re.compile(
    r'<!--.{0,5000}?-->|<(script|style|head|title)\b[^<>]{0,500}>.{0,5000}?</\1\s*>', re.IGNORECASE | re.DOTALL
)
# A tag ends here, perhaps after attributes such as class="x": 'a<b and c>d' is no tag
_END = (
    r'(?:\s+(?:[a-z_:][\w:.-]{0,60}\s*=\s*(?:"[^"<>]{0,500}"|\'[^\'<>]{0,500}\'|[^\s<>"\']{1,300})'
    r'|nowrap|noshade|compact|checked|disabled|hidden)){0,30}\s*/?>'
)
# Only names of HTML: '<DATE>' is a placeholder of de-identification, and '<5 mm' is a size.
_PARAGRAPH = re.compile(
    r'</?(?:p|div|table|ul|ol|dl|h[1-6]|section|article|header|footer|blockquote|pre|body|html|form)' + _END,
    re.IGNORECASE,
)
_LINE = re.compile(
    rf'<(?:br|hr|li){_END}|</?(?:tr|td|th|thead|tbody|tfoot|dt|dd){_END}|<(?:cr|lf|crlf|nl) ?/?>',
    re.IGNORECASE,
)
_BOLD = re.compile(rf'<(b|strong){_END}\s*([^<>]{{1,300}}?)\s*</\1\s*>', re.IGNORECASE)
_INLINE = re.compile(
    r'</?(?:i|em|u|s|strike|font|span|a|sup|sub|small|big|center|tt|code|li|img|col|colgroup|caption|meta|link'
    rf'|[owv]:[a-z]+){_END}|<(?:\?xml|!doctype)[^<>]{{0,500}}>',
    re.IGNORECASE,
)
_BOLD_LEFT = re.compile(rf'</?(?:b|strong){_END}', re.IGNORECASE)
_ENTITY = re.compile(
    r'&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d{0,2});|&(?:lt|gt|amp|nbsp|quot)(?![a-z;])', re.IGNORECASE
)
_HL7_BREAK = re.compile(r'\\\.(?:br|sp|ce|in|ti|fi|nf|sk)[+-]?\d*\\|\\X(?:0D|0A)+\\', re.IGNORECASE)
_HL7_HEX = re.compile(r'\\X((?:[0-9A-F]{2}){1,8})\\')
_HL7 = {'H': '', 'N': '', 'F': '|', 'S': '^', 'T': '&', 'R': '~', 'E': '\\'}
_ESCAPED = re.compile(r'(?P<path>\b[A-Za-z]:\\[\w\\.-]*)|(?<!\\)\\{1,2}(?:r\\{1,2}n|n|(?P<lone>r)|(?P<tab>t))')
_ESCAPED_MARK = re.compile(r'\\([*#_])')  # of markdown
_EXCEL_BREAK = re.compile(r'_x000[dD]_(?:\r?\n)?')
_RTF_GROUP = re.compile(r'\{\\(?:\*|fonttbl|colortbl|stylesheet|info|pict)(?:[^{}]|\{[^{}]{0,500}\}){0,5000}\}')
_RTF_BREAK = re.compile(r'\\(?:par|line|row|cell)\b ?')
_RTF_WORD = re.compile(r'\\[a-z]+-?\d* ?|(?<!\\)[{}]')
_UNDERLINED = re.compile(r'(?<!\w)__(?=[^\W_])([^_\n]{1,60}?)(?<=\S)__(?!\w)')
_ITALIC = re.compile(r'^([ \t>*-]*)_(?=[^\W_])([^_\n]{2,60}?:?)(?<=\S)_(?!\w)', re.MULTILINE)
# A caret between lines: after a sentence, before a heading, or doubled; not in '10^3' and not in 'Doe^Jane'
_CARET = re.compile(r'[ \t]*(?:\^{2,}|(?<=[.:;!?])\^|\^(?=[ \t]*[A-ZÀ-Þ][^\^\n:]{2,40}:))[ \t]*')
_WIDE_COLON = re.compile('(?<=[A-Za-z])\uff1a')  # of East Asian keyboards; Chinese headings keep theirs
_QUOTE = re.compile(r'^[ \t]*(?:>[ \t]?)+', re.MULTILINE)
_BAR = re.compile(r'[ \t]*\|[ \t]*')
_IN_WORD = re.compile(r'\w(?:\||~{1,2})\w')  # 'L4|L5'
_LEVELS = re.compile(
    r'(?<!\w)(?:[A-Z]?\d{1,2}|[A-Za-z])(?:\||~{1,2})(?=(?:[A-Z]?\d{1,2}|[A-Za-z])(?!\w))'
)  # never a break
_HEADING = re.compile(r'[A-ZÀ-Þ][^|~\n:]{2,40}:')
# A tilde between lines, not one before a number ('~5 mm'), in a rule or inside a sentence
_TILDE = re.compile(r'(?<!~)(?:(?<=[.:;!?])[ \t]*~{1,2}|~{1,2}(?=[ \t]*(?:[A-ZÀ-Þ]|$)))(?!~)(?![ \t]?\d)', re.MULTILINE)


def plain(text: str) -> str:
    """The text without the marks of its form: lines and paragraphs as line breaks, bold text between '**'."""
    text = _WIDE_COLON.sub(':', _of_json(text))
    if text.lstrip().startswith('{\\rtf'):
        text = _rtf(text)
    text = _ESCAPED_MARK.sub(r'\1', _hl7(text)) if '\\' in text else text
    text = _EXCEL_BREAK.sub('\n', text)
    for _ in range(3):  # entities may be escaped twice, and hide tags
        before = text
        if '<' in text:
            text = _without_tags(text)
        if '&' in text:
            text = _ENTITY.sub(lambda match: html.unescape(match[0]), text).replace('\xa0', ' ')
        if text == before:
            break
    if '__' in text:
        text = _UNDERLINED.sub(r'**\1**', text)
    if '_' in text:
        text = _ITALIC.sub(r'\1**\2**', text)
    if '>' in text and _is_quoted(text):
        text = _QUOTE.sub('', text)
    if '|' in text:
        text = _broken(_BAR, text)
    if '^' in text:
        text = _CARET.sub('\n', text)
    return _broken(_TILDE, text) if '~' in text else text


def _of_json(text: str) -> str:
    """The text of a JSON object of texts, or of lists of texts: 'KEY: value', one a line. Other texts stay."""
    if not (text.lstrip()[:1] == '{' and text.rstrip()[-1:] == '}'):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    lines = []
    for key, value in found.items() if isinstance(found, dict) else ():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) or one is None for one in values):
            return text
        lines.append(f'{key.replace("_", " ").upper()}: ' + '\n'.join(one for one in values if one))
    return '\n'.join(lines) or text


def _broken(mark: re.Pattern, text: str) -> str:
    """The text with a line break for each mark. A mark inside a word ('L4|L5') stays if the text has other breaks."""

    def is_inside(match: re.Match) -> bool:
        word = _IN_WORD.fullmatch(text, max(0, match.start() - 1), match.end() + 1)
        return bool(word) and not _HEADING.match(text, match.end())

    levels = {match.end() for match in _LEVELS.finditer(text)}
    breaks = '\n' in text.strip() or any(not is_inside(match) for match in mark.finditer(text))
    return mark.sub(lambda match: match[0] if match.end() in levels or (breaks and is_inside(match)) else '\n', text)


def _without_tags(text: str) -> str:
    text = _HIDDEN.sub('', text).replace('<![CDATA[', '').replace(']]>', '')
    text = _LINE.sub('\n', _PARAGRAPH.sub('\n\n', text))
    return _BOLD_LEFT.sub('', _BOLD.sub(r'**\2**', _INLINE.sub('', text)))


def _rtf(text: str) -> str:
    """The text of a document in Microsoft's rich text format."""
    text = _RTF_BREAK.sub('\n', _RTF_GROUP.sub('', text.replace('\r', '').replace('\n', ' ')))
    text = re.sub(r"\\'([0-9a-fA-F]{2})", lambda match: bytes.fromhex(match[1]).decode('cp1252', 'replace'), text)
    text = re.sub(r'\\u(\d{1,5})\??', lambda match: chr(int(match[1]) & 0xFFFF), text)
    return _RTF_WORD.sub('', text).replace('\\{', '{').replace('\\}', '}')


def _hl7(text: str) -> str:
    """The text without the escapes of HL7 and of JSON."""
    text = _HL7_BREAK.sub('\n', text)
    text = _HL7_HEX.sub(lambda match: bytes.fromhex(match[1]).decode('utf-8', 'replace'), text)
    text = re.sub(r'\\u00([0-9a-fA-F]{2})', lambda match: chr(int(match[1], 16)), text)  # of JSON
    text = re.sub(r'\\([HNFSTRE])\\', lambda match: _HL7[match[1]], text)
    breaks = [match for match in _ESCAPED.finditer(text) if _is_break(match)]
    all_are = bool(breaks) and '\n' not in text.strip()  # the text has no line breaks but escaped ones

    def plain_break(match: re.Match) -> str:
        if match['path'] or not (_is_break(match) or (all_are and not match['lone'])):
            return match[0]
        return ' ' if match['tab'] else '\n'

    return _ESCAPED.sub(plain_break, text)


def _is_break(match: re.Match) -> bool:
    """Whether an escape is a break by itself. 'hypo\\normal' and 'left\\right' have none."""
    if match['path']:
        return False
    before, after = match.string[: match.start()].rstrip(' ')[-1:], match.string[match.end() : match.end() + 1]
    if match['lone']:
        return before in tuple('.:;!?') and not after.islower()
    return before in ('', *'.:;!?') or not after.islower()


def _is_quoted(text: str) -> bool:
    """Whether most lines begin with '>'. In other texts, '> 5 mm' at the start of a line is a size."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 2 * sum(line.startswith('>') for line in lines) > len(lines)
