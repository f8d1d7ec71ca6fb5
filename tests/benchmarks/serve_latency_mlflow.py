"""A peer of ``serve_latency``: a pyfunc model as code, with type hints, for ``mlflow models serve``."""

import mlflow
import serve_latency_net as net
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from serve_latency_body import Output, Row, plain


class Bench(PythonModel):
    def load_context(self, context) -> None:
        self.net = net.load(context.artifacts["weights"])

    def predict(self, model_input: list[Row]) -> list[Output]:
        return [Output(y=value) for value in net.answer(self.net, plain(model_input))]


if __name__ != "__main__":
    set_model(Bench())
else:
    import sys

    folder, weights = sys.argv[1:]
    mlflow.pyfunc.save_model(
        folder, python_model=__file__, artifacts={"weights": weights}, pip_requirements=["torch", "pydantic"]
    )
