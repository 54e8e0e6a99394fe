"""Where the tracking server is, and who asks it, as MLflow's own clients find out.

The variables MLFLOW_TRACKING_USERNAME and _PASSWORD, else ~/.mlflow/credentials, else the token of
MLFLOW_TRACKING_TOKEN. Source: mlflow/utils/credentials.py and rest_utils.py of https://github.com/mlflow/mlflow
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

from modelbake.credentials import Secret
from modelbake.errors import SourceAuthError, SourceError
from modelbake.grammar import HUB
from modelbake.sources.netrc import basic

TRACKING = "MLFLOW_TRACKING_URI"
CHAIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, ~/.mlflow/credentials, MLFLOW_TRACKING_TOKEN"


def tracking_server(server: str, environ: Mapping[str, str], subject: str) -> str:
    """Return the URL of the server that a source names, or the environment. Raises SourceError."""
    found = server or environ.get(TRACKING, "").rstrip("/")
    if not found:
        raise SourceError(
            "names no MLflow server", subject=subject, hint=f"set {TRACKING}, or `endpoint` in models.yaml"
        )
    if not HUB.matches(found):
        raise SourceError(
            f"{TRACKING} is not the URL of a tracking server",
            subject=subject,
            hint=f"for example https://mlflow.example.com; {HUB.advise(found) or 'no database'}",
        )
    return found


def authorization(environ: Mapping[str, str], subject: str) -> dict[str, str]:
    """Return the header Authorization, none where there are no credentials. Raises SourceAuthError."""
    path = Path(environ.get("HOME") or Path.home(), ".mlflow", "credentials")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (configparser.Error, OSError, UnicodeError) as error:
        # The parser's message would quote the file.
        raise SourceAuthError(
            f"{path} cannot be read ({type(error).__name__})",
            subject=subject,
            hint="it has a section [mlflow] with mlflow_tracking_username and mlflow_tracking_password",
        ) from None
    section = parser["mlflow"] if parser.has_section("mlflow") else {}

    def value(name: str) -> str:
        return environ.get(name, "") or section.get(name.lower(), "")

    user, password = value("MLFLOW_TRACKING_USERNAME"), Secret(value("MLFLOW_TRACKING_PASSWORD"))
    token = Secret(environ.get("MLFLOW_TRACKING_TOKEN", ""))
    if user and password:
        return basic(user, password)
    return {"authorization": f"Bearer {token.reveal()}"} if token else {}
