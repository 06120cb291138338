"""The recorded run and its exports, byte for byte: same in, same out, however the input is cut and ordered.

A change of these files is a change of what customers are told: look at the difference, then write them anew with
APICOST_WRITE_GOLDEN=1.
"""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apicost import config, resources, run
from apicost.commands import export
from apicost.core.conformance import shapes
from apicost.store.query import Ledger

GOLDEN = Path(__file__).parent / "sample-run"
MONTH = "2026-11"


def replayed(recording: Path, folder: Path, steps: int) -> dict[str, bytes]:
    """Both exports of a recording."""
    settings = config.load(resources.folder("sample-run") / "apicost.yaml")
    run.replay(recording, folder / "ledger", settings, steps=steps)
    out = {}
    for what in ("usage", "charges"):
        path = folder / f"{what}.csv"
        prices = str(settings.prices)
        options = [what, "--month", MONTH, "-o", str(path), "--ledger", str(folder / "ledger"), "--prices", prices]
        assert export.main(options) == 0
        out[what] = path.read_bytes()
    return out


def test_the_recorded_run_gives_its_golden_exports(tmp_path):
    """The exports of the recorded run are those in the repository."""
    got = replayed(resources.folder("sample-run"), tmp_path, steps=1)
    if os.environ.get("APICOST_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        for name, content in got.items():
            (GOLDEN / f"{name}.csv").write_bytes(content)
    for name, content in got.items():
        assert content == (GOLDEN / f"{name}.csv").read_bytes(), f"{name}.csv differs"


@pytest.mark.parametrize(("steps", "seed"), [(1, 1), (2, 2), (7, 3), (40, 4)])
def test_order_and_splits_of_the_input_change_nothing(tmp_path, steps, seed):
    """Rows shuffled, cut into files at random places and replayed in many steps: the same bytes come out."""
    recording = tmp_path / "recording"
    shuffled(resources.folder("sample-run"), recording, np.random.default_rng(seed))
    got = replayed(recording, tmp_path, steps)
    for name, content in got.items():
        assert content == (GOLDEN / f"{name}.csv").read_bytes(), f"{name}.csv differs"


def test_replaying_twice_counts_once(tmp_path):
    """A recording that a ledger already holds changes nothing."""
    first = replayed(resources.folder("sample-run"), tmp_path, steps=1)
    assert replayed(resources.folder("sample-run"), tmp_path, steps=1) == first


def test_a_replay_leaves_shapes_and_the_operations_of_its_documents(tmp_path):
    """The same shapes however it is cut; added up they are its usage. What the documents have is remembered."""
    settings = config.load(resources.folder("sample-run") / "apicost.yaml")
    found = []
    for steps in (1, 9):
        run.replay(resources.folder("sample-run"), tmp_path / str(steps), settings, steps=steps)
        with Ledger.open(tmp_path / str(steps)) as ledger:
            shape = shapes.merge([ledger.shapes(0, 1 << 40)])
            assert shapes.usage_of(shape).equals(ledger.usage((0, 1 << 40)))
            found.append((shape, ledger.former(())))
    assert found[0] == found[1]
    (shape, operations) = found[0]
    assert len(shape) > 30 and {"getOrder", "listOrders"} <= {former.operation_id for former in operations}


def shuffled(source: Path, target: Path, rng: np.random.Generator) -> None:
    """A copy of a recording with its rows in another order and in several files."""
    target.mkdir()
    shutil.copy(source / "clock.json", target)
    shutil.copy(source / "completeness.parquet", target)
    for name in ("flows", "lines"):
        table = pq.ParquetFile(source / f"{name}.parquet").read()
        table = table.take(pa.array(rng.permutation(table.num_rows)))
        cuts = [0, *sorted(rng.integers(0, table.num_rows, 3).tolist()), table.num_rows]
        (target / name).mkdir()
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            if end > start:
                pq.write_table(table.slice(start, end - start), target / name / f"{number}.parquet")
