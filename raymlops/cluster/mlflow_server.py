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

from raymlops.cluster.auth import mlflow_header
from raymlops.cluster.ports import HOST
from raymlops.cluster.upfile import home

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

threads = 16
control_socket_disable = True

_OPEN = frozenset({"/health", "/version"})
_CHALLENGE = ("WWW-Authenticate", 'Basic realm="MLflow of raymlops up"')


def post_fork(_arbiter: Any, _worker: Any) -> None:
    """Put the check in front of MLflow's app: gunicorn calls it in each worker before it loads the app."""
    from mlflow.server import app

    app.wsgi_app = OwnerOnly(app.wsgi_app, mlflow_header(home()))  # type: ignore[method-assign]


class OwnerOnly:
    """A WSGI app that answers who sends ``header`` as its authorization, by a name of loopback, from its own pages."""

    def __init__(self, app: WSGIApplication, header: str) -> None:
        self._app, self._header = app, header.encode()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or say why not."""
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if urlsplit(f"//{host}").hostname not in {HOST, "localhost"} or origin not in {None, f"http://{host}"}:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"MLflow of raymlops up answers on 127.0.0.1 and localhost, its own pages alone\n"]
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if environ["PATH_INFO"] not in _OPEN and not hmac.compare_digest(given, self._header):
            start_response("401 Unauthorized", [("Content-Type", "text/plain"), _CHALLENGE])
            return [b"The user is raymlops; the password is in auth/mlflow of RAYMLOPS_HOME (~/.raymlops)\n"]
        environ["wsgi.file_wrapper"] = OwnFile
        return self._app(environ, start_response)


class OwnFile(FileWrapper):  # type: ignore[misc]
    """A file that is served, unless its path goes through a link that another user made."""

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        from werkzeug.exceptions import Forbidden

        path = Path(getattr(file, "name", "/"))
        if any(part.is_symlink() and part.lstat().st_uid not in {0, os.geteuid()} for part in (path, *path.parents)):
            file.close()
            raise Forbidden("the path of this file goes through another user's link")
        super().__init__(file, block_size)
