"""A peer of ``serve_latency``: a pyfunc model from code, with type hints, for ``mlflow models serve``.

python serve_latency_mlflow.py FOLDER WEIGHTS    # saves it
"""

import sys
from pathlib import Path

import mlflow
import serve_latency_net as net
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from serve_latency_body import Output
from serve_latency_body import Row as StrictRow


class Row(StrictRow):
    colour: str  # MLflow knows no Literal


class Bench(PythonModel):
    def load_context(self, context) -> None:
        self.net = net.load(context.artifacts["weights"])

    def predict(self, model_input: list[Row]) -> list[Output]:
        return [Output(y=value) for value in net.answer(self.net, [row.__dict__ for row in model_input])]


if __name__ == "__main__":
    here = Path(__file__).parent
    mlflow.pyfunc.save_model(
        sys.argv[1],
        python_model=__file__,
        artifacts={"weights": sys.argv[2]},
        code_paths=[str(here / "serve_latency_net.py"), str(here / "serve_latency_body.py")],
        pip_requirements=["torch", "pydantic"],
        input_example=[net.ROW],
    )
else:
    set_model(Bench())
