"""What took a scan: CT, MR, … A model of one of them finds nothing it knows in another.

Names are DICOM's (PS3.3 C.7.3.1.1.1), the values of its element Modality.
"""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "unknown"
_WORDS = {  # what data sets call their channels
    **dict.fromkeys(("CT", "CBCT"), "CT"),
    **dict.fromkeys(("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T1N", "T2", "T2W"), "MR"),
    **dict.fromkeys(("T2F", "FLAIR", "DWI", "ADC", "PD", "SWI", "BOLD"), "MR"),
    **dict.fromkeys(("PT", "PET"), "PT"),
    **dict.fromkeys(("US", "ULTRASOUND"), "US"),
}
_SAME = {"CR": "DX", "RG": "DX"}  # X-ray images, whatever detected them
_SAYS_NOTHING = ("", "OT", "SC", UNKNOWN)


def of_channels(names: Sequence[object]) -> str:
    """The modality of channels called so in a dataset.json: ["T1", "FLAIR"] → "MR"; "" where one is
    not known, or where they differ."""
    found = {_WORDS.get(str(name).upper().replace("-", "").replace("_", ""), "") for name in names}
    return found.pop() if len(found) == 1 else ""


def common(modalities: Sequence[str]) -> str:
    """That of all scans of a data set; "" where they differ, or where one doesn't say."""
    found = {_SAME.get(modality, modality) for modality in modalities}
    alone = found.pop() if len(found) == 1 else ""
    return "" if alone in _SAYS_NOTHING else alone


def mismatch(own: str, known: str) -> str:
    """Why a scan is none for a model of `known` scans, for its own header says otherwise; "" where
    that is not so, or where one of both isn't known."""
    own, known = (_SAME.get(modality, modality) for modality in (own, known))
    if own == known or own in _SAYS_NOTHING or known in _SAYS_NOTHING:
        return ""
    return f"its header says {own}, and the model was trained on {known}"
