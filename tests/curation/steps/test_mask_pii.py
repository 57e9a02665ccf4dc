"""Masking of personal data and secrets. All keys and addresses here are made up."""

import random
import string

import pytest

from data.base.errors import ConfigError
from data.curation.base.document import KEPT, Document, Verdict
from data.curation.steps.mask_pii import MaskPii


def judge(text: str, scores: dict[str, float] | None = None, **parameters) -> Verdict:
    return MaskPii(**parameters).judge()(Document(1, "web", "a.txt", 0, text, 1, scores or {}))


def masked(text: str, **parameters) -> str:
    verdict = judge(text, **parameters)
    return text if verdict.text is None else verdict.text


def made_up(n: int, characters: str = string.ascii_letters + string.digits, seed: int = 0) -> str:
    """Random characters, of which the first are aA1. Keys are put together here, so that scanners of repositories do
    not report them."""
    return "aA1"[:n] + "".join(random.Random(seed).choices(characters, k=n - 3))


BASE64 = string.ascii_letters + string.digits + "+/"
BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
JWT = ".".join(["eyJ" + made_up(20), "eyJ" + made_up(40), made_up(43)])
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{made_up(64)}\n{made_up(64)}==\n-----END RSA PRIVATE KEY-----"

FOUND = [
    # e-mail addresses
    ("Write to ann.lee+news@mail.web.de.", "Write to <EMAIL>."),
    ("<a href='mailto:ann@web.co.uk'>o_o</a>, (bob@web.de)", "<a href='mailto:<EMAIL>'>o_o</a>, (<EMAIL>)"),
    ("ann@web.de,bob@web.de;carl@xn--bcher-kva.de", "<EMAIL>,<EMAIL>;<EMAIL>"),
    ("邮箱ann@web.cn请", "邮箱<EMAIL>请"),
    ("from: Ann <ann@web.de>: hello", "from: Ann <<EMAIL>>: hello"),
    # IP addresses
    ("ping 52.95.110.1, then http://93.184.216.34:80/x", "ping <IP_ADDRESS>, then http://<IP_ADDRESS>:80/x"),
    ("52.95.110.1-52.95.110.9 and 52.95.110.1/24.", "<IP_ADDRESS>-<IP_ADDRESS> and <IP_ADDRESS>/24."),
    ('if ip == "52.95.110.1":', 'if ip == "<IP_ADDRESS>":'),
    ("[2606:4700:4700::1111]:53 2a00:1450:4001:830:0:0:0:200e", "[<IP_ADDRESS>]:53 <IP_ADDRESS>"),
    # keys
    (f"id AK{'IA'}{made_up(16, BASE32).upper().replace('1', '2')}!", "id <KEY>!"),
    (f"'gh{'p_'}{made_up(36)}'", "'<KEY>'"),
    (f"github{'_pat_'}{made_up(22)}_{made_up(59)}", "<KEY>"),
    (f"x=glpa{'t-'}{made_up(20)}", "x=<KEY>"),
    (f"xox{'b-'}123456789012-123456789012-{made_up(24)}", "<KEY>"),
    (f"https://hooks.sla{'ck.com'}/services/T{'A' * 9}/B{'A' * 9}/{made_up(24)} x", "<KEY> x"),
    (f"https://maps.web.de/js?key=AI{'za'}{made_up(35)}&v=3", "https://maps.web.de/js?key=<KEY>&v=3"),
    (f"ya29{'.'}{made_up(60)} GOCS{'PX-'}{made_up(28)} whse{'c_'}{made_up(32)}", "<KEY> <KEY> <KEY>"),
    (f"xap{'p-'}1-A{'B' * 10}-1234567890123-{made_up(64).lower()}", "<KEY>"),
    (f"sk_li{'ve_'}{made_up(24)} rk_te{'st_'}{made_up(24)}", "<KEY> <KEY>"),
    (f"sk-{made_up(20)}T3Blbk{'FJ'}{made_up(20)}", "<KEY>"),
    (f"sk-pro{'j-'}{made_up(80)} sk-an{'t-api03-'}{made_up(93)}AA", "<KEY> <KEY>"),
    (f"h{'f_'}{made_up(34)}, npm{'_'}{made_up(36)}", "<KEY>, <KEY>"),
    (f"S{'G.'}{made_up(22)}.{made_up(43)} /bot123456789:A{'A'}{made_up(33)}/get", "<KEY> /<KEY>/get"),
    (f"pypi-Ag{'E'}{made_up(80)}", "<KEY>"),
    (f"Cookie: session={JWT}; x", "Cookie: session=<KEY>; x"),
    (f"a\n{PEM}\nb", "a\n<PRIVATE_KEY>\nb"),
    (f'"key": "{PEM}"'.replace("\n", "\\n"), '"key": "<PRIVATE_KEY>"'),
    # values that are secrets because of the text around them
    ("password = 'hunter2-X9q'", "password = '<SECRET>'"),
    ('{"client_secret": "8f3kd93kfj2l", "x": 1}', '{"client_secret": "<SECRET>", "x": 1}'),
    ('{\\"api_key\\": \\"8f3kd93kfj2l\\"}', '{\\"api_key\\": \\"<SECRET>\\"}'),
    ("export API_KEY=8f3k-d93kfj2l\nx", "export API_KEY=<SECRET>\nx"),
    ("db_password: k3y4u7r9Zp.", "db_password: <SECRET>."),
    ("?access_token=8f3kd93kfj2l&page=2", "?access_token=<SECRET>&page=2"),
    ("Authorization: Bearer 8f3kd93kfj2lABCD", "Authorization: Bearer <SECRET>"),
    ("'Authorization': 'Basic YW5uOmxlZTEyMw=='", "'Authorization': 'Basic <SECRET>'"),
    ("postgres://ann:kd93k!fj@db.web.de:5432/x", "postgres://ann:<SECRET>@db.web.de:5432/x"),
    (f"Authorization: Bearer {JWT}", "Authorization: Bearer <KEY>"),
]  # fmt: skip

