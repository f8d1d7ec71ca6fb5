from __future__ import annotations

from raymlops.cluster.services import GUARD, serve_environment, tail
from raymlops.serving.proxy import HOOK_ENV


def test_a_cluster_starts_with_the_guard_that_serving_names():
    """The two rooms do not import each other, and Serve loads the guard by its name."""
    assert GUARD == HOOK_ENV


def test_the_paths_of_haproxy_stay_short_enough_for_its_sockets():
    """Serve puts the node's id, 56 bytes, before the name; HAProxy takes a log socket of at most 97."""
    scratch = "/tmp/rml-12345678/ray"
    values = serve_environment(scratch=scratch, stats_port=1, metrics_port=2)
    socket = values["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]
    folder, _, name = socket.rpartition("/")
    assert len(f"{folder}/{'0' * 56}/{name}") <= 97


def test_the_tail_of_a_log_leaves_out_empty_lines(tmp_path):
    """And a log that is missing says nothing."""
    log = tmp_path / "log"
    log.write_text("one\n\ntwo\n\n")
    assert tail(log, lines=1) == "  | two"
    assert tail(tmp_path / "missing") == ""
