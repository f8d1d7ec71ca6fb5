from __future__ import annotations

from raymlops.cli.main import main


def test_an_mlflow_that_is_down_is_said_in_a_line(tmp_path, capsys):
    """Who was asked and what came back; MLflow's own client would try for half a minute."""
    file = tmp_path / "a.yaml"
    file.write_text(
        f"project: {{name: m}}\nrecipe: {{import: 'a:B'}}\nstorage: {{path: {tmp_path}}}\n"
        "tracking: {uri: 'http://127.0.0.1:9'}\n"
    )
    assert main(["models", "list", "--config", str(file)]) == 5
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("error: MLflow at http://127.0.0.1:9 does not answer: ")
    assert "Start it" in hint
