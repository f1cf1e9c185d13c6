"""Names of the files that `pulmo-node analyze` writes."""

from __future__ import annotations

from pulmo_node.offline import file_names


def test_the_only_object_of_its_kind_bears_its_name_and_several_are_numbered() -> None:
    kinds = ["sr", "seg", "key-image", "gsps", "key-image"]
    assert file_names(kinds) == ["sr.dcm", "seg.dcm", "key-image-1.dcm", "gsps.dcm", "key-image-2.dcm"]
