"""Secrets out of variables, command lines and logs, before anything is stored or shown."""

import re
from collections.abc import Sequence

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"(?i)(token|passw(or)?d|passphrase|secret|api_?key|access_?key|private_?key|credential|auth|cookie|session_?key"
    r"|signature|connection_?string|\bpat\b|_pat$|_key$)"
)
_NOT_SECRET = re.compile(r"(?i)^(ssh_auth_sock|xauthority|.*_key_?file|.*tokeniz.*|.*max.?tokens?.*|.*num.?tokens?.*)$")
_NAME = (
    r"(?:token|passw(?:or)?d|passphrase|passcode|secret|api[_-]?key|access[_-]?key|account[_-]?key|shared[_-]?key"
    r"|private[_-]?key|signing[_-]?key|encryption[_-]?key|credentials?|sharedaccesssignature|[a-z0-9]_key|_pwd)"
)
_VALUE = r"(?:\"[^\"\n]{1,4000}\"|'[^'\n]{1,4000}'|[^\s\"',;)}&]{3,4000})"
_PATTERNS = (
    # user:password@host in any URL
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,200}):[^\s/@]{1,500}@"), rf"\1:{HIDDEN}@"),
    # signed URLs: X-Amz-Signature=, sig=, Signature=, token= ... in a query
    (
        re.compile(
            r"(?i)([?&](?:x-amz-[a-z-]{1,40}|x-goog-[a-z-]{1,40}|sig|signature|token|key|se|sp|sv|skoid|access_token"
            r"|awsaccesskeyid|policy|expires|key-pair-id)=)[^&\s\"'<>]{1,4000}"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic|authorization:\s*token)\s+[A-Za-z0-9._~+/=-]{8,4000}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    # the end of one, where what was read begins in its middle
    (re.compile(r"\A[\w+/=\s-]{0,20000}-----END [A-Z ]{0,40}PRIVATE KEY-----"), HIDDEN),
    # key formats that services document: Hugging Face, GitHub, GitLab, AWS, Google, Slack, OpenAI and alike
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{16,}"
            r"|nvapi-[\w-]{16,}|npm_[A-Za-z0-9]{30,}|pypi-AgEI[\w-]{16,}|dckr_pat_[\w-]{16,}|hv[sb]\.[\w-]{16,}"
            r"|dapi[0-9a-f]{32}|AGE-SECRET-KEY-1[A-Z0-9]{40,})"
        ),
        HIDDEN,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}"), HIDDEN),  # JSON web token
    (re.compile(r"(hooks\.slack\.com/services/)[\w/]{8,}[\w-]*"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)(--?[\w-]{0,60}(?:token|passw(?:or)?d|passphrase|secret|api-?key|access-?key)\s+)"
            rf"(?!-|\[redacted\]){_VALUE}"
        ),
        rf"\1{HIDDEN}",
    ),
    # curl -u name:password; numbers are user and group ids
    (re.compile(r"((?:^|\s)(?:-u|--user)[\s=][^\s:]{1,80}):(?!\d+(?:\s|$)|\[redacted\])\S{1,500}"), rf"\1:{HIDDEN}"),
    (re.compile(r"(\bsshpass\s+-p\s?)(?!\[redacted\])\S{1,500}"), rf"\1{HIDDEN}"),
)


# name=value and name: value where the name says that it is a secret; its beginning is looked at where it matters
_NAMED = re.compile(rf"(?i)(({_NAME}[\w.-]{{0,20}})[\"']?\s?[=:]\s?)(?![\"']?\[redacted\]){_VALUE}")
_BEFORE = re.compile(r"[\w.-]*\Z")


def text(words: str) -> str:
    """Any text, with what looks like a secret taken out."""
    for pattern, instead in _PATTERNS:
        words = pattern.sub(instead, words)
    return _NAMED.sub(_without_value, words)


def _without_value(match: re.Match[str]) -> str:
    before = _BEFORE.search(match.string, max(match.start() - 60, 0), match.start())
    name = (before[0] if before else "") + match[2]
    return match[0] if _NOT_SECRET.match(name.lstrip("-").replace("-", "_")) else match[1] + HIDDEN


def variable(name: str, value: str) -> str:
    """A variable's value: gone where its name says that it is a secret."""
    return HIDDEN if _is_secret(name) else text(value)


def command(words: Sequence[str]) -> str:
    """A command line, from its words: the blanks in a secret are known, as they are not in one line of text."""
    shown: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-") and not equals
        if hide and not is_option:
            shown.append(HIDDEN)
        elif equals and _is_secret(name.lstrip("-").replace("-", "_")):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
        hide = is_option and _is_secret(word.lstrip("-").replace("-", "_"))
    return text(" ".join(shown))


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.match(name)