KEPT_TEXTS = [
    # not e-mail addresses
    "@decorator\n@app.route('/x')\ndef f(): return a@b + self.w@x.sum(0) @ y, W@h.mean.T(1)",
    "logo@2x.png icons@3x.webp lodash@4.17.21 pkg@1.0.tgz @types/node@18.0.0 foo@bar",
    "git@github.com:ann/repo.git ann@example.com ann@mail.example.org root@server.local @ann@mastodon.social",
    "https://medium.com/@ann.lee/post a@b.c ann@ web.de @media (x) ann@localhost",
    # not IP addresses of hosts
    "1.2.3.4 8.8.8.8 127.0.0.1 10.0.0.1 192.168.1.20 172.16.3.4 0.0.0.0 255.255.255.0 52.95.110.0/24 203.0.113.7",
    "version 12.14.16.18, v12.14.16.18, Version=4.18.12.11, foo==12.14.16.18, foo-12.14.16.18.tar.gz",
    '<Version>12.14.16.18</Version> AssemblyVersion("12.14.16.18") Chrome/91.14.44.12',
    "section 12.14.16.18 § 11.12.13.14",
    "1.3.6.1.4.1.311 12.14.16.18.20 12.14.16 312.14.16.18 12.014.16.18 12.14.16.18-beta 12.14.16.18rc1",
    "std::vector<a::b> dead::beef ::1 fe80::1 12:34:56 2023:12:11 10:09:08 00:1a:2b:3c:4d:5e 2001:db8::1 fd00::1",
    # not keys
    "sk-fading-circle-animation-for-the-spinner-with-twelve-dots pk_live_" + made_up(24),
    f"AKIAIOSFODNN7EXAMPLE task-{made_up(48)} hf_checkpointer_of_mine ghp_short AKIA sk-proj-example",
    f"sha256-{made_up(43)}= sha1 {'0123456789abcdef' * 2}01234567 123e4567-e89b-12d3-a456-426614174000",
    f"data:image/png;base64,iVBORw0KGgo{made_up(400, BASE64)}AKIAABCDEFGHIJKLMNOP/x==",
    f"//# sourceMappingURL=data:application/json;base64,eyJ{made_up(300)}",
    "-----BEGIN PUBLIC KEY-----\n" + made_up(64) + "\n-----END PUBLIC KEY-----",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY----- and -----BEGIN CERTIFICATE-----",
    # not secrets
    "eos_token='<|endoftext2|>', max_new_tokens=12345678, token: 12345678, tokenizer = gpt2tokenizer1",
    "password = 'your-password-123' secret='changeme1' token=<token12345> api_key: ${API_KEY_2} key='xxxx1234xxxx'",
    "password: at least 8 characters; a secret: 2nd editions; the token is abc12345; password=correcthorse",
    "token = tokens[idx2token] or token.value1.next2(x) or secret = base64.b64decode(v2) password = getpass2(3)",
    'secret_name: "projects/p/secrets/db-2/versions/1", "token_type": "bearer1234", key = "a1b2c3d4e5f6"',
    "Authorization: Bearer YOUR_ACCESS_TOKEN, Bearer {token1}, Bearer $TOKEN, bearer authentication-of-clients",
    "postgres://postgres:postgres@localhost/x http://user:pass@web.de http://localhost:8080/a@b redis://:$PW@web x://scope:prefix@db",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_personal_data_and_secrets_are_masked_once(text, expected):
    assert masked(text) == expected
    assert judge(expected) == KEPT


@pytest.mark.parametrize("text", KEPT_TEXTS)
def test_similar_texts_are_kept(text):
    assert judge(text) == KEPT


def test_replacements_are_counted_by_kind():
    verdict = judge("ann@web.de bob@web.de 52.95.110.1", {"mask_pii.key": 2.0})
    assert verdict.text == "<EMAIL> <EMAIL> <IP_ADDRESS>"
    assert verdict.changes == 3
    assert verdict.scores == {"mask_pii.email": 2.0, "mask_pii.ip_address": 1.0, "mask_pii.key": 0.0}


def test_each_kind_has_its_placeholder_or_is_kept():
    text = "ann@web.de 52.95.110.1 password='8f3kd93kfj2l'"
    assert masked(text, email=None, secret=None) == "ann@web.de <IP_ADDRESS> password='8f3kd93kfj2l'"
    assert masked(text, email="", ip_address="[IP]", secret="x") == " [IP] password='x'"
    with pytest.raises(ConfigError, match="masks nothing"):
        MaskPii(email=None, ip_address=None, private_key=None, key=None, secret=None)


def test_a_placeholder_that_is_an_address_is_not_replaced_again():
    assert masked("ann@web.de", email="someone@mail.com") == "someone@mail.com"
    assert judge("someone@mail.com", email="someone@mail.com") == KEPT


def test_private_addresses_are_masked_on_request():
    text = "10.0.0.12 192.168.1.20 169.254.1.1 fd00::1:2 127.0.0.1 0.0.0.0 203.0.113.7 224.0.0.12"
    expected = "<IP_ADDRESS> <IP_ADDRESS> <IP_ADDRESS> <IP_ADDRESS> 127.0.0.1 0.0.0.0 203.0.113.7 224.0.0.12"
    assert masked(text, private_ip_addresses=True) == expected


def test_overlapping_kinds_are_masked_together():
    token = f"gh{'p_'}{made_up(36)}"
    assert masked(f"token={token}/x1y2z3w4 next") == "token=<KEY> next"


def test_masking_is_idempotent_for_random_texts():
    draw = random.Random(5)
    pieces = [*"@.:=-_/ \n'\"", "password", "token=", "ann", "web.de", "52.95.110.1", "8f3kd93kfj2l", "://", "Bearer "]
    for _ in range(2000):
        text = "".join(draw.choices([*pieces, JWT[:30], "2606:4700::11"], k=draw.randrange(1, 25)))
        assert judge(masked(text)) == KEPT


HARD = [
    *[
        "a",
        "a.",
        "a@",
        "a@a.",
        "@a.a",
        "1.",
        "1.1.1.1",
        "12.12.12.12.",
        "2606:",
        "2606:4700::1 ",
        "A1",
        "_",
        "\\",
        '"',
        " ",
        "-",
    ],
    *[
        "a=",
        "token=",
        "token='a1",
        "key: ",
        "password",
        "a1:",
        "://a:",
        "://a:b1@",
        "Bearer ",
        "Bearer a1",
        "eyJ",
        "-eyJ",
        ".eyJ",
    ],
    *["eyJaaaaaaaaaaaa.", "AKIA", "sk-", "sk-proj-", "xoxb-1-", "ghp_", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----a-"],
    *["-----BEGIN PRIVATE KEY-----"],
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", HARD)
def test_repeated_text_takes_linear_time(part):
    """Quadratic time would be at least 75 seconds."""
    text = part * (400_000 // len(part)) + " PRIVATE KEY @ :: .eyJ uthorization token"
    assert judge(text)
