"""The states of all recurrent layers of a model: slots, and the arrays that they number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..batch import Slots
from .kinds import Recurrent
from .pool import Pool
from .slotted import SNAPSHOTS, Part, Slotted
from .storage import Allocate, RecurrentStorage, Stored

KEPT = 1 << 30  # bytes of states and snapshots, up to which a pool without a size evicts none
LEAST, MOST = 6, 64  # slots of them, whatever their size


class RecurrentState(Stored[RecurrentStorage], Slotted):
    """A State.

    slots: of all sequences and snapshots; None: as many as are needed
    """

    def __init__(
        self,
        layers: Mapping[int, Recurrent],
        allocate: Allocate,
        *,
        slots: int | None,
        block: int,
    ) -> None:
        self.nbytes = sum(kind.nbytes for kind in layers.values())
        keep = min(max(KEPT // self.nbytes, LEAST), MOST)
        pool = Pool(slots) if slots is not None else Pool(keep=keep)
        # slots that sequences take, so that snapshots are seldom evicted
        others = 3 if slots is None else slots // 2
        super().__init__(pool, block, min(SNAPSHOTS, (slots or keep) - others))
        self.storages = {i: RecurrentStorage(kind, allocate) for i, kind in layers.items()}

    def arrays(self, parts: Sequence[Part], positions: Sequence[range]) -> Slots:
        """Which slot each sequence reads, and which one it writes."""
        self.grow()
        sources = np.array([part.source for part in parts], np.int32)
        return Slots(sources, np.array([part.target for part in parts], np.int32))
