"""Chat templates that loop, allocate gigabytes or compute huge integers are stopped; the error names the limit."""

import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base.errors import ConfigError, TemplateError
from data.config.dataset import DatasetConfig
from data.config.tokenizer import TokenizerConfig
from data.examples.forms import Conversation
from data.tokenization.build import build_tokenizer
from data.tokenization.chat import Document, encode_question, tokenize
from data.tokenization.templates import limits, sandbox
from data.tokenization.tiktoken_tokenizer import CL100K_PATTERN, TiktokenTokenizer

CHATML = TiktokenTokenizer("bytes", {bytes([byte]): byte for byte in range(256)}, CL100K_PATTERN, {})
CONFIG = DatasetConfig(hf_name="json", max_seq_len=99)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set ns = namespace(x='xxxx') %}\n{% for a in range(40) %}\n{% set ns.x = ns.x OP ns.x %}{% endfor %}"
TIME, MEMORY = "takes more than 0.3 seconds for a conversation", "needs more than 128 MiB of memory for a conversation"
INTEGERS = "computes with integers of more than 4,096 bits"
ATTACKS = {
    LOOP: f"{TIME} (in line 1 of the template)",
    "\n\n{% for a in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}": "(in line 3 of",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}": TIME,
    "{{ lipsum(n=10**9) }}": TIME,
    DOUBLE.replace("OP", "~"): MEMORY,
    DOUBLE.replace("OP", "+"): MEMORY,
    "{{ 'x' * 2**31 }}": MEMORY,
    "{{ messages * 2**31 }}": MEMORY,
    "{{ ('x' * 10**6).join('x' * 10**6) }}": MEMORY,
    "{% set x = 'x' * 10**6 %}{{ x | replace('x', x) }}": MEMORY,
    "{{ '%2000000000d' % 1 }}": MEMORY,
    "{{ '%2000000000d' | format(1) }}": MEMORY,
    "{{ '{:>2000000000}'.format('') }}": MEMORY,
    "{{ 'x' | center(2**31) }}": MEMORY,
    "{{ 'x\\ny' | indent(2**31) }}": MEMORY,
    "{{ {'a': 1} | tojson(indent=2**31) }}": MEMORY,
    "{{ (1).to_bytes(2000000000, 'big') | length }}": MEMORY,
    "{{ 10 ** (10 ** 10) }}": INTEGERS,
    "{% set x = 10 ** 1000 %}{{ x * x }}": INTEGERS,
    "{{ ('f' * 10**6) | int(base=16) % 7 }}": INTEGERS,
}


@pytest.fixture(autouse=True)
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(limits, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(limits, "MAX_BYTES", 128 << 20)
    sandbox._compile.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    CHATML.save_pretrained(folder, 4096)
    return folder


def load(folder: Path, template: str) -> Any:
    (folder / "chat_template.jinja").write_text(template)
    return build_tokenizer(TokenizerConfig(name=str(folder)))


def talk(*texts: str) -> Conversation:
    return Conversation([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)])


@pytest.mark.parametrize("template", ATTACKS)
def test_an_endless_template_is_refused_with_its_tokenizer(
    folder: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ATTACKS[template] in (MEMORY, INTEGERS):
        monkeypatch.setattr(limits, "MAX_SECONDS", 30.0)  # a busy machine takes its time to build 128 MiB
    with pytest.raises(ConfigError) as caught:
        load(folder, template)
    assert str(caught.value).startswith(f"tokenizer.name is '{folder}', but its chat template ")
    assert ATTACKS[template] in str(caught.value)
    assert "use a tokenizer with another chat template" in str(caught.value)


@pytest.mark.parametrize("ask", [lambda talk, tokenizer: tokenize(talk, tokenizer, CONFIG), encode_question])
@pytest.mark.parametrize(("attack", "why"), [(LOOP, TIME), ("{{ 'x' * 2**31 }}", MEMORY)])
def test_a_limit_exceeded_by_some_messages_names_the_tokenizer(
    folder: Path, ask: Callable[..., Any], attack: str, why: str
) -> None:
    turns = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    tokenizer = load(folder, f"{{% if messages[0].content == 'go' %}}{attack}{{% endif %}}{turns}")
    assert isinstance(tokenize(talk("a", "b"), tokenizer, CONFIG), Document)
    with pytest.raises(TemplateError, match=f"the chat template of tokenizer {folder} {why}"):
        ask(talk("go", "b"), tokenizer)


def test_the_process_is_unchanged_afterwards(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    for template in (LOOP, "{{ 'x' * 2**31 }}"):
        with pytest.raises(ConfigError):
            load(folder, template)
        assert resource.getrlimit(resource.RLIMIT_AS) == before
        assert signal.getitimer(signal.ITIMER_PROF)[0] == signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    signal.raise_signal(signal.SIGPROF)  # one that comes late does nothing


def test_a_thread_has_limits_too(folder: Path) -> None:
    tokenizer, caught = load(folder, "{% if messages[0].content == 'go' %}" + LOOP + "{% endif %}"), []

    def ask() -> None:
        trace = sys.gettrace()
        try:
            tokenizer.render(talk("go").messages, add_generation_prompt=True)
        except TemplateError as error:
            caught.append((str(error), sys.gettrace() is trace))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert TIME in caught[0][0]
    assert caught[0][1]


def test_a_template_gets_plain_values_alone() -> None:
    value = {"a": [np.int64(3), np.str_("b"), (1, None)], "b": np.zeros(2), "c": np.datetime64("2026-11-29"), "d": 0.5}
    made = sandbox.plain(value)
    assert made == {"a": [3, "b", [1, None]], "b": "<ndarray>", "c": "<datetime64>", "d": 0.5}
    assert type(made["a"][1]) is str


def test_templates_compute_the_same_values(folder: Path) -> None:
    text = "{{ 7 % 3 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ '-' * 3 }} {{ '%s!' % 'a' }}"
    tokenizer = load(folder, text)
    assert tokenizer.render([], add_generation_prompt=False) == "1 3 3.5 1024 0.5 --- a!"
