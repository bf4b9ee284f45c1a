"""Secrets out of variables, command lines and logs, before anything is stored or shown."""

import re

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"(?i)(token|passw(or)?d|passphrase|secret|api_?key|access_?key|private_?key|credential|auth|cookie|session_?key"
    r"|signature|connection_?string|\bpat\b|_pat$|_key$)"
)
_NOT_SECRET = re.compile(r"(?i)^(ssh_auth_sock|xauthority|.*_key_?file|.*tokeniz.*|.*max.?tokens?.*|.*num.?tokens?.*)$")
_PATTERNS = (
    # user:password@host in any URL
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,200}):[^\s/@]{1,500}@"), rf"\1:{HIDDEN}@"),
    # signed URLs: X-Amz-Signature=, sig=, Signature=, token= ... in a query
    (
        re.compile(
            r"(?i)([?&](?:x-amz-[a-z-]{1,40}|x-goog-[a-z-]{1,40}|sig|signature|token|key|se|sp|sv|skoid|access_token|awsaccesskeyid|policy|expires|key-pair-id)=)[^&\s\"'<>]{1,4000}"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,4000}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    # key formats that services document: Hugging Face, GitHub, GitLab, AWS, Google, Slack, OpenAI and alike
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{16,}|nvapi-[\w-]{16,})"
        ),
        HIDDEN,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}"), HIDDEN),  # JSON web token
    # name=value, name: value, --name value where the name says that it is a secret
    (
        re.compile(
            r"(?i)((?:^|[\s\"'{,;(&?-])[\w.-]{0,60}(?:token|passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)[\w.-]{0,20}[\"']?\s?[=:]\s?[\"']?)(?!\[redacted\])[^\s\"',;)}&]{3,4000}"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"(?i)(--?[\w-]{0,60}(?:token|passw(?:or)?d|passphrase|secret|api-?key|access-?key)\s+)(?!-)\S{3,4000}"
        ),
        rf"\1{HIDDEN}",
    ),
)


def text(words: str) -> str:
    """Any text, with what looks like a secret taken out."""
    for pattern, instead in _PATTERNS:
        words = pattern.sub(instead, words)
    return words


def variable(name: str, value: str) -> str:
    """A variable's value: gone where its name says that it is a secret."""
    if _SECRET_NAME.search(name) and not _NOT_SECRET.match(name):
        return HIDDEN
    return text(value)
