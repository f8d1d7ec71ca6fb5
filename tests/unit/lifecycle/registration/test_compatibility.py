import json
from dataclasses import replace

import pytest
from tiny_bundle import tiny_contents

from raymlops.arrays import Column
from raymlops.bundle.write import write_bundle
from raymlops.errors import BundleError, RefusedError, UsageError
from raymlops.lifecycle.registration.compatibility import check_compatible, check_redacted, compatible, signature_of
from raymlops.signature import Signature

LIVE = Signature(
    inputs=(
        Column("age", "float", nullable=True),
        Column("count", "int"),
        Column("paid", "bool"),
        Column("place", "string", categories=("a", "b"), unknown="reject"),
        Column("image", "float", shape=(8, 8)),
    ),
    outputs=(Column("score", "float"), Column("kind", "string")),
)


def changed(name, side="inputs", **fields):
    """Return the live signature with one column changed."""
    columns = tuple(replace(item, **fields) if item.name == name else item for item in getattr(LIVE, side))
    return replace(LIVE, **{side: columns})


def test_the_same_signature_and_wider_ones_can_stand_in():
    """What it accepts beyond that, and in which order, is nobody's trouble."""
    assert compatible(LIVE, LIVE) == []
    assert compatible(LIVE, replace(LIVE, inputs=LIVE.inputs[::-1], outputs=LIVE.outputs[::-1])) == []
    assert compatible(LIVE, changed("place", categories=("a", "b", "c"))) == []
    assert compatible(LIVE, changed("place", unknown="accept")) == []
    assert compatible(LIVE, changed("place", nullable=True)) == []
    assert compatible(changed("age", nullable=False), LIVE) == []
    assert compatible(LIVE, changed("age", description="in years")) == []


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (replace(LIVE, inputs=LIVE.inputs[1:]), "input 'age' is no longer accepted"),
        (replace(LIVE, inputs=(*LIVE.inputs, Column("new", "float", nullable=True))), "input 'new' is new"),
        (changed("age", nullable=False), "input 'age' may no longer be null"),
        (changed("count", type="float"), "input 'count' is float, not int"),
        (changed("count", nullable=True), "input 'count' may be null now"),
        (changed("paid", nullable=True), "input 'paid' may be null now"),
        (changed("image", shape=(None, 8)), "input 'image' has shape (any, 8), not (8, 8)"),
        (changed("place", categories=("b", "c")), "input 'place' rejects 'a'"),
        (changed("place", max_length=5), "input 'place' may have a length of at most 5, not any"),
        (changed("score", "outputs", type="int"), "output 'score' is int, not float"),
        (changed("score", "outputs", nullable=True), "output 'score' may be null now"),
        (changed("score", "outputs", shape=(2,)), "output 'score' has shape (2), not ()"),
        (replace(LIVE, outputs=LIVE.outputs[:1]), "output 'kind' is no longer returned"),
        (replace(LIVE, outputs=(*LIVE.outputs, Column("more", "float"))), "output 'more' is new"),
    ],
)
def test_what_a_caller_of_the_champion_would_notice_is_a_reason(new, reason):
    """Each alone, by the column's name."""
    (found,) = compatible(LIVE, new)
    assert found.startswith(reason)


def test_categories_that_were_free_may_not_be_refused():
    """The champion takes any place; the new version only those that it knows."""
    (reason,) = compatible(changed("place", categories=None, unknown="accept"), LIVE)
    assert "rejects unknown categories" in reason


def test_a_larger_length_is_no_reason():
    """Nor none; a smaller one is."""
    live = changed("place", max_length=5)
    assert list(compatible(live, changed("place", max_length=6))) == list(compatible(live, LIVE)) == []
    assert list(compatible(live, changed("place", max_length=4))) == [
        "input 'place' may have a length of at most 4, not 5"
    ]


def test_the_refusal_names_both_versions_and_every_reason():
    """And what to do."""
    new = replace(LIVE, inputs=LIVE.inputs[2:])
    with pytest.raises(
        RefusedError, match=r"version 3 is not compatible with version 2(.|\n)*'age'(.|\n)*'count'"
    ) as caught:
        check_compatible(LIVE, new, versions=(2, 3), hint="Use --breaking.")
    assert caught.value.hint == "Use --breaking."


def test_a_signature_is_read_from_files_that_match_the_digest(tmp_path):
    """And from no others."""
    bundle = write_bundle(tmp_path / "bundles", tiny_contents())
    signature = signature_of(bundle)
    assert [column.name for column in signature.inputs] == ["length", "width", "colour"]
    file = next(tmp_path.rglob("signature.json"))
    data = json.loads(file.read_text())
    data["inputs"][0]["nullable"] = True
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"signature\.json"):
        signature_of(bundle)


def test_a_slip_of_the_pen_in_what_is_redacted_is_refused():
    """Or the field that was meant would be written."""
    check_redacted(("age", "kind"), LIVE, name="people")
    with pytest.raises(UsageError, match="names plaec, which is no field of people") as caught:
        check_redacted(("age", "plaec"), LIVE, name="people")
    assert "place" in caught.value.hint
