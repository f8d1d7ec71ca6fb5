"""gunicorn's configuration of MLflow's server of ``raymlops up``: MLflow's Flask app behind a password.

MLflow asks nobody who calls it, so that any user of the machine could read its owner's files by it. Flask's app has no
assistant, which runs commands, and no gateway: MLflow 3.17 mounts both in FastAPI's, which ``mlflow server`` runs by
default. Owns who is answered; the password's file belongs to ``auth``.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gunicorn.http.wsgi import FileWrapper
from werkzeug import Response, exceptions

from raymlops.cluster.auth import mlflow_header
from raymlops.cluster.upfile import home

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

threads = 16
control_socket_disable = True


def post_fork(_arbiter: Any, _worker: Any) -> None:
    """Put the check in front of MLflow's app: gunicorn calls it in each worker before it loads the app."""
    from mlflow.server import app

    app.wsgi_app = owner_only(app.wsgi_app, mlflow_header(home()))


def owner_only(app: WSGIApplication, header: str) -> WSGIApplication:
    """Return an app that answers who sends ``header`` as authorization, by a name of loopback, from its own pages."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if urlsplit(f"//{host}").hostname not in {"127.0.0.1", "localhost"} or origin not in {None, f"http://{host}"}:
            refusal = Response("only http://127.0.0.1 and http://localhost, and no other origin\n", 403)
        elif environ["PATH_INFO"] in {"/health", "/version"} or hmac.compare_digest(given, header.encode()):
            return app({**environ, "wsgi.file_wrapper": OwnFile}, start_response)
        else:
            refusal = Response("user raymlops, password in auth/mlflow of RAYMLOPS_HOME (~/.raymlops)\n", 401)
            refusal.headers["WWW-Authenticate"] = 'Basic realm="MLflow of raymlops up"'
        return refusal(environ, start_response)

    return answer


class OwnFile(FileWrapper):  # type: ignore[misc]
    """A file that is served, unless its path goes through a link that another user made."""

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        path = Path(getattr(file, "name", "/"))
        if any(part.is_symlink() and part.lstat().st_uid not in {0, os.geteuid()} for part in (path, *path.parents)):
            file.close()
            raise exceptions.Forbidden("the path of this file goes through another user's link")
        super().__init__(file, block_size)
