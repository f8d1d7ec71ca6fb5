"""A version is watched in the slices that it was registered with, whatever its deployment asks for."""

from __future__ import annotations

import pytest
from served_days import bundle_of, references

from raymlops.config.schema import MonitorSection
from raymlops.lifecycle.watch.monitor_text import monitor_text
from raymlops.lifecycle.watch.registered_slices import as_registered
from raymlops.profiles.slices import Slice
from raymlops.records import BundleRef


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Return one with a slice, and with another that no row of training is in."""
    slices = (Slice("carrier", "AA"), Slice("carrier", "zz"))
    return bundle_of(tmp_path_factory.mktemp("sliced"), references(days=10, slices=slices))


def test_the_slices_that_were_registered_are_watched(bundle):
    """Of those the ones that training has rows of; the others are listed as not judged."""
    asked = MonitorSection(slices={"carrier": ("AA", "zz")}, window_h=6)
    watched, warnings = as_registered(asked, bundle)
    assert warnings == ()
    assert monitor_text(watched) == "windows of 6 h; slices carrier AA; no notify"


@pytest.mark.parametrize(
    ("slices", "told"), [({}, "none"), ({"carrier": ("UA",)}, "carrier=UA"), ({"carrier": ("AA",)}, "carrier=AA")]
)
def test_slices_that_differ_from_the_registered_ones_are_a_warning(bundle, slices, told):
    watched, warnings = as_registered(MonitorSection(slices=slices), bundle)
    assert watched.slices == {"carrier": ("AA",)}
    registered = "the version was registered with carrier=AA, carrier=zz, which are judged: register its run again"
    assert warnings == (f"monitor.slices asks for {told}, and {registered}",)


def test_a_version_that_was_registered_without_slices_is_watched_in_none(tmp_path):
    plain = bundle_of(tmp_path, references(days=10))
    watched, (warning,) = as_registered(MonitorSection(slices={"carrier": ("AA",)}), plain)
    assert watched.slices == {}
    assert "registered with none" in warning


def test_a_bundle_that_cannot_be_read_changes_nothing():
    asked = MonitorSection(slices={"carrier": ("AA",)})
    assert as_registered(asked, BundleRef("/no/such", "d" * 64)) == (asked, ())
