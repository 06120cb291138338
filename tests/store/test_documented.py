"""The operations that documents once had."""

import sqlite3

import pytest

from apicost.core.conformance.contract import Former
from apicost.core.naming.operations import Operation
from apicost.store.catalogue import CATALOGUE, LedgerError
from apicost.store.lake import Lake
from apicost.store.query import Ledger
from tests.store.batches import NOON, exchange, table, usage


def operation(name: str, **fields) -> Operation:
    known = {
        "api": "shop", "operation_id": name, "method": "GET", "path_template": f"/{name}", "spec": "shop.yaml",
        "pointer": f"/paths/~1{name}/get",
    }  # fmt: skip
    return Operation(**known | fields)


def keys(*operations: Operation) -> set:
    return {(o.api, o.method, o.path_template) for o in operations}


A, B, C = operation("a"), operation("b"), operation("c")


def formers(folder, *present: Operation, unreadable=()) -> list:
    with Ledger.open(folder) as ledger:
        return [(f.operation_id, f.last_unix_s) for f in ledger.former(keys(*present), unreadable=unreadable)]


def test_an_operation_that_left_the_documents_is_former(tmp_path):
    """With where it stood, and when it was missed; what is documented now is not, and never was what never was."""
    with Lake.open(tmp_path) as lake:
        lake.note_operations([A, B], NOON)
        lake.note_operations([A], NOON + 60)
        lake.note_operations([A], NOON + 120)
    with Ledger.open(tmp_path) as ledger:
        assert ledger.former(keys(A)) == (
            Former(
                api="shop", operation_id="b", method="GET", path_template="/b", spec="shop.yaml",
                pointer="/paths/~1b/get", last_unix_s=NOON + 60,
            ),
        )  # fmt: skip


def test_an_operation_that_came_back_is_not_former(tmp_path):
    """Coming back, perhaps elsewhere in the documents, makes it present; leaving again, former as of then."""
    moved = operation("b", spec="new.yaml", operation_id="b2")
    with Lake.open(tmp_path) as lake:
        for second, now in enumerate([[A, B], [A], [A, moved], [A]]):
            lake.note_operations(now, NOON + second)
            assert formers(tmp_path, *now) == {1: [("b", NOON + 1)], 3: [("b2", NOON + 3)]}.get(second, [])


def test_an_operation_that_moved_is_remembered_where_it_stood_last(tmp_path):
    """Another file or operationId under the same method and path: what is told is the latest."""
    with Lake.open(tmp_path) as lake:
        for second, now in enumerate([[A, B], [A, operation("b", operation_id="b2", spec="new.yaml")], [A]]):
            lake.note_operations(now, NOON + second)
    with Ledger.open(tmp_path) as ledger:
        (found,) = ledger.former(keys(A))
    assert (found.operation_id, found.spec, found.last_unix_s) == ("b2", "new.yaml", NOON + 2)


def test_coming_back_takes_the_former_end_away(tmp_path):
    """As it was before it left: documents that lost it since then lost it after the ledger last noted it."""
    with Lake.open(tmp_path) as lake:
        for second, now in enumerate([[A, B], [A], [A, B]]):
            lake.note_operations(now, NOON + second)
    assert formers(tmp_path, A) == [("b", NOON + 2)]


def test_documents_newer_than_the_ledger_tell_too(tmp_path):
    """What was removed since the documents were last noted was in them until then at least."""
    with Lake.open(tmp_path) as lake:
        lake.note_operations([A, B], NOON)
        lake.note_operations([A, B], NOON + 99)
    assert formers(tmp_path, A) == [("b", NOON + 99)]


def test_operations_of_an_unreadable_document_are_not_former(tmp_path):
    """A document that can't be read today has removed nothing."""
    with Lake.open(tmp_path) as lake:
        lake.note_operations([A, operation("x", spec="other.yaml")], NOON)
        lake.note_operations([A], NOON + 1)
    assert formers(tmp_path, A, unreadable={"other.yaml"}) == []
    assert formers(tmp_path, unreadable={"other.yaml"}) == [("a", NOON + 1)]


def test_of_two_operations_with_one_key_the_first_counts(tmp_path):
    """As in the index: templates that differ in base paths or files alone."""
    with Lake.open(tmp_path) as lake:
        lake.note_operations([B, operation("b", operation_id="second")], NOON)
    assert formers(tmp_path) == [("b", NOON)]


def test_half_a_surrogate_pair_is_left_out(tmp_path):
    """A document can name what no request can have and no database store."""
    with Lake.open(tmp_path) as lake:
        lake.note_operations([operation("\ud800"), A], NOON)
    assert formers(tmp_path) == [("a", NOON)]


def as_form_1(folder) -> None:
    """The catalogue as it was before operations were noted."""
    with sqlite3.connect(folder / CATALOGUE) as connection:
        connection.executescript("drop table documented; pragma user_version = 1;")
    connection.close()


def test_a_ledger_of_the_form_before_opens_and_is_upgraded(tmp_path):
    """Read as it is, with no former operations and no shapes; opened for writing it has all tables and its rows."""
    with Lake.open(tmp_path) as lake:
        lake.commit(["a"], {"exchanges": table([exchange()]), "usage": usage(exchange())})
    as_form_1(tmp_path)
    with Ledger.open(tmp_path) as ledger:
        assert ledger.former(set()) == () and ledger.shapes(0, NOON * 2).num_rows == 0
        assert ledger.samples(0, NOON * 2).num_rows == 0
        assert ledger.usage((0, NOON * 2), by=[]).column("calls").to_pylist() == [1]
    with Lake.open(tmp_path) as lake:
        assert lake.commit(["a"], {}).repeated, "what was consumed is known"
        lake.note_operations([A], NOON)
    assert formers(tmp_path) == [("a", NOON)]
    with sqlite3.connect(tmp_path / CATALOGUE) as connection:
        assert connection.execute("pragma user_version").fetchone() == (2,)


def test_a_form_to_come_is_refused(tmp_path):
    """Nobody guesses what a newer apicost wrote."""
    Lake.open(tmp_path).close()
    with sqlite3.connect(tmp_path / CATALOGUE) as connection:
        connection.execute("pragma user_version = 3")
    connection.close()
    for door in (Lake.open, Ledger.open):
        with pytest.raises(LedgerError, match="form 3"):
            door(tmp_path)
