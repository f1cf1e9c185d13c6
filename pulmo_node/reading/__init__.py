"""DICOM reports and segmentations -> values, and those -> text and HTML.

Reads back what the node wrote, from the objects alone, and the TID 1500 reports of others. Input: Part 10 files.
Errors: `Permanent`. In reading order: `items` (one content item), `groups` (one measurement group), `report` (a whole
document), `segmentation` (SEG), `beside` (which files belong to a report), `layout` (what is shown of it),
`terminal` and `page` (the two ways to show it).
"""

from pulmo_node.reading.beside import ReadResult, read_result
from pulmo_node.reading.groups import Group
from pulmo_node.reading.layout import Block, lay_out
from pulmo_node.reading.page import page
from pulmo_node.reading.report import Report, read_report
from pulmo_node.reading.segmentation import Segmentation, read_segmentation
from pulmo_node.reading.terminal import print_blocks

__all__ = [
    "Block",
    "Group",
    "ReadResult",
    "Report",
    "Segmentation",
    "lay_out",
    "page",
    "print_blocks",
    "read_report",
    "read_result",
    "read_segmentation",
]
