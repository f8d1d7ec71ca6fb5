from dataclasses import replace

import pytest
from retrained import NOW, retraining

from raymlops.lifecycle.loop.messages import message_about
from raymlops.lifecycle.watch.messaging.messages import MAX_BODY


@pytest.mark.parametrize("stage", ["checking", "training", "gating", "replaying", "rolling_out", "rejected"])
def test_stages_on_the_way_are_not_told(stage):
    """Only what somebody has to know or do."""
    assert message_about(retraining(stage=stage), now=NOW) is None


@pytest.mark.parametrize(
    ("stage", "begins", "command"),
    [
        ("proposed", "A retraining is proposed, and waits for a person: 0.050", "raymlops proposals accept"),
        ("baking", "Promoted: version 4 answers now, and is taken back", "raymlops rollback flights"),
        ("done", "Done: the gate refused it", "raymlops status flights"),
        ("stopped", "Stopped: the gate refused it. It began with: 0.050", "raymlops retrain flights"),
        ("taken_back", "Taken back: version 4: the gate refused it. It began", "raymlops retrain flights"),
    ],
)
def test_each_end_says_why_and_what_to_do_next(stage, begins, command):
    """The id is one a stage, so that it is sent once."""
    one = retraining(stage=stage, version=4, note="the gate refused it")
    message = message_about(one, now=NOW)
    assert message.body.startswith(begins)
    assert command in message.body
    assert (message.id, message.incident, message.created_at) == (f"{one.id}-{stage}", one.id, NOW)


@pytest.mark.parametrize(
    ("stage", "command"),
    [
        ("proposed", "raymlops proposals accept"),
        ("training", "raymlops proposals reject"),
        ("rolling_out", "raymlops rollback flights"),
    ],
)
def test_a_deadline_is_announced_with_what_ends_it(stage, command):
    """Once a stage, beside the message that the stage itself has."""
    one = retraining(stage=stage, note="job 7 runs", found={"waiting": stage})
    message = message_about(one, now=NOW)
    assert (message.id, message.what) == (f"{one.id}-{stage}-waiting", "waiting")
    assert "job 7 runs" in message.body
    assert command in message.body
    assert message_about(replace(one, stage="stopped"), now=NOW).what == "stopped"


def test_anybodys_text_is_shown_as_text_and_cut():
    """What a person or a column is called pings nobody, and the whole is short enough for every messenger."""
    one = replace(retraining(stage="stopped", why="<b>@here</b> " * 200), note="[x](http://y) " * 200)
    message = message_about(one, now=NOW)
    assert len(message.title) + len(message.body) <= MAX_BODY + 124
    assert not set("<>@[]()/") & set(message.body.partition("Next:")[0])
