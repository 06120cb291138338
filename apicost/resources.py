"""Files that come with apicost: the probe's source, the plugin, sample documents, the recorded run.

In a checkout they lie in the top-level folders; a wheel carries them under `apicost/data/` (setup.py
copies them there).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder `bpf`, `apisix`, `specs` or `sample-run`, wherever this installation has it.

    Raises FileNotFoundError naming both places looked at.
    """
    roots = (_PACKAGE / "data", _PACKAGE.parent)
    places = [root / above / name for root in roots for above in ("", "specs")]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{name}: none of {', '.join(map(str, places))} exists; reinstall apicost")
