"""Reports in forms that people's tables and files have; all words are made up. wants.json has the wanted sections."""

REPORTS = {
    'quoted markdown (RadioX-Labs/RADSet)': (
        '> **EXAMINATION:** Chest PA\n>\n> **FINDINGS:**\n> There is a small effusion.\n> The heart is normal.\n>\n'
        '> **IMPRESSION:**\n> Small effusion.\n'
    ),
    'HTML of a RIS': (
        '<p><b>FINDINGS:</b> Lungs are clear.<br/>Heart is normal.</p>'
        '<p><b>IMPRESSION:</b> No acute disease.</p>'
    ),
    'entities of HTML or XML': 'FINDINGS: Nodule &lt; 5 mm.&#13;&#10;IMPRESSION: Small nodule.',
    'mammography (openmed #1838)': (
        'HISTORY: Screening.\nBREAST COMPOSITION: Heterogeneously dense.\nFINDINGS: No mass.\n'
        'ASSESSMENT: BI-RADS 1: Negative.\nRECOMMENDATION: Routine screening in 1 year.'
    ),
    'lines joined by a bar (HL7 exports)': 'FINDINGS: Lungs clear.|IMPRESSION: Normal.',
}  # fmt: skip
