"""One secret of each kind, made anew each time, as people commit them: whole lines of files.

They open nothing. No line here may look like a secret itself, so each is put together when it is asked for.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Mapping

_WORD = string.ascii_letters + string.digits
_KEY_TYPES = ("RSA ", "OPENSSH ", "EC ", "")


def planted_secrets(seed: int) -> Mapping[str, tuple[str, str]]:
    """Return, by kind, the name of a file and its content."""
    some = random.Random(seed)  # reproducible where something is not found

    def word(length: int, letters: str = _WORD) -> str:
        return "".join(some.choices(letters, k=length))

    def based(length: int) -> str:
        return base64.b64encode(some.randbytes(length)).decode()

    def url_based(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    upper = string.ascii_uppercase + string.digits
    digits, hexadecimal = string.digits, string.hexdigits[:16]
    begin, end = "-----BEGIN {}PRIVATE" + " KEY-----", "-----END {}PRIVATE" + " KEY-----"

    def key(kind: str) -> str:
        return "\n".join([begin.format(kind), *(based(48) for _ in range(8)), end.format(kind)])

    google = {
        "type": "service_account",
        "private_key_id": word(40, hexadecimal),
        "private_key": key("") + "\n",
    }
    docker = {
        "auths": {"registry.example.com": {"auth": base64.b64encode(f"ci:{word(24)}".encode()).decode()}}
    }
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": word(10), "iat": 1500000000})]
    token = ".".join(url_based(part.encode()) for part in parts) + "." + url_based(some.randbytes(32))
    return {
        "Hugging Face, in YAML": ("values.yaml", f"hub:\n  value: hf_{word(34)}\n"),
        "Hugging Face, in a shell script": ("run.sh", f"export HF_TOKEN=hf_{word(34)}\n"),
        "Hugging Face, in prose": ("notes.md", f"Log in with `hf_{word(34)}` first.\n"),
        "AWS access key": ("aws.yaml", f"id: AKIA{word(16, upper)}\n"),
        "AWS session key": ("session.yaml", f"id: ASIA{word(16, upper)}\n"),
        "AWS secret key": ("credentials.ini", f"aws_secret_access_key = {based(30)}\n"),
        "Google API key": ("google.py", f'maps("AIza{word(35)}")\n'),
        "Google service account": ("account.json", json.dumps(google, indent=2) + "\n"),
        "Google OAuth secret": ("oauth.txt", f"GOCSPX-{word(28)}\n"),
        "Azure storage key": (
            "azure.conf",
            f"DefaultEndpointsProtocol=https;AccountName=ml;AccountKey={based(64)};"
            "EndpointSuffix=core.windows.net\n",
        ),
        "Azure client secret": ("client.env", f"X={word(3)}8Q~{word(34)}\n"),
        "Azure shared access signature": (
            "sas.txt",
            f"https://ml.blob.core.windows.net/w?sv=2024-11-04&sp=r&sig={word(43)}%3D\n",
        ),
        "GitHub token": ("ci.yml", f"key: ghp_{word(36)}\n"),
        "GitHub Actions token": ("actions.txt", f"ghs_{word(36)}\n"),
        "GitHub fine-grained token": ("fine.txt", f"github_pat_{word(22)}_{word(59)}\n"),
        "GitLab token": ("gitlab.txt", f"glpat-{word(20)}\n"),
        "Slack token": ("slack.txt", f"xoxb-{word(12, digits)}-{word(12, digits)}-{word(24)}\n"),
        "Slack webhook": (
            "hook.txt",
            f"https://hooks.slack.com/services/T{word(8, upper)}/B{word(8, upper)}/{word(24)}\n",
        ),
        **{
            f"private key ({kind or 'PKCS 8'})": (f"{kind.strip() or 'p8'}.txt", key(kind) + "\n")
            for kind in _KEY_TYPES
        },
        "password in a URL": ("pip.txt", f"https://ci:{word(16)}@pypi.internal/simple\n"),
        "JSON web token": ("jwt.txt", f"{token}\n"),
        "Docker login": ("docker.json", json.dumps(docker) + "\n"),
        "PyPI token": ("pypi.txt", f"pypi-AgEIcHlwaS5vcmc{word(90)}\n"),
        "npm token": ("npmrc", f"//registry.npmjs.org/:_auth{'Token'}=npm_{word(36)}\n"),
        "OpenAI key": ("openai.py", f'client = OpenAI(api_key="sk-{word(20)}T3BlbkFJ{word(20)}")\n'),
        "a password in Python": ("settings.py", f'PASSWORD = "{word(20)}"\n'),
        "a password in YAML": ("compose.yaml", f"db_password: {word(20)}\n"),
    }  # fmt: skip
