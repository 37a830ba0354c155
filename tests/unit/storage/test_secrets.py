"""Secrets never appear in an error, a repr, a traceback or a log."""

import io
import time
import traceback
from typing import Any

import pytest
from loguru import logger

from stagecoach.redaction import hide_environment, hide_literals, is_secret_name, redact
from stagecoach.storage import UriRefused, open_store
from stagecoach.storage.settings import StoreSettings
from stagecoach.testing.fault_server import FaultServer

SECRET, TOKEN, KEY_ID = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEBYaDJ0example0session0token", "AKIAIOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    "text",
    [
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"export aws_secret_access_key = '{SECRET}'",
        f'{{"SecretAccessKey": "{SECRET}", "SessionToken": "{TOKEN}"}}',
        f"key {KEY_ID} is wrong",
        f"s3://{KEY_ID}:{SECRET.replace('/', '')}@bucket/x",
        "https://someone:hunter2hunter2@host/x",
        "https://host/x?X-Amz-Signature=0123456789abcdef&X-Amz-Credential=abc/2026&a=b",
        "https://host/x?sv=2024&sig=AbCdEf%2B123%3D",
        f"Authorization: AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request, Signature=0123456789abcdef",
        "{'authorization': 'Bearer abcdef0123456789'}",
        f"x-amz-security-token: {TOKEN}",
        "PREFECT_API_AUTH_STRING=admin:hunter2hunter2",
        "DB_PASSWORD: hunter2hunter2",
        "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2hunter2\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redact(text)
    for secret in (
        SECRET,
        SECRET.replace("/", ""),
        TOKEN,
        KEY_ID,
        "hunter2",
        "0123456789abcdef",
        "AbCdEf",
        "c2lnbmF0dXJl",
        "abcdef0123456789",
    ):
        assert secret not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "tokens=4096 tokens_per_s=24700.5 num_tokens: 1234567890",
        "model.connector.tokens_per_image=144",
        "tokenizer=llama-something token_id=128000",
        "s3://bucket/runs/r1/plan.json?",
        "key 'runs/r1/plan.json' is absolute",
        "read file:///data/a@b/c and mail@example.org",
        "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand() -> None:
    hide_environment(
        {"MY_API_KEY": "plain-words-8d2f", "WANDB_API_KEY": "0c1b2a3948576", "HOME": "/somewhere", "X_TOKEN_FILE": "/var/token"}
    )
    assert redact("a plain-words-8d2f b 0c1b2a3948576 c /somewhere /var/token") == "a *** b *** c /somewhere /var/token"
    hide_literals(["short"])
    assert redact("a short word") == "a short word"
    assert is_secret_name("AWS_SECRET_ACCESS_KEY")
    assert is_secret_name("AWS_ACCESS_KEY_ID")
    assert not is_secret_name("AWS_WEB_IDENTITY_TOKEN_FILE")
    assert not is_secret_name("MONKEY")


def test_long_lines_take_linear_time() -> None:
    for line in ("x" * 500_000, "a_b-c." * 100_000, "token " * 100_000, "http://" * 70_000):
        began = time.process_time()
        redact(line)
        assert time.process_time() - began < 1.0


def test_a_refused_uri_is_shown_without_its_secret() -> None:
    with pytest.raises(UriRefused) as caught:
        open_store("s3://someone:hunter2hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    assert "bucket/x" in str(caught.value)


@pytest.mark.parametrize("fault", ["forbid", "refuse", "down", "expired"])
def test_no_error_traceback_log_or_repr_of_a_failing_call_holds_a_secret(
    fault: str, faulty: FaultServer, s3_uri: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    store = open_store(s3_uri, settings=StoreSettings(deadline_s=5), clock=clock)
    _break(faulty, fault)
    log = io.StringIO()
    sink = logger.add(log, level=0, backtrace=True, diagnose=False)
    try:
        with pytest.raises(Exception) as caught:
            store.publish("a", b"1")
        logger.opt(exception=caught.value).error("a call failed: {!r} of {!r}", caught.value, store)
    finally:
        logger.remove(sink)
    shown = "".join(traceback.format_exception(caught.value)) + log.getvalue() + repr(store) + repr(store._backend) + str(caught.value)
    assert "Error" in shown or "Denied" in shown or "Unavailable" in shown
    for secret in (SECRET, TOKEN, KEY_ID):
        assert secret not in shown


def _break(faulty: FaultServer, fault: str) -> None:
    faulty.faults.forbid = fault == "forbid"
    faulty.faults.refuse_while = lambda: fault == "refuse"
    faulty.faults.expired_token = TOKEN if fault == "expired" else None
    if fault == "down":
        faulty.down()
