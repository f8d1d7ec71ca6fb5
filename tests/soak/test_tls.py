"""An endpoint with TLS behind either proxy, and on two machines: clients of several kinds, and a certificate that is
renewed under load.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asking_forms as forms
import grpc
import httpx
import pytest
import requests
from certificates import certificate
from endpoints import SECRETS, endpoint
from launched_endpoint import ADDRESSES, launched_endpoint
from machines import NEEDS_MACHINES
from serving_bundles import MIXED_ROWS

import raymlops as rm
from raymlops.cluster.endpoint.tls import TlsFiles, trusting

pytestmark = pytest.mark.soak

RENEWED_S = 60.0
SHOWN = ("127.0.0.1", *ADDRESSES)


@pytest.fixture(params=["python", "haproxy", pytest.param("launched", marks=NEEDS_MACHINES)])
def proxy(request):
    return request.param


@pytest.fixture
def files(tmp_path):
    """Return a certificate and its key."""
    return TlsFiles(*map(str, certificate(tmp_path, addresses=SHOWN)))


@pytest.fixture
def served(proxy, files, tmp_path):
    """Yield an endpoint with TLS; of the launched one each of two nodes has a proxy."""
    launched = proxy == "launched"
    with launched_endpoint(tmp_path, everywhere=True, tls=files) if launched else endpoint(proxy, tls=files) as running:
        yield running


def test_clients_of_all_kinds_ask_over_tls_and_none_without(served, files, tmp_path, proxy):
    """Ours, requests, curl and gRPC, each with the certificate; then it is renewed, without a failed request."""
    assert served.host.startswith("https://")
    url, content = f"{served.url}/predict", json.dumps({"rows": MIXED_ROWS})
    hosts = [served.host_at(address) for address in served.addresses]
    served.change(keys=("good",), auth="keys")
    for host in hosts:
        asked = {"data": content, "verify": files.cert, "timeout": 20}
        statuses = [
            requests.post(f"{host}/models/mixed/predict", headers=headers, **asked).status_code
            for headers in ({}, {"x-api-key": SECRETS["good"]})
        ]
        assert statuses == [401, 200]
    served.change(auth="open")
    with rm.Client(served.host, ca_file=files.cert) as client:
        expected = client.predict("mixed", MIXED_ROWS).outputs
    assert requests.post(url, data=content, verify=files.cert, timeout=20).json()["outputs"] == expected
    curl = ["curl", "-sS", "--cacert", files.cert, "--tls-max", "1.2", "--data", content, url]
    assert json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["outputs"] == expected
    call = {"method": "ModelInfer", "request": forms.message(MIXED_ROWS, raw=True, name="mixed")}
    call["metadata"] = {"application": "raymlops"}
    trusted = Path(files.cert).read_bytes()
    for host, address in zip(hosts, served.addresses, strict=True):
        answered, _ = forms.call(served.grpc_port, **call, certificates=trusted, host=address)
        assert len(forms.rows_of_message(answered)) == len(MIXED_ROWS)
        with pytest.raises(grpc.RpcError):
            forms.call(served.grpc_port, **call, timeout_s=5, host=address)
        for plain in (f"http://{urlsplit(host).netloc}/models/mixed", f"{host}/-/routes"):
            with pytest.raises(httpx.HTTPError):  # plain HTTP, and a certificate of nobody's
                httpx.get(plain)
        assert requests.get(f"{host}/-/routes", verify=files.cert, timeout=20).status_code == 404
    old = ["curl", "-sS", "--cacert", files.cert, "--tlsv1.0", "--tls-max", "1.1", served.host]
    assert subprocess.run(old, capture_output=True, check=False).returncode == 35  # no common version

    (tmp_path / "next").mkdir()
    cert, key = certificate(tmp_path / "next", addresses=SHOWN)
    both = tmp_path / "both.pem"
    both.write_bytes(trusted + cert.read_bytes())
    new = trusting(str(cert))
    with load(hosts, content, both) as done:
        until(lambda: len(done) > 200)
        key.replace(files.key)  # one after the other, as whatever renews them does
        time.sleep(0.2)
        cert.replace(files.cert)
        if proxy != "python":
            until(lambda: all(shows(host, new) for host in hosts))
            for address in served.addresses:
                renewed = both.read_bytes().removeprefix(trusted)
                forms.call(served.grpc_port, **call, certificates=renewed, host=address)
            served.change(auth="open", max_rows=4000)
        # Another server: HAProxy is replaced by a new one.
        served.change(auth="open", max_rows=4500, max_replicas=2, min_replicas=2)
        before = len(done)
        until(lambda: len(done) > before + 200)
        # The Python proxy reads its files once.
        assert {shows(host, new) for host in hosts} == {proxy != "python"}
    failed = [outcome for outcome in done if outcome != 200]
    print(f"\n{proxy}: {len(done)} requests, {len(failed)} failed {failed[:3]}")
    assert failed == []


@contextmanager
def load(hosts, content, certificates):
    """Ask each host over connections that are kept and over new ones; yield the list of what became of each request."""
    done, ended = [], threading.Event()
    context = ssl.create_default_context(cafile=certificates)

    def ask(host, keep):
        url = f"{host}/models/mixed/predict"
        with httpx.Client(verify=context, timeout=20) as client:
            while not ended.wait(0.01):
                try:
                    headers = {} if keep else {"connection": "close"}
                    answer = client.post(url, content=content, headers=headers)
                    done.append(200 if answer.status_code == 200 else f"{answer.status_code} {answer.text[:300]}")
                except httpx.HTTPError as error:
                    done.append(repr(error))

    ways = [(host, keep) for host in hosts for keep in (True, True, False, False)[:: len(hosts)]]
    threads = [threading.Thread(target=ask, args=way) for way in ways]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def shows(host, context):
    """Return whether a new connection gets the certificate that a context trusts."""
    try:
        return httpx.get(f"{host}/", verify=context).status_code == 200
    except httpx.ConnectError:
        return False


def until(check):
    """Wait until something holds."""
    deadline = time.monotonic() + RENEWED_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)
