"""Connections to S3 and what their errors mean.

The endpoint, region and credentials come from the usual ``AWS_*`` environment variables (``AWS_ENDPOINT_URL`` for a server
other than Amazon's). A request is sent up to 5 times, with random pauses of up to 1, 2, 4 and 8 s, if the connection is refused
or reset or the server is busy (503) or silent for 3 s: a server that is gone is reported within half a minute.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from gampen_ray.errors import AGAIN, StorageError, UserError

__all__ = ["client", "explained", "failure", "filesystem"]

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_ATTEMPTS = 5
# pyarrow's names of transient errors, and of those that call for other credentials.
_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT)"
    r"|HTTP status 5\d\d"
)
_REFUSED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|REQUEST_EXPIRED|INVALID_CLIENT_TOKEN_ID)"
    r"|ExpiredToken|InvalidToken|HTTP status 40[13]"
)


def filesystem() -> pafs.FileSystem:
    """Return pyarrow's file system of S3."""
    return _filesystem(*_settings())


def client() -> Any:
    """Return a thread-safe botocore client, for requests that pyarrow's file system does not offer."""
    return _client(*_settings())


def failure(uri: str, text: str) -> UserError | StorageError:
    """Return the error to raise for what pyarrow or botocore says of a URI."""
    text = text.partition("; Details:")[0]
    if _TRANSIENT.search(text):
        return StorageError(
            f"{uri}: the server failed {_ATTEMPTS} times in a row: {text}; check AWS_ENDPOINT_URL and the network, and {AGAIN}"
        )
    if "NO_SUCH_BUCKET" in text:
        return UserError(f"{uri}: no such bucket; create it, or check its name and AWS_ENDPOINT_URL")
    if _REFUSED.search(text):
        return UserError(
            f"{uri}: the server refuses the credentials: {text}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for "
            "temporary ones, AWS_SESSION_TOKEN"
        )
    return UserError(f"{uri}: {text}; check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the AWS credentials")


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the errors of a botocore client into a `UserError` or a `StorageError` that names the URI."""
    # Importing botocore takes a tenth of a second, which `gampen-ray --help` need not wait.
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        text = f"{error} (HTTP status {error.response['ResponseMetadata'].get('HTTPStatusCode')})"
        raise failure(uri, text.replace("NoSuchBucket", "NO_SUCH_BUCKET")) from None
    except BotoCoreError as error:
        raise failure(uri, f"AWS Error NETWORK_CONNECTION: {error}") from None


def _settings() -> tuple[str, str, tuple[str, ...]]:
    """Return endpoint, region and credentials from the environment; the credentials only distinguish cached connections."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        if scheme not in ("", "http", "https"):
            raise UserError(
                f"AWS_ENDPOINT_URL: {endpoint} has the scheme {scheme}; write http://host:port or https://host:port"
            )
        endpoint = f"{scheme or 'https'}://{host.rstrip('/')}"
    # Servers other than Amazon's accept any region; without one, pyarrow would ask Amazon for the bucket's.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else "")
    return endpoint, region, tuple(os.environ.get(name, "") for name in _CREDENTIALS)


@functools.lru_cache(maxsize=8)
def _filesystem(endpoint: str, region: str, credentials: tuple[str, ...]) -> pafs.FileSystem:
    del credentials
    options: dict[str, Any] = {"region": region} if region else {}
    if endpoint:
        options["scheme"], _, options["endpoint_override"] = endpoint.partition("://")
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    return pafs.S3FileSystem(**options, retry_strategy=retries, connect_timeout=3)


@functools.lru_cache(maxsize=8)
def _client(endpoint: str, region: str, credentials: tuple[str, ...]) -> Any:
    del credentials
    import botocore.config
    import botocore.session

    config = botocore.config.Config(
        connect_timeout=3,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Not every server supports the checksums that newer clients send and expect.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = botocore.session.get_session()
    return session.create_client("s3", endpoint_url=endpoint or None, region_name=region or None, config=config)
