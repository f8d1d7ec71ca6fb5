import json
from collections import Counter

import numpy as np
import pytest

from raymlops.serving.traffic import Share, Traffic, choose, copies

CALLERS = [f"caller-{number}" for number in range(4000)]
ALMOST_ONE = float(np.nextafter(1.0, 0.0))


def traffic(*weights, **fields):
    shares = tuple(Share(version, weight) for version, weight in enumerate(weights, start=7))
    return Traffic(canaries=shares, sticky="key", salt="flights", **fields)


def answered(which):
    return {caller: choose(which, sticky=caller, draw=0.5) for caller in CALLERS}


def test_without_canaries_the_champion_answers():
    """Whatever the draw and the caller."""
    assert choose(Traffic(), sticky="me", draw=0.0) is None


@pytest.mark.parametrize(("draw", "version"), [(0.0, 7), (0.19, 7), (0.2, None), (0.69, None), (0.7, 8), (0.99, 8)])
def test_a_draw_falls_to_a_version_by_its_share(draw, version):
    """Version 7 has the first fifth of the line, 8 the last three tenths, the champion what is between."""
    choice = choose(Traffic(canaries=(Share(7, 0.2), Share(8, 0.3))), sticky=None, draw=draw)
    assert choice == version


@pytest.mark.parametrize("draw", [0.0, 0.5, ALMOST_ONE])
def test_no_share_gets_nothing_and_a_whole_share_everything(draw):
    """At both ends of the line, on either side."""
    assert choose(Traffic(canaries=(Share(7, 0.0), Share(8, 0.0))), sticky=None, draw=draw) is None
    assert choose(Traffic(canaries=(Share(7, 1.0), Share(8, 0.0))), sticky=None, draw=draw) == 7
    assert choose(Traffic(canaries=(Share(7, 0.0), Share(8, 1.0))), sticky=None, draw=draw) == 8


def test_a_caller_keeps_its_version_in_every_process():
    """The draw does not matter, and the place is fixed: it is no Python hash, which differs by process."""
    split = traffic(0.5)
    assert {choose(split, sticky="ada", draw=draw) for draw in (0.0, 0.3, ALMOST_ONE)} == {7}
    assert {choose(split, sticky="zoe", draw=draw) for draw in (0.0, 0.3, ALMOST_ONE)} == {None}


def test_callers_are_spread_by_the_weights():
    """Of 4,000 callers 10% and 30% are within four standard deviations, 76 and 116."""
    found = Counter(answered(traffic(0.1, 0.3)).values())
    assert abs(found[7] - 400) < 76
    assert abs(found[8] - 1200) < 116


@pytest.mark.parametrize(("before", "after"), [((0.1,), (0.5,)), ((0.1, 0.2), (0.6, 0.2)), ((0.1, 0.2), (0.1, 0.7))])
def test_a_canary_that_grows_takes_callers_from_the_champion_alone(before, after):
    """Nobody moves back, and nobody moves between canaries."""
    old, new = answered(traffic(*before)), answered(traffic(*after))
    moved = {(old[caller], new[caller]) for caller in CALLERS if old[caller] != new[caller]}
    assert moved in ({(None, 7)}, {(None, 8)})


def test_a_growing_canary_keeps_its_callers_beside_two_others():
    """The third one gives way to the second, and the second's own stay."""
    old, new = answered(traffic(0.1, 0.2, 0.2)), answered(traffic(0.1, 0.5, 0.2))
    assert all(new[caller] == 8 for caller in CALLERS if old[caller] == 8)
    assert all(new[caller] == 7 for caller in CALLERS if old[caller] == 7)


def test_models_are_independent():
    """Of the callers of one model's canary, half are of another's: 2,000 x 0.5, and four deviations are 90."""
    one = answered(traffic(0.5))
    other = answered(Traffic(canaries=(Share(7, 0.5),), sticky="key", salt="digits"))
    mine = [caller for caller in CALLERS if one[caller] == 7]
    assert abs(sum(other[caller] == 7 for caller in mine) - len(mine) / 2) < 90


def test_requests_that_do_not_stick_go_by_the_draw():
    """A caller without a session, and every caller where nothing is to stick."""
    assert choose(traffic(0.5), sticky=None, draw=0.4) == 7
    loose = Traffic(canaries=(Share(7, 0.5),), sticky="request")
    assert [choose(loose, sticky="ada", draw=draw) for draw in (0.4, 0.6)] == [7, None]


def test_any_text_is_a_caller():
    """A lone surrogate, which is no UTF-8, has its place too."""
    assert choose(traffic(1.0), sticky="\ud800", draw=0.0) == 7


def test_shadows_are_independent_of_each_other():
    """With shares of 0.5 and 0.2, four outcomes come as often as products say, on an even line of 10,000 draws."""
    which = Traffic(shadows=(Share(7, 0.5), Share(8, 0.2), Share(9, 0.0), Share(10, 1.0)))
    found = Counter(copies(which, draw=(number + 0.5) / 10_000) for number in range(10_000))
    assert found == {(7, 8, 10): 1000, (7, 10): 4000, (8, 10): 1000, (10,): 4000}


def test_settings_come_back_from_json():
    """All fields do, and those of a newer version are ignored."""
    which = traffic(0.1, 0.2, epoch="e1", shadows=(Share(9, 1.0),), standing=(7, 8, 9), canary_timeout_s=0.5)
    data = json.loads(json.dumps(which.to_dict()))
    data["canaries"][0]["colour"] = data["colour"] = "red"
    assert Traffic.from_dict(data) == which
    assert Traffic.from_dict({}) == Traffic()
