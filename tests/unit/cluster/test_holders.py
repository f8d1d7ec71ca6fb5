from __future__ import annotations

from raymlops.cluster.holders import group


def _actor(**fields):
    return {
        "name": "",
        "class_name": "A",
        "job_id": "01",
        "required_resources": {},
        "placement_group_id": None,
    } | fields


def test_replicas_are_counted_by_application():
    """Two replicas of 0.2 CPU are one line that names the application."""
    replicas = [
        _actor(name=f"SERVE_REPLICA::flights--v7#front#{tag}", required_resources={"CPU": 0.2}) for tag in ("a", "b")
    ]
    (holder,) = group(actors=replicas, tasks=[], groups=[], jobs={})
    assert str(holder) == "Serve application flights--v7 (x2): 0.4 CPU"


def test_a_placement_group_is_named_by_its_actors_and_their_job():
    """What sits inside it is not counted a second time."""
    worker = _actor(class_name="RayTrainWorker", placement_group_id="p", required_resources={"CPU_group_p": 1.0})
    reserved = {
        "placement_group_id": "p",
        "name": "",
        "state": "CREATED",
        "bundles": {0: {"CPU": 1.0}, 1: {"CPU": 1.0}},
    }
    removed = {**reserved, "placement_group_id": "q", "state": "REMOVED"}
    (holder,) = group(actors=[worker], tasks=[], groups=[reserved, removed], jobs={"01": "python jobs/train.py"})
    assert str(holder) == "placement group of job 01 (python jobs/train.py): RayTrainWorker in 2 bundles: 2 CPU"


def test_the_largest_share_comes_first_and_idle_actors_are_left_out():
    """An actor that reserves nothing holds nothing."""
    actors = [_actor(class_name="Controller"), _actor(class_name="Small", required_resources={"CPU": 0.5})]
    tasks = [{"name": "big", "job_id": "02", "required_resources": {"CPU": 2.0}, "placement_group_id": None}]
    assert [str(holder) for holder in group(actors=actors, tasks=tasks, groups=[], jobs={})] == [
        "task big of job 02: 2 CPU",
        "Small of job 01: 0.5 CPU",
    ]
