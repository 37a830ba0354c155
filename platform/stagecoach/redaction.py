"""Keeps secrets out of everything a person or a log file gets to see. Standard library only.

Two nets: patterns (what a secret looks like, or stands behind) and the literal values of secret-looking environment variables.
"""

import os
import re
import threading
from collections.abc import Iterable, Mapping

HIDDEN = "***"
MIN_SECRET_CHARS = 8  # shorter values ("1", "true", "testing") would blank out ordinary text
MIN_KEY_ID_CHARS = 16  # the name of a key is half public, and in tests an everyday word; real ones are 16 to 128 characters

# A name ends with the word: session_token, SecretAccessKey; not tokens_per_step, tokenizer or token_id. Only the ending is matched,
# never the whole name, so that a long line takes linear time.
_NAME_ENDING = (
    r"(?:(?<![A-Za-z0-9])|(?<=[a-z])(?=[A-Z]))"
    r"(?i:secret|token|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key"
    r"|secret[_-]?(?:access[_-]?)?key|auth[_-]?string)"
)
_SECRET_ENV = re.compile(r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY|KEY_ID|AUTH_STRING)$", re.IGNORECASE)

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ANVA)[A-Z0-9]{12,}\b"), HIDDEN),
    (re.compile(r"\beyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*"), HIDDEN),  # JSON web tokens: service accounts, web identity
    (re.compile(r"\b(?:hf|ghp|gho|ghs|glpat|pnu|pnb|xox[abprs])[_-][A-Za-z0-9_\-]{16,}"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    # scheme://user:password@host and scheme://token@host. An e-mail address in a path has a '/' before its '@'.
    (re.compile(r"(?<=://)[^\s/@'\"<>]+@"), f"{HIDDEN}@"),
    (
        re.compile(
            r"(?i)([?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId|Signature|sig|se?cret"
            r"|token|access_token|password|api[_-]?key|key)=)[^&\s'\"#<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(Signature|Credential)=[^\s,'\"]+"), rf"\1={HIDDEN}"),
    (re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer|digest)\s+)?[^\s'\",}]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/\-]{8,}=*"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(x-amz-security-token['\"]?\s*[:=]\s*['\"]?)[^\s'\",}]+"), rf"\1{HIDDEN}"),
    (re.compile(rf"({_NAME_ENDING})(['\"]?\s*[=:]\s*)(?:'[^']{{6,}}'|\"[^\"]{{6,}}\"|[^\s'\",;}}&<]{{6,}})"), rf"\1\2{HIDDEN}"),
)

_lock = threading.Lock()
_literals: set[str] = set()
_literal_pattern: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Returns the text with every secret we can recognise replaced by ***."""
    pattern = _literal_pattern
    if pattern is not None:
        text = pattern.sub(HIDDEN, text)
    for expression, replacement in _PATTERNS:
        text = expression.sub(replacement, text)
    return text


def hide_literals(values: Iterable[str]) -> None:
    """From now on these very values are hidden wherever they appear (values shorter than 8 characters are not)."""
    global _literal_pattern
    with _lock:
        _literals.update(value for value in values if len(value) >= MIN_SECRET_CHARS)
        longest_first = sorted(_literals, key=len, reverse=True)
        _literal_pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def hide_environment(environment: Mapping[str, str] | None = None) -> None:
    """Hides the values of all secret-looking variables (KEY, SECRET, TOKEN, PASSWORD, …). Called when a store opens and when logs open."""
    source = os.environ if environment is None else environment
    hide_literals(value for name, value in source.items() if is_secret_name(name) and len(value) >= _shortest_secret(name))


def is_secret_name(name: str) -> bool:
    """True for names like AWS_SECRET_ACCESS_KEY; false for those of files and addresses, like AWS_WEB_IDENTITY_TOKEN_FILE."""
    return bool(_SECRET_ENV.search(name))


def _shortest_secret(name: str) -> int:
    return MIN_KEY_ID_CHARS if name.upper().endswith("KEY_ID") else MIN_SECRET_CHARS
