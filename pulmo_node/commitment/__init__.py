"""Storage commitment (PS3.4 J), both ways.

`scp`: peers ask whether the node keeps what they sent. `scu`: peers report whether they keep the results.
"""

from __future__ import annotations

from pulmo_node.commitment.scp import CommitmentScp
from pulmo_node.commitment.scu import CommitmentScu

__all__ = ["CommitmentScp", "CommitmentScu"]
