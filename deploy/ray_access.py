"""Which cluster is asked and with which token, found as Ray's own tools find them.

Ray's tools take it only with RAY_AUTH_MODE=token; its clusters, on the other hand, ask for one as
soon as ~/.ray/auth_token exists.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.failures import InputError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def default_address() -> str:
    """The job server that Ray's own tools would ask."""
    for variable in ADDRESS_VARIABLES:
        if os.environ.get(variable, "").startswith(("http://", "https://")):
            return os.environ[variable]
    return DEFAULT_ADDRESS


def find_token() -> tuple[str, str] | None:
    """The token for clusters that ask for one, and where it is from, by Ray's rules:
    RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token. None where there is
    none, or RAY_AUTH_MODE is disabled.

    Raises InputError where RAY_AUTH_TOKEN_PATH names no token.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        if not named and not path.exists():
            return None
        raise InputError(str(path), f"no token can be read from it: {unreadable}") from None
    if not token and named:
        raise InputError(f"RAY_AUTH_TOKEN_PATH={named}", "the file is empty, and holds no token")
    return (token, str(path)) if token else None


def token_wanted() -> str:
    """The sentence on a cluster that asks for a token which was not sent."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "asks for a token, and RAY_AUTH_MODE=disabled keeps it from being sent; unset it"
    return (
        "asks for a token and there is none here; set RAY_AUTH_TOKEN, or put it in "
        "~/.ray/auth_token (`ray get-auth-token` on the head prints it)"
    )
