"""What checkpoints hold, which ones stay, and what happens when one cannot be written."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
from saved_weights import load_weights
from snapshots import IDENTITY, folder_saver, snapshot, train_a_while

from raymlops.config.paths import local_path
from raymlops.config.train import TrainSection
from raymlops.errors import DamagedError, NonFiniteError, RecipeError, RefusedError, StorageError, UsageError
from raymlops.storage import filesystem
from raymlops.training.checkpoints.host_copies import model_state
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.restore import restore
from raymlops.training.checkpoints.retention import Entry, Kept
from raymlops.training.checkpoints.saver import FolderSaver
from raymlops.training.supervision.failure_policy import Raised, kind_of
from raymlops.training.supervision.transient import chain_of

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3


def folders(place: str) -> list[str]:
    return sorted(name for name, files in filesystem.listing(place).items() if files)


def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.5)


def test_the_best_and_the_last_few_stay(place: str) -> None:
    """Of steps 5, 10, 15, 20, 25, 30 the last two and the report at 20, whose loss 1 is lowest."""
    saver = folder_saver(place)
    train_a_while(saver, [2.0, 1.0, 3.0])
    assert folders(place) == ["step-00000020-aaa-4", "step-00000025-aaa-5", "step-00000030-aaa-6"]
    index = json.loads(filesystem.read_bytes(filesystem.join(place, "index.json")))
    assert (index["best"], index["last"]) == ("step-00000020-aaa-4", "step-00000030-aaa-6")
    assert saver.best_uri == filesystem.join(place, "step-00000020-aaa-4")
    assert saver.last_uri == filesystem.join(place, "step-00000030-aaa-6")
    assert load_weights(saver.best_uri)[0]["weight"].tolist() == [[2.0, 2.0]]


def test_a_saver_does_what_the_configuration_says(tmp_path: Path) -> None:
    """The last three, one best one by the highest score, and no stop for a full disk."""
    section = TrainSection(keep_checkpoints=3, metric="score", mode="max", on_checkpoint_error="continue")
    saver = FolderSaver(section, str(tmp_path), token="t", identity=IDENTITY, kept=None)
    for step, score in enumerate([0.1, 0.9, 0.5, 0.4, 0.3], 1):
        taken = snapshot(step)
        report = type(taken)(taken.state, {"score": score}, taken.model, taken.optimizer, {})
        saver.save(report, best=step == 2, last=False)
    saver.wait()
    assert [entry.step for entry in saver.kept.entries] == [2, 3, 4, 5]
    in_the_way(tmp_path, "step-00000006-t-6")
    saver.save(snapshot(6), best=False, last=False)
    saver.wait()
    assert saver.failures == 1


def test_where_nothing_was_written_nothing_is_best(tmp_path: Path) -> None:
    """A checkpoint in mid-epoch is none that a run can end with."""
    saver = folder_saver(str(tmp_path))
    assert saver.last_uri is None
    saver.save(snapshot(5), best=False, last=False)
    saver.wait()
    assert saver.last_uri is not None
    with pytest.raises(StorageError, match="so there is no best one"):
        _ = saver.best_uri


def test_a_state_is_saved_as_it_was(place: str) -> None:
    """What the loop does while the thread writes does not reach the file."""
    saver, taken = folder_saver(place), snapshot(7, losses=[0.5], weight=3.0)
    moments = taken.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    saver.save(taken, best=True, last=False)
    torch.nn.init.zeros_(taken.model.weight)
    taken.optimizer.state_dict()["state"][0]["exp_avg"].zero_()
    taken.state.history.append({"loss": 0.1})
    taken.state.step = 99
    saver.wait()
    model, optimizer = fresh()
    state = restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer)
    assert model.weight.tolist() == [[3.0, 3.0]]
    assert (state.step, state.epoch, state.history, state.best_epoch) == (7, 2, [{"loss": 0.5}], 1)
    restored = optimizer.state_dict()
    assert torch.equal(restored["state"][0]["exp_avg"], moments)
    assert restored["param_groups"][0]["lr"] == 0.01


def test_the_scaler_comes_back(tmp_path: Path) -> None:
    """Its scale and how many steps ago it grew."""
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    scaler.scale(torch.ones(1))
    taken = snapshot(1)
    saver = folder_saver(str(tmp_path))
    saver.save(type(taken)(taken.state, {}, taken.model, taken.optimizer, {}, scaler), best=False, last=False)
    saver.wait()
    model, optimizer = fresh()
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore(str(saver.last_uri), identity=IDENTITY, model=model, optimizer=optimizer, scaler=other)
    assert other.state_dict() == scaler.state_dict()


def test_weights_and_fitted_state_come_back(place: str) -> None:
    """For a bundle; the trainer's file needs no pickle either."""
    saver = folder_saver(place)
    saver.save(snapshot(1, weight=3.0), best=True, last=True)
    saver.wait()
    weights, fit = load_weights(saver.best_uri)
    assert weights["weight"].tolist() == [[3.0, 3.0]]
    assert fit == {"mean": 1.5}


