from looped import live

from raymlops.lifecycle.loop.policy_text import policy_changes


def test_a_deploy_that_changes_the_policy_says_how(state):
    """Each field that differs, with both values; nothing where none does, or where there are no deployments."""
    live(state, triggers={"every_days": 30})
    live(state, autonomy="act", triggers={"every_days": 7.5, "skill": True})
    live(state, autonomy="act", triggers={"every_days": 7.5, "skill": True}, version=4)
    same, changed, first = ((event.before, event.after) for event in state.events("flights"))
    assert policy_changes(*changed).split(", ") == [
        "retrain.autonomy: propose -> act",
        "retrain.triggers.skill: false -> true",
        "retrain.triggers.every_days: 30 -> 7.5",
    ]
    assert policy_changes(*same) == policy_changes(*first) == policy_changes(None, {"id": "x"}) == ""
