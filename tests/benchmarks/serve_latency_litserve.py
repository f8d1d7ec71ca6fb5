"""A peer of ``serve_latency``: the same weights behind LitServe, with its batching; run in an environment that has it.

python serve_latency_litserve.py PORT WEIGHTS
"""

import sys

import litserve
import serve_latency_net as net
from serve_latency_body import Row


class Bench(litserve.LitAPI):
    def setup(self, device) -> None:
        self.net = net.load(sys.argv[2])

    def decode_request(self, request: Row) -> dict:
        return request.__dict__

    def predict(self, rows: list[dict]) -> list[float]:
        return net.answer(self.net, rows)

    def encode_response(self, output: float) -> dict:
        return {"y": output}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(max_batch_size=64, batch_timeout=0.001), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
