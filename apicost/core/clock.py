"""One reading of both clocks, to carry times from one to the other.

The kernel and the plugin stamp with CLOCK_MONOTONIC, which never jumps; reports want wall clock. All
times of a step are carried over by the same reading, so that differences between them stay exact even
when the wall clock was set in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Both clocks of a node at one instant.

    mono_ns: CLOCK_MONOTONIC. unix_ns: CLOCK_REALTIME, UTC.
    """

    mono_ns: int
    unix_ns: int

    def unix(self, mono_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Monotonic times as wall clock."""
        return mono_ns + np.int64(self.unix_ns - self.mono_ns)

    def mono(self, unix_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Wall clock as monotonic time."""
        return unix_ns - np.int64(self.unix_ns - self.mono_ns)
