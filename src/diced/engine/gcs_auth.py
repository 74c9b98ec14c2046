"""Credentials for Google Cloud Storage: where they come from, and what to say if there are none."""

from __future__ import annotations

import json
import os
from typing import Any

from diced.errors import AccessError, UnsupportedError

REMEDY = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, pass "
    "permissionfile= (the JSON key of a service account), or readonly=True for a public bucket"
)


def find_credentials(
    bucket: str, permissionfile: str | None, readonly: bool
) -> tuple[str, Any, str]:
    """Return the endpoint, the credentials (None for none), and what to call them."""
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud.storage import Client
    except ImportError as error:
        raise UnsupportedError(
            f"gs:// needs google-cloud-storage: pip install google-cloud-storage ({error})"
        ) from error

    who = "the default credentials"
    if permissionfile is not None:
        path = os.fspath(permissionfile)
        who = f"the key of permissionfile {path!r}"
        try:
            with open(path, encoding="utf-8") as file:
                key = json.load(file)
            if not isinstance(key, dict) or key.get("type") != "service_account":
                raise ValueError("its type is not 'service_account'")
            client = Client.from_service_account_info(key)
        except (GoogleAuthError, OSError, ValueError, TypeError, KeyError) as error:
            raise AccessError(
                f"permissionfile {path!r} is not a readable JSON key of a service account: {error}"
            ) from error
    else:
        try:
            client = Client(project=None)
        except DefaultCredentialsError as error:
            # A file that is named and broken has another message, and is an error for readers too.
            if not readonly or "credentials were not found" not in str(error):
                raise AccessError(
                    f"no credentials for bucket {bucket!r}: {str(error).rstrip('.')}; {REMEDY}"
                ) from error
            client = Client.create_anonymous_client()
        except (GoogleAuthError, ValueError, TypeError, KeyError, AttributeError) as error:
            # The last four are what a malformed file raises in there.
            raise AccessError(
                f"{who} for bucket {bucket!r} are of no use: {error}; {REMEDY}"
            ) from error
    credentials = client._credentials
    endpoint: str = client._connection.API_BASE_URL
    # Plain http is an emulator's, which STORAGE_EMULATOR_HOST named; no token belongs there.
    if isinstance(credentials, AnonymousCredentials) or endpoint.startswith("http:"):
        credentials, who = None, "no credentials"
    return endpoint, credentials, who