def test_checkpoints_of_the_first_format_still_give_weights(tmp_path: Path) -> None:
    """They hold no place to go on from, which is said."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1, weight=3.0), best=True, last=True)
    saver.wait()
    folder = local_path(saver.best_uri)
    state = json.dumps({"format_version": 1, "epoch": 1, "step": 1, "metrics": {}, "fit": {"mean": 2.0}})
    (folder / "state.json").write_text(state)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 1}
    manifest["files"]["state.json"] = {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    weights, fit = load_weights(saver.best_uri)
    assert (weights["weight"].tolist(), fit) == ([[3.0, 3.0]], {"mean": 2.0})
    model, optimizer = fresh()
    with pytest.raises(UsageError, match="of an older format"):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "state.json", "manifest.json"])
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    """One changed byte in any file: model and optimizer are as they were, and the checkpoint is not chosen again.

    Weights alone do not depend on what else there is.
    """
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1, weight=3.0), best=True, last=True)
    saver.wait()
    path = local_path(saver.best_uri) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    model, optimizer = fresh()
    before = model.weight.tolist()
    with nullcontext() if name == "trainer.pt" else pytest.raises(StorageError):
        load_weights(saver.best_uri)
    with pytest.raises(DamagedError):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer)
    assert recall(str(tmp_path), metric="loss", mode="min", digests=False).uri is None
    assert model.weight.tolist() == before
    assert optimizer.state_dict()["state"] == {}


def test_a_file_that_the_manifest_does_not_name_is_not_loaded(tmp_path: Path) -> None:
    """It was never checked, although it is there."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    path = local_path(saver.best_uri) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["trainer.pt"]
    path.write_text(json.dumps(manifest))
    model, optimizer = fresh()
    with pytest.raises(StorageError, match=r"manifest\.json does not name trainer\.pt"):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    """The error shows both."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    model, optimizer = fresh()
    other = {"recipe": "pkg.mod:Other", "config": "beef", "strategy": "ddp"}
    with pytest.raises(UsageError, match=r"recipe pkg\.mod:Recipe with config c0ffee.*recipe pkg\.mod:Other.*beef"):
        restore(saver.best_uri, identity=other, model=model, optimizer=optimizer)
    with pytest.raises(UsageError, match=r"written as a whole \(train\.strategy: ddp\), this run reads in shards"):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer, sharded=True)


def test_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """What is missing, what is too much, and what has another shape."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    model = torch.nn.Linear(3, 1, bias=False)
    model.register_buffer("mean", torch.zeros(1))
    what = r"mean is missing; bias is not in the model; weight is \(1, 2\), the model's is \(1, 3\)"
    with pytest.raises(RecipeError, match=what):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=None)


def test_an_optimizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    """SGD would take AdamW's averages without a word; another number of groups is refused too."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    model = torch.nn.Linear(2, 1)
    with pytest.raises(RecipeError, match="the state of optimizer AdamW, this run has SGD"):
        restore(
            saver.best_uri, identity=IDENTITY, model=model, optimizer=torch.optim.SGD(model.parameters(), momentum=0.9)
        )
    split = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}])
    with pytest.raises(RecipeError, match="does not fit the optimizer AdamW"):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=split)


def test_a_checkpoint_without_an_optimizer_says_so(tmp_path: Path) -> None:
    """A loop of one's own reported the model alone."""
    taken = snapshot(1)
    saver = folder_saver(str(tmp_path))
    saver.save(type(taken)(taken.state, {}, taken.model, None, {}), best=True, last=False)
    saver.wait()
    model, optimizer = fresh()
    with pytest.raises(RecipeError, match="holds no optimizer state, this run has AdamW"):
        restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=optimizer)
    assert restore(saver.best_uri, identity=IDENTITY, model=model, optimizer=None).step == 1


def test_nan_is_never_written(tmp_path: Path) -> None:
    """Neither files nor pointer change, and the error names the tensor, whatever the policy for the disk."""
    saver = folder_saver(str(tmp_path), on_checkpoint_error="continue")
    saver.save(snapshot(1), best=True, last=False)
    saver.wait()
    before = filesystem.listing(str(tmp_path))
    with pytest.raises(NonFiniteError, match="found in weight at step 2"):
        saver.save(snapshot(2, weight=float("nan")), best=True, last=False)
    saver.wait()
    assert filesystem.listing(str(tmp_path)) == before
    assert saver.best_uri == f"{tmp_path}/step-00000001-aaa-1"


