"""What looks like a secret is gone, wherever it stands; what only sounds like one stays."""

import pytest

from smoldiag import redact

SECRET = "Xq7-tR9_zK2mB4nL8pW1vC6d"
KEY = "MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun"


@pytest.mark.parametrize(
    "words",
    [
        f"--token {SECRET}",
        f"--token={SECRET}",
        f'--password "correct {SECRET} staple"',
        f"password: '{SECRET} and more'",
        f'{{"api_key": "{SECRET}"}}',
        f"HF_TOKEN={SECRET} python x.py",
        f"export AWS_SECRET_ACCESS_KEY={SECRET}",
        f"WANDB_KEY={SECRET}",
        f"MYSQL_PWD={SECRET}",
        f"curl -u me:{SECRET} https://x",
        f"curl --user me:{SECRET} https://x",
        f"sshpass -p {SECRET} ssh a",
        f"sshpass -p{SECRET} ssh a",
        f"https://me:{SECRET}@host/path",
        f"postgresql://me:{SECRET}@db:5432/x",
        f"ds=nocloud;s=http://u:{SECRET}@h/",
        f"https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}&X-Amz-Credential=A%2Fb",
        f"https://a.blob.core.windows.net/c?sv=2024&sig={SECRET}",
        f"https://storage.googleapis.com/b/o?X-Goog-Signature={SECRET}",
        f"https://d1.cloudfront.net/x?Policy={SECRET}&Key-Pair-Id=K",
        f"Authorization: Bearer {SECRET}",
        f"Authorization: Basic {SECRET}",
        f"authorization: token {SECRET}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;EndpointSuffix=core.windows.net",
        f"SharedAccessSignature={SECRET}",
        f"hooks.slack.com/services/T00000000/B00000000/{SECRET}",
        f"x -----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
        f"{SECRET}{KEY}\n-----END RSA PRIVATE KEY-----\nafter",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.Xq7tR9zK2mB4nL8pW1vC6d",
    ],
)
def test_secrets_are_gone(words: str) -> None:
    cleaned = redact.text(words)
    assert SECRET not in cleaned
    assert "Xq7tR9zK2mB4nL8pW1vC6d" not in cleaned
    assert redact.text(cleaned) == cleaned


@pytest.mark.parametrize(
    "token",
    [
        *("hf_" + "a1B2" * 8, "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 8, "glpat-" + "a1B2" * 5),
        *("AKIAIOSFODNN7EXAMPLE", "AIza" + "a1B2" * 9, "xoxb-1234567890-abcdef", "sk-proj-" + "a1B2" * 6),
        *("nvapi-" + "a1B2" * 10, "npm_" + "a1B2" * 9, "pypi-AgEIcHlwaS5vcmc" + "a1B2" * 8, "dckr_pat_" + "a1B2" * 6),
        *("hvs." + "a1B2" * 8, "ya29." + "a1B2" * 8, "dapi" + "a1b2" * 8, "AGE-SECRET-KEY-1" + "A1B2" * 14),
    ],
)
def test_keys_of_services_are_known_by_their_form(token: str) -> None:
    assert token not in redact.text(f"saw {token}, then went on")


@pytest.mark.parametrize(
    "words",
    [
        "NCCL_IB_PKEY=0x7fff",
        "tokens per second: 51234",
        "max_tokens=4096 --tokenizer gpt2 --num-tokens 100",
        "NET/IB : Using [0]mlx5_0:1/RoCE [RO]; OOB eth0:10.0.0.1<0>",
        "key = value pairs: /etc/nccl.conf:3",
        "monkey=1 turkey=2",
        "/usr/lib/python3/dist-packages/keyring/backends/SecretService.py",
        "0000:1b:00.0 GPU-5c2e7f6a-1234",
        "-u root --user 1000:1000",
    ],
)
def test_the_rest_stays(words: str) -> None:
    assert redact.text(words) == words


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["python", "x.py", "--api-key", "a b c", "--lr", "1"], "python x.py --api-key [redacted] --lr 1"),
        (["x", "--db-password=a b c"], "x --db-password=[redacted]"),
        (["x", "--max-tokens", "5", "--tokenizer", "t"], "x --max-tokens 5 --tokenizer t"),
        (["env", "WANDB_API_KEY=a b", "y"], "env WANDB_API_KEY=[redacted] y"),
        (["x", "--token"], "x --token"),
    ],
)
def test_command_lines(words: list[str], made: str) -> None:
    assert redact.command(words) == made
