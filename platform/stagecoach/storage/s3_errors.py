"""What S3, its client and the network say, turned into our errors: each cause a sentence of its own, with what to do."""

import email.utils
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

from stagecoach.errors import StagecoachError
from stagecoach.redaction import redact
from stagecoach.storage.errors import AccessDenied, NotFound, StoreMisconfigured
from stagecoach.storage.retry import Transient
from stagecoach.storage.settings import StoreSettings

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "TemporaryRedirect", "301"}
_REFUSED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "ServiceUnavailable",
    "InternalError",
}
_REFUSED |= {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "Busy", "ServerBusy"}
_NOT_THERE = {"NoSuchKey", "NotFound", "404"}
_KEY_ADVICE = {
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "this machine's clock is off by more than the store allows; set the clock",
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
}


class Expired(Exception):
    """Internal: the credentials are past their time."""


class PreconditionFailed(Exception):
    """Internal: If-Match or If-None-Match did not hold."""


class RangeNotSatisfiable(Exception):
    """Internal: the range starts behind the end of the object."""


class Redirected(Exception):
    """Internal: the answer sends to another address, which it names."""


_OURS = (StagecoachError, Transient, Expired, PreconditionFailed, RangeNotSatisfiable)


def endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the endpoint of AWS"


def translate(error: BaseException, *, verb: str, bucket: str, key: str, settings: StoreSettings) -> BaseException:
    """Returns what to raise: Transient (try again), an internal signal of this module, or one of storage's errors."""
    response = _response(error)
    if response is not None:
        return _translate_reply(response, verb, bucket, key)
    return _translate_failure(error, verb, bucket, settings)


def _response(error: BaseException) -> Mapping[str, Any] | None:
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response
    return None


def _translate_reply(response: Mapping[str, Any], verb: str, bucket: str, key: str) -> BaseException:
    code, status = str(response["Error"].get("Code", "")), _status(response)
    what = f"{verb} s3://{bucket}/{key}"
    if code in EXPIRED or (status == 400 and code == "400"):  # HEAD carries no code
        return Expired(f"{what}: {code}")
    if status == 412:
        return PreconditionFailed(what)
    if status == 416:
        return RangeNotSatisfiable(what)
    if code == "NoSuchBucket":
        return StoreMisconfigured(f"{what}: bucket '{bucket}' does not exist at {endpoint()}; create it, or correct the name in the URI")
    if code == "NoSuchUpload":
        return Transient("broken", f"{code} ({status})")
    if code in _NOT_THERE or status == 404:
        return NotFound(f"s3://{bucket}/{key} does not exist")
    if code in _WRONG_REGION or status == 301:
        return _wrong_region(response, what, bucket)
    if code in _REFUSED or status == 429 or (status >= 500 and status != 501):
        return Transient("refused", f"{status} {code} {response['Error'].get('Message', '')}".strip(), retry_after_s=_retry_after(response))
    if status == 403 or code in _KEY_ADVICE:
        return _denied(code, what, bucket, verb)
    message = redact(str(response["Error"].get("Message", "")))
    return StoreMisconfigured(f"{what}: the server at {endpoint()} answers {status} {code} ({message}), so it cannot be used like this")


def _status(response: Mapping[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def _denied(code: str, what: str, bucket: str, verb: str) -> AccessDenied:
    advice = _KEY_ADVICE.get(code) or (
        f"allow s3:{verb} on bucket '{bucket}' and this key (policy of the bucket and of the role), or use other credentials (AWS_*)"
    )
    return AccessDenied(f"{what}: 403 {code if code != '403' else 'Forbidden'}: {advice}. Not tried again.")


def _wrong_region(response: Mapping[str, Any], what: str, bucket: str) -> StoreMisconfigured:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    right = headers.get("x-amz-bucket-region") or response["Error"].get("Region") or "another region"
    ours = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "the default"
    return StoreMisconfigured(
        f"{what}: bucket '{bucket}' is in {right}, but this process uses region {ours}; set AWS_REGION to the bucket's region"
    )


def _retry_after(response: Mapping[str, Any]) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3)."""
    value = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _translate_failure(error: BaseException, verb: str, bucket: str, settings: StoreSettings) -> BaseException:
    from botocore import exceptions as boto

    where, says = endpoint(), redact(str(error)) or type(error).__name__
    redirected = next((link for link in _chain(error) if isinstance(link, Redirected)), None)
    if redirected is not None:
        return StoreMisconfigured(
            f"{verb} s3://{bucket}: {where} redirects to {redact(str(redirected))}, and redirects are not followed: they may lead "
            "to any address inside; point AWS_ENDPOINT_URL_S3 at the store itself"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return AccessDenied(
            f"{verb} s3://{bucket}: no usable credentials for {where} ({says}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, boto.NoRegionError):
        return StoreMisconfigured(f"{verb} s3://{bucket}: no region is set; set AWS_REGION")
    if isinstance(error, boto.ParamValidationError):
        return StoreMisconfigured(f"{verb} s3://{bucket}: the client refuses the name ({says}); correct the bucket or key in the URI")
    if _is_certificate_problem(error):
        return StoreMisconfigured(
            f"{verb} s3://{bucket}: no trusted TLS connection to {where} ({says}); point AWS_CA_BUNDLE at the authority that signed "
            "the server's certificate, or correct http:// or https:// in AWS_ENDPOINT_URL_S3"
        )
    if any(isinstance(link, socket.gaierror) or "DNS" in type(link).__name__ for link in _chain(error)):
        says = f"the host name of {where} does not resolve; correct AWS_ENDPOINT_URL_S3 or the DNS"
        return Transient("unreachable", says, give_up_after_s=settings.first_contact_s)
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError | ConnectionRefusedError):
        return Transient("unreachable", f"{where} refuses connections or does not answer them ({says})")
    if isinstance(error, boto.InvalidEndpointDiscoveryConfigurationError) or (isinstance(error, ValueError) and "endpoint" in says.lower()):
        return StoreMisconfigured(f"{verb} s3://{bucket}: AWS_ENDPOINT_URL_S3={redact(where)} is no valid address ({says})")
    if _is_broken_transfer(error):
        return Transient("broken", f"the connection to {where} broke: {says}")
    return error


def _is_certificate_problem(error: BaseException) -> bool:
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in _chain(error)):
        return True
    return any(sign in str(error) for sign in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_CA"))


def _is_broken_transfer(error: BaseException) -> bool:
    from botocore import exceptions as boto

    if isinstance(error, boto.HTTPClientError | boto.IncompleteReadError | boto.FlexibleChecksumError | OSError | TimeoutError):
        return True
    return any(type(link).__module__.partition(".")[0] == "aiohttp" for link in _chain(error)) or "ParserError" in type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it. aiobotocore keeps the cause in `kwargs['error']`, aiohttp in `os_error`. An error of ours among them
    is what the caller was handling when it asked for this, and tells of an earlier request."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        link = waiting.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = getattr(link, "kwargs", None)
        causes = (
            link.__cause__,
            link.__context__,
            getattr(link, "os_error", None),
            inner.get("error") if isinstance(inner, dict) else None,
        )
        waiting += [cause for cause in causes if not isinstance(cause, _OURS)]
