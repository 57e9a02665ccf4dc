"""Removal of secrets from texts that are shown or saved."""

import pytest

from data.secrets.names import is_secret_name
from data.secrets.redaction import redacted, without_login, without_secrets

HF = "hf_" + "Abcdefghij1234567890Abcdefghij1234"
AWS_ID, AWS_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
PEM = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----")
HEX = "0123456789abcdef0123456789abcdef01234567"

SECRETS = [
    ("s3://key:word@bucket/x", "s3://***@bucket/x"),
    (f"s3://{AWS_ID}:{AWS_KEY}@bucket/x@y", "s3://***@bucket/x@y"),
    ("https://ann:p@55@host/x:y@z, b@c", "https://***@host/x:y@z, b@c"),
    ("https://host/x?part=1&access_token=a&X-Amz-Signature=b", "https://host/x?part=1&access_token=***&X-Amz-Signature=***"),
    ("https://host/c?sv=2020&sig=abc%3D&se=1", "https://host/c?sv=2020&sig=***&se=1"),
    (f"no {HF}: 'runs-{HF}'", "no hf_***: 'runs-hf_***'"),
    (f"{AWS_ID} {AWS_KEY}", "AKIA*** ***"),
    (f"aws_secret_access_key = {AWS_KEY}", "aws_secret_access_key = ***"),
    (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=***"),
    (f"wandb login {HEX}", "wandb login ***"),
    (f"local-{HEX} wandb_v1_abcdefghij_klmnopqr", "local-*** wandb_v1_***"),
    ("Authorization: Basic YW5uOnBhNTU=", "Authorization: ***"),
    ("{'authorization': 'Bearer abc', 'x': 1}", "{'authorization': '***', 'x': 1}"),
    ("curl with bearer abcdefgh12345", "curl with bearer ***"),
    (f"clone with gh{'p_'}{HEX[:36]}", "clone with ghp_***"),
    (f"{PEM[0]}\n{'MIIE' * 16}\n{PEM[1]}", "***".join(PEM)),
    ('{"token": "a\\"b", "x": 1}', '{"token": "***", "x": 1}'),
    ("hf_kwargs.token is 'abc', but", "hf_kwargs.token is '***', but"),
    ("hf_kwargs:\n  token: abc\n  x: 1", "hf_kwargs:\n  token: ***\n  x: 1"),
    ("--api_key=abc --db.password 'x'", "--api_key=*** --db.password 'x'"),
    ("my_password: 'a b'; AccountKey=a==", "my_password: '***'; AccountKey=***"),
    ('s3://key:long+word@b: Invalid bucket name "key:long+word@b"', 's3://***@b: Invalid bucket name "***@b"'),
    ("token is 'abc... cut", "token is 'abc... cut"),
    ("x.token is 'abc... cut", "x.token is '***"),
]  # fmt: skip

NO_SECRETS = [
    "num_memory_tokens: 64, max_new_tokens=3, tokenizer: gpt2, eos_token='</s>', pad_token: <pad>",
    "key: a, sort_key=b, {'key': 'value'}, kv_n_heads=2, clip_qkv: 8",
    f"commit {HEX} of wandb",
    "hf_checkpointer hf_checkpointer_of_mine hf_llama31b hf_kwargs.data_files hf://datasets/a/b@main/x",
    "http://localhost:8080/a@b ann@host oci://bucket@namespace/x sftp://ann@host/x",
    "token: 5 is unknown: the token is '<|im_end|>'; use_auth_token: true, hf_token=$HF_TOKEN, api_key: null",
    "    token = read(path) if token == 'x' else ranks[token]",
    "set WANDB_API_KEY, or run `wandb login`; credentials come from AWS_SECRET_ACCESS_KEY",
]


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_redacting_twice_changes_nothing_more(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", NO_SECRETS)
def test_other_values_are_kept(text: str) -> None:
    assert redacted(text) == text
    assert without_secrets(text) == (text, [])


def test_names_of_secrets() -> None:
    secret = ["token", "HF_TOKEN", "hf_kwargs.token", "api_key", "AWSAccessKeyId", "client-secret", "dbPassword"]
    others = ["key", "tokens", "max_new_tokens", "eos_token", "tokenizer", "token_id", "sort_key", "monkey", "keys"]
    assert [name for name in [*secret, *others] if is_secret_name(name)] == secret


@pytest.mark.parametrize(
    ("value", "saved", "sources"),
    [
        ("s3://key:word@bucket/x", "s3://bucket/x", ["AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"]),
        ("sftp://ann:word@host/x", "sftp://ann@host/x", ["COMPOSER_SFTP_KEY_FILE"]),
        ("https://host/x?token=a&part=1&sig=b", "https://host/x?part=1", ["", ""]),
        ("https://host/x?token=a", "https://host/x", [""]),
        (f"as {HF} does", "as hf_ does", ["HF_TOKEN"]),
        (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=", ["WANDB_API_KEY"]),
        ("runs/{run_name}", "runs/{run_name}", []),
    ],
)
def test_saved_values_have_no_stars_and_name_the_variable(value: str, saved: str, sources: list[str]) -> None:
    assert without_secrets(value) == (saved, sources)


def test_addresses_are_the_same_without_login() -> None:
    assert without_login("gs://me:word@bucket/x") == without_login("gs://bucket/x") == "gs://bucket/x"
    assert without_login("data/token=abc") == "data/token=abc"
