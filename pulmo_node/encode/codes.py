"""Every coded concept that a result object uses: the only place where codes are written down.

Sources: DICOM PS3.16 (context groups and templates), the LIDC-IDRI ratings as QIICR encodes them in DICOM (Fedorov
et al., Scientific Data 2020), and the private scheme 99PULMO for what has no public code. A meaning that differs from
the dictionary on purpose says why beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import highdicom as hd
from pydicom.sr.coding import Code

from pulmo_models.types import Laterality

PRIVATE_SCHEME = "99PULMO"
LIDC_SCHEME = "99LIDCQIICR"

# Document titles, headings and containers
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
DIAGNOSTIC_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500 row 12; not in pydicom
FINDINGS = Code("121070", "DCM", "Findings")
PROCEDURE_DESCRIPTIONS = Code("121064", "DCM", "Current Procedure Descriptions")
CONCLUSIONS = Code("121076", "DCM", "Conclusions")

# Items of a report
FINDING = Code("121071", "DCM", "Finding")
COMMENT = Code("121106", "DCM", "Comment")
PROCEDURE_DESCRIPTION = Code("121065", "DCM", "Procedure Description")
CONCLUSION = Code("121077", "DCM", "Conclusion")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
CT_CHEST_REPORT = Code("24627-2", "LN", "CT Chest Report")
CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
PROCEDURES: Mapping[str, Code] = {"CR": CHEST_RADIOGRAPHY, "DX": CHEST_RADIOGRAPHY}  # by modality; else a chest CT
DEVICE = Code("121007", "DCM", "Device")
LANGUAGE = Code("en-GB", "RFC5646", "English (United Kingdom)")

# Status of the analysis (CID 6047)
ANALYSIS_SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
SUCCEEDED_WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
SUCCEEDED_WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")
NONE_SUCCEEDED = Code("111245", "DCM", "No algorithms succeeded; without findings")

# What a nodule is, and where
MORPHOLOGICALLY_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
NODULE = Code("27925004", "SCT", "Nodule")
LUNG = Code("39607008", "SCT", "Lung")
SIDES: Mapping[Laterality, Code] = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")

# Measurements and their units (UCUM). OHIF compares the meanings "Long Axis" and "Short Axis" literally, while the
# dictionary says "Long axis" and "Short axis".
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
VOLUME = Code("118565006", "SCT", "Volume")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
MEAN = Code("373098007", "SCT", "Mean")
MINIMUM = Code("255605001", "SCT", "Minimum")
MAXIMUM = Code("56851009", "SCT", "Maximum")
PROBABILITY_OF_CANCER = Code("111047", "DCM", "Probability of cancer")
MILLIMETRE = Code("mm", "UCUM", "mm")
CUBIC_MILLIMETRE = Code("mm3", "UCUM", "cubic millimeter")
HOUNSFIELD_UNIT = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNITS = Code("1", "UCUM", "no units")

# Findings in radiographs, each with its site, and what is said of them
HEART = Code("80891009", "SCT", "Heart")
PLEURA = Code("3120008", "SCT", "Pleura")
FILM_FINDINGS: Mapping[str, tuple[Code, Code]] = {
    "Atelectasis": (Code("46621007", "SCT", "Atelectasis"), LUNG),
    "Cardiomegaly": (Code("8186001", "SCT", "Cardiomegaly"), HEART),
    "Consolidation": (Code("95436008", "SCT", "Lung consolidation"), LUNG),
    "Edema": (Code("19242006", "SCT", "Pulmonary edema"), LUNG),
    "Pleural Effusion": (Code("60046008", "SCT", "Pleural effusion"), PLEURA),
}
PROBABILITY = Code("122157", "DCM", "Probability")
PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
GRADIENT_WEIGHTED_CLASS_ACTIVATION = Code("130403", "DCM", "Gradient-weighted class activation")
UNITS: Mapping[str, Code] = {"a": Code("a", "UCUM", "year"), "1": NO_UNITS, "%": PERCENT, "mm": MILLIMETRE}

# Program and equipment
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

# Private scheme 99PULMO
CANDIDATE_SCORE = Code("100", PRIVATE_SCHEME, "Nodule candidate score")
DETECTION_PROBABILITY = Code("101", PRIVATE_SCHEME, "Nodule detection probability")
DISTANCE_TO_PLEURA = Code("102", PRIVATE_SCHEME, "Distance to pleura")  # (121244, DCM) is to the chest wall alone
MALIGNANCY_BIAS = Code("110", PRIVATE_SCHEME, "Malignancy logit bias")
CONTRIBUTIONS: Mapping[str, Code] = {
    "subtlety": Code("111", PRIVATE_SCHEME, "Contribution of subtlety to malignancy logit"),
    "internalStructure": Code("112", PRIVATE_SCHEME, "Contribution of internal structure to malignancy logit"),
    "calcification": Code("113", PRIVATE_SCHEME, "Contribution of calcification to malignancy logit"),
    "sphericity": Code("114", PRIVATE_SCHEME, "Contribution of sphericity to malignancy logit"),
    "margin": Code("115", PRIVATE_SCHEME, "Contribution of margin to malignancy logit"),
    "lobulation": Code("116", PRIVATE_SCHEME, "Contribution of lobulation to malignancy logit"),
    "spiculation": Code("117", PRIVATE_SCHEME, "Contribution of spiculation to malignancy logit"),
    "texture": Code("118", PRIVATE_SCHEME, "Contribution of texture to malignancy logit"),
}

ESTIMATES: Mapping[str, Code] = {"CXR-Lung-Risk": Code("120", PRIVATE_SCHEME, "CXR-Lung-Risk score")}

# The eight LIDC-IDRI concepts
CONCEPTS: Mapping[str, Code] = {
    "subtlety": Code("C45992", "NCIt", "Subtlety score"),
    "internalStructure": Code("200", LIDC_SCHEME, "Internal structure"),
    "calcification": Code("C3672", "NCIt", "Calcification"),
    "sphericity": Code("400", LIDC_SCHEME, "Sphericity"),
    "margin": Code("C25563", "NCIt", "Margin"),
    "lobulation": Code("C62175", "NCIt", "Lobular Pattern"),
    "spiculation": Code("C28749", "NCIt", "Spiculation"),
    "texture": Code("C41144", "NCIt", "Texture"),
}

_MIDDLE = {n: Code(f"00{n}", LIDC_SCHEME, f"{n} out of 5") for n in (2, 3, 4)}

RATINGS: Mapping[str, Mapping[int, Code]] = {
    "subtlety": {
        1: Code("101", LIDC_SCHEME, "1 out of 5 (Extremely subtle)"),
        2: Code("102", LIDC_SCHEME, "2 out of 5 (Moderately subtle)"),
        3: Code("103", LIDC_SCHEME, "3 out of 5 (Fairly subtle)"),
        4: Code("104", LIDC_SCHEME, "4 out of 5 (Moderately obvious)"),
        5: Code("105", LIDC_SCHEME, "5 out of 5 (Obvious)"),
    },
    "internalStructure": {
        1: Code("C12471", "NCIt", "Soft tissue"),
        2: Code("C25278", "NCIt", "Fluid"),
        3: Code("C12472", "NCIt", "Adipose tissue"),
        4: Code("C73434", "NCIt", "Air"),
    },
    "calcification": {
        1: Code("RID35453", "RADLEX", "Popcorn calcification sign"),
        2: Code("302", LIDC_SCHEME, "Laminated appearance"),
        3: Code("RID5741", "RADLEX", "Solid appearance"),
        4: Code("304", LIDC_SCHEME, "Non-central appearance"),
        5: Code("RID5827", "RADLEX", "Central calcification"),
        6: Code("RID28473", "RADLEX", "Absent"),
    },
    "sphericity": {
        **_MIDDLE,
        1: Code("RID5811", "RADLEX", "linear"),
        3: Code("RID5800", "RADLEX", "ovoid"),
        5: Code("RID5799", "RADLEX", "round"),
    },
    "margin": {
        **_MIDDLE,
        1: Code("RID5709", "RADLEX", "Indistinct margin"),
        5: Code("RID5707", "RADLEX", "Circumscribed margin"),
    },
    "lobulation": {
        **_MIDDLE,
        1: Code("601", LIDC_SCHEME, "1 out of 5 (No lobulation)"),
        5: Code("605", LIDC_SCHEME, "5 out of 5 (Marked lobulation)"),
    },
    "spiculation": {
        **_MIDDLE,
        1: Code("701", LIDC_SCHEME, "1 out of 5 (No spiculation)"),
        5: Code("705", LIDC_SCHEME, "5 out of 5 (Marked spiculation)"),
    },
    "texture": {
        **_MIDDLE,
        1: Code("RID50153", "RADLEX", "non-solid pulmonary nodule"),
        3: Code("RID50152", "RADLEX", "part-solid pulmonary nodule"),
        5: Code("RID50151", "RADLEX", "solid pulmonary nodule"),
    },
}


def film_finding(label: str) -> tuple[Code, Code]:
    """A finding in radiographs and its site; one that is not known here gets a private code of its own."""
    return FILM_FINDINGS.get(label) or (_private(label), LUNG)


def estimate(label: str) -> Code:
    """The name of a number; one that is not known here gets a private code of its own."""
    return ESTIMATES.get(label) or _private(label)


def unit(ucum: str) -> Code:
    """A unit; one that is not known here means what its code says."""
    return UNITS.get(ucum) or Code(ucum, "UCUM", ucum)


def _private(label: str) -> Code:
    """The same label always has the same code: it is made of the label."""
    return Code(f"x{hashlib.sha256(label.encode()).hexdigest()[:12]}", PRIVATE_SCHEME, label[:64])


def coding_schemes() -> list[hd.coding_schemes.CodingSchemeIdentificationItem]:
    """Coding Scheme Identification Sequence (0008,0110): the schemes that a receiver cannot know (PS3.3 C.12.1)."""
    return [
        hd.coding_schemes.CodingSchemeIdentificationItem(
            PRIVATE_SCHEME, name="Pulmo Node", responsible_organization="Pulmo Node"
        ),
        hd.coding_schemes.CodingSchemeIdentificationItem(
            LIDC_SCHEME, name="LIDC-IDRI concepts", responsible_organization="QIICR"
        ),
    ]
