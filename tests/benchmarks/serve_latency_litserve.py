"""A peer of ``serve_latency``: the same weights behind LitServe; run in an environment that has it.

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
    api = Bench(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, track_requests=False, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
