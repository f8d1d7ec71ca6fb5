from __future__ import annotations

from raymlops.cluster.placement import Contender
from raymlops.cluster.resource_usage import beside_others, contenders, group, reserved


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


def test_what_a_job_reserves_is_known_by_node():
    """A group's id ends with that of its job: job 1 has 1 + 0.5 CPUs on a and 1 on b, and nothing that is pending."""
    rows = [
        _group("01000000", {"CPU": 1.0}, {"CPU": 0.5, "GPU": 1.0}, nodes=("a", "a")),
        _group("01000000", {"CPU": 1.0}, nodes=("b",)),
        _group("01000000", {"CPU": 4.0}, nodes=("",), state="PENDING"),
        _group("02000000", {"CPU": 2.0}, nodes=("a",)),
    ]
    assert reserved(rows, job_id="01000000") == {"a": {"CPU": 1.5, "GPU": 1.0}, "b": {"CPU": 1.0}}


def test_the_processes_of_another_sweep_are_one_line():
    """Each has a placement group of its own. Where no actor is known, the group's id says whose it is."""
    rows = [_group("02000000", {"CPU": 1.0}, nodes=("a",), name="trial") for _ in range(2)]
    (holder,) = group(actors=[], tasks=[], groups=rows, jobs={"02000000": "raymlops sweep"})
    assert str(holder) == "placement group of job 02000000 (raymlops sweep): trial in 1 bundles (x2): 2 CPU"


def _group(job, *bundles, nodes, state="CREATED", name=""):
    return {
        "placement_group_id": f"6541f3f3022df53a06a82136c859{job}",
        "name": name,
        "state": state,
        "bundles": dict(enumerate(bundles)),
        "bundles_to_node_id": dict(enumerate(nodes)),
    }


def test_contenders_are_jobs_that_sweep_or_wait():
    """Job 2 sweeps on a and waits for more, job 3 trains, job 4 waits; two replicas wait, which no table attributes."""
    trial = {"CPU": 1.0, "memory": 1.0}
    rows = [
        _group("01000000", trial, nodes=("a",)),
        _group("02000000", trial, nodes=("a",)),
        _group("02000000", trial, nodes=("b",)),
        _group("02000000", trial, nodes=("",), state="PENDING"),
        _group("03000000", {"CPU": 2.0}, nodes=("b",)),
        _group("04000000", {"CPU": 3.0}, nodes=("",), state="PENDING"),
        _group("05000000", trial, nodes=("",), state="REMOVED"),
    ]
    replicas = ({"CPU": 0.2}, {"CPU": 0.2})
    assert contenders(rows, job_id="01000000", demands=replicas) == [
        Contender({}, tuple((replica,) for replica in replicas)),
        Contender({"a": trial, "b": trial}, ((trial,),)),
        Contender({}, (({"CPU": 3.0},),)),
    ]


def test_a_placement_group_is_seen_beside_others_of_its_job():
    """Job 2's pending group does not concern job 1; neither does a group that was removed."""
    mine, other = (
        _group("01000000", {"CPU": 1.0}, {"CPU": 1.0}, nodes=("a", "b")),
        _group("01000000", {"CPU": 1.0}, nodes=("",), state="PENDING"),
    )
    rows = {mine["placement_group_id"]: mine}
    rows["x"] = _group("02000000", {"CPU": 1.0}, nodes=("",), state="PENDING")
    rows["y"] = _group("01000000", {"CPU": 1.0}, nodes=("",), state="REMOVED")
    held = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    assert beside_others(rows, group_id=mine["placement_group_id"]) == (held, False)
    assert beside_others({**rows, "z": other}, group_id=mine["placement_group_id"]) == (held, True)
    mine["state"] = "PENDING"
    assert beside_others(rows, group_id=mine["placement_group_id"]) == ({}, False)