def in_the_way(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("in the way")


def test_a_failed_write_stops_the_run_at_the_next_call(tmp_path: Path) -> None:
    """With ``stop``: the error names the last good one, which still loads."""
    saver = folder_saver(str(tmp_path))
    in_the_way(tmp_path, "step-00000002-aaa-2")
    saver.save(snapshot(1, weight=2.0), best=True, last=False)
    saver.save(snapshot(2), best=False, last=False)
    with pytest.raises(StorageError, match="the checkpoint of step 2 could not be written") as raised:
        saver.save(snapshot(3), best=False, last=False)
    assert f"The last good one is kept: {tmp_path}/step-00000001-aaa-1" in str(raised.value.hint)
    assert "NotADirectoryError" in chain_of(raised.value)[0].types  # which decides whether it may pass
    assert load_weights(saver.best_uri)[0]["weight"].tolist() == [[2.0, 2.0]]


def test_a_failed_write_is_told_and_passed_over(tmp_path: Path) -> None:
    """With ``continue``: the run goes on, the next one is written, and the pointer never named the one that failed."""
    told: list[str] = []
    saver = folder_saver(str(tmp_path), on_checkpoint_error="continue", on_event=told.append)
    in_the_way(tmp_path, "step-00000002-aaa-2")
    saver.save(snapshot(1), best=True, last=False)
    for step in (2, 3):
        saver.save(snapshot(step), best=False, last=False)
    saver.wait()
    assert saver.failures == 1
    assert "the checkpoint of step 2 could not be written" in told[0]
    assert told[1:] == ["checkpoints can be written again, since that of step 3"]
    assert saver.last_uri == f"{tmp_path}/step-00000003-aaa-3"


def test_a_reason_that_stays_is_told_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 25 on a full disk the first is told whole, then the 10th and the 20th; a new reason and the end are told."""
    told: list[str] = []
    free = iter([*range(1000, 26000, 1000), *[1 << 40] * 3])
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": next(free)}))
    saver = folder_saver(str(tmp_path), on_checkpoint_error="continue", on_event=told.append)
    in_the_way(tmp_path, "step-00000026-aaa-26")
    for step in range(1, 29):
        saver.save(snapshot(step), best=step % 2 == 0, last=False)
    saver.wait()
    assert "the checkpoint of step 1 could not be written: " in told[0]
    assert told[1:3] == [
        "the checkpoint of step 10 could not be written either (10 consecutive failures)",
        "the checkpoint of step 20 could not be written either (20 consecutive failures)",
    ]
    assert "the best checkpoint of step 26 could not be written: " in told[3]
    assert told[4:] == ["checkpoints can be written again, since that of step 27"]
    assert saver.failures == 26


def test_all_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    """Also that of safetensors, which would make it readable to its owner alone."""
    saver = folder_saver(str(tmp_path / "run"))
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "run/step-00000001-aaa-1").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize(("best", "last"), [(True, False), (False, True)])
def test_a_run_cannot_end_without_its_best_and_its_last(tmp_path: Path, best: bool, last: bool) -> None:
    """Passing over an error does not go that far: the one at step 2 is the best, or the last."""
    saver = folder_saver(str(tmp_path), on_checkpoint_error="continue")
    in_the_way(tmp_path, "step-00000002-aaa-2")
    saver.save(snapshot(1), best=True, last=False)
    saver.save(snapshot(2, finished=last), best=best, last=last)
    if best:
        saver.wait()  # a better one may follow
        saver.save(snapshot(3, finished=True), best=False, last=True)
    with pytest.raises(StorageError, match="checkpoint of step 2 could not be written"):
        saver.wait()


def test_a_best_that_was_beaten_is_missed_no_more(tmp_path: Path) -> None:
    """The best of step 2 failed, that of step 3 is written."""
    saver = folder_saver(str(tmp_path), on_checkpoint_error="continue")
    in_the_way(tmp_path, "step-00000002-aaa-2")
    for step in (1, 2, 3):
        saver.save(snapshot(step, finished=step == 3), best=True, last=step == 3)
    saver.wait()
    assert saver.best_uri == f"{tmp_path}/step-00000003-aaa-3"


def test_an_upload_that_breaks_off_leaves_nothing(s3: FakeS3) -> None:
    """The store takes no manifest: what was uploaded of that checkpoint is removed again."""
    place = s3.uri("bucket/run")
    saver = folder_saver(place, on_checkpoint_error="continue")
    saver.save(snapshot(1), best=True, last=False)
    saver.wait()
    s3.refuse = lambda method, path: method in {"PUT", "POST"} and path.endswith("step-00000002-aaa-2/manifest.json")
    saver.save(snapshot(2), best=False, last=False)
    saver.wait()
    assert saver.failures == 1
    assert folders(place) == ["step-00000001-aaa-1"]


def test_a_slow_upload_is_no_hang(s3: FakeS3) -> None:
    """While the saver waits for its thread it gives signs of life; here the upload waits for the first of them."""
    sign = threading.Event()

    def slow(_method: str, path: str) -> bool:
        return path.endswith("manifest.json") and not sign.wait(60)

    s3.refuse = slow
    saver = folder_saver(s3.uri("bucket/run"), alive=sign.set)
    assert not saver.busy
    saver.save(snapshot(1), best=True, last=False)
    assert saver.busy
    saver.wait()
    assert not saver.busy
    assert sign.is_set()
    assert saver.failures == 0


def test_an_upload_that_stands_still_is_a_hang(s3: FakeS3) -> None:
    """What hangs is named, whoever asks: the loop for its next checkpoint, or before one that is due by time."""
    let_go = threading.Event()
    s3.refuse = lambda _method, path: path.endswith("model.safetensors") and not let_go.wait(60)
    saver = folder_saver(s3.uri("bucket/run"), hang_timeout_s=0.5)
    saver.save(snapshot(1), best=True, last=False)
    said = (
        r"^model\.safetensors of the checkpoint of step 1 is being written to storage, which hangs: nothing for \d+ s"
    )
    with pytest.raises(StorageError, match=said) as caught:
        saver.wait()
    assert kind_of(Raised.by(caught.value)) == "environment"
    with pytest.raises(StorageError, match=said):
        _ = saver.busy
    with pytest.raises(StorageError, match=said):
        saver.save(snapshot(2), best=True, last=False)
    let_go.set()


def test_what_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is looked at first, so that no other program's disk is filled up for nothing."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(1), best=True, last=False)
    with pytest.raises(StorageError, match=r"has 0\.0 MB free, 1\.0 MB are needed"):
        saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_was_replaced_writes_no_more(place: str) -> None:
    """It was taken for dead; what the newer attempt wrote stays as it is."""
    first = recall(place, metric="loss", mode="min")
    old = folder_saver(place, token="old", kept=first.kept, on_checkpoint_error="continue")
    old.save(snapshot(1), best=True, last=False)
    old.wait()
    new = folder_saver(place, token="new", kept=recall(place, metric="loss", mode="min").kept)
    new.save(snapshot(2), best=True, last=False)
    new.wait()
    old.save(snapshot(3), best=True, last=False)
    with pytest.raises(RefusedError, match="another attempt of this run"):
        old.wait()
    assert recall(place, metric="loss", mode="min").uri == new.last_uri
    assert folders(place) == ["step-00000001-old-1", "step-00000002-new-1"]


def test_checkpoints_of_earlier_attempts_are_pruned_too(place: str) -> None:
    """Two are kept, whoever wrote them; orders go on counting."""
    for number, token in enumerate("abc", 1):
        saver = folder_saver(place, token=token, kept=recall(place, metric="loss", mode="min").kept)
        saver.save(snapshot(number, losses=[1.0 / number], report=True), best=True, last=False)
        saver.wait()
    assert folders(place) == ["step-00000002-b-1", "step-00000003-c-1"]
    assert [entry.order for entry in saver.kept.entries] == [2, 3]


def test_a_restored_best_is_one_that_is_there(tmp_path: Path) -> None:
    """The state says report 2 of loss 0.1; only the checkpoint of report 1 was kept."""
    saver = folder_saver(str(tmp_path))
    saver.save(snapshot(20, losses=[0.5, 0.1]), best=False, last=False)
    saver.wait()
    model, optimizer = fresh()
    kept = Kept((Entry("one", 10, 1, reports=1, value=0.5),), best="one", last="one")
    state = restore(str(saver.last_uri), identity=IDENTITY, model=model, optimizer=optimizer, kept=kept)
    assert (state.best_epoch, state.best_value, state.waited) == (1, 0.5, 1)


def test_other_ranks_write_no_whole_checkpoints(tmp_path: Path) -> None:
    """Rank 0 alone does."""
    saver = folder_saver(f"{tmp_path}/c", rank=1, world_size=2)
    saver.save(snapshot(1), best=True, last=True)
    saver.wait()
    assert not (tmp_path / "c").exists()


def test_tied_weights_become_copies_that_load_back(tmp_path: Path) -> None:
    """Two names of one tensor are stored twice, which safetensors accepts and load_state_dict takes."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    taken, saver = snapshot(1), folder_saver(str(tmp_path))
    saver.save(type(taken)(taken.state, {}, model, None, {}), best=True, last=True)
    saver.wait()
    assert not model.load_state_dict(load_weights(saver.best_uri)[0]).missing_keys


def test_a_state_of_more_than_tensors_is_refused() -> None:
    """Extra state would need pickle."""

    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> object:
            return {"vocabulary": ["a"]}

    with pytest.raises(RecipeError, match="_extra_state, which is not a tensor"):
        model_state(Extra(1, 1))
