"""Files of a repository that try to run code, or to read or write elsewhere. Each attack would create or copy a file
named canary: see data/hub/repository_files.py. Also checks that the tests named in docs/security.md exist."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from data.base.errors import ConfigError
from data.base.paths import shown
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.hub.repository_files import JSON_FILES, check_json_files
from data.sources.source import open_source
from data.tokenization.build import build_tokenizer
from tests.helpers.hub_server import Repository, serve, use_hub
from tests.helpers.open_here import open_here
from tests.helpers.read_source import of_file, read
from tests.helpers.stock_folder import write_stock_folder
from train.config.load import read_config
from train.export.export import export, open_run
from train.hf.repository import read_values
from train.weights.pretrained import PretrainedFolder

ROOT = Path(__file__).parents[2]
CANARY = "../../canary"
TEMPLATES = [{"name": "default", "template": "a"}, {"name": CANARY, "template": "b"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    vocab = TokenizerKwargs(vocab_file=str(ROOT / "quickstart" / "vocab.tiktoken"))
    build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=vocab)).save_pretrained(folder, 64)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Create a tokenizer's folder, which each test changes, next to files that no tokenizer may read."""
    (tmp_path / "canary").write_text("secret\n")
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def add(file: Path, **keys: Any) -> None:
    contents = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(contents | keys))


def load(folder: Path) -> Any:
    return build_tokenizer(TokenizerConfig(name=str(folder)))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def load_and_save(folder: Path) -> str:
    """Two folders deep, as the attacks expect."""
    into = folder.parent / "save" / "tokenizer"
    into.mkdir(parents=True)
    message = refused(lambda: load(folder).save_pretrained(into, 64))
    files = [path for path in folder.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    copies = [path for path in files if "secret" in path.read_text()]
    assert copies == [folder.parent / "canary"]
    assert not list(folder.parent.rglob("canary.jinja"))
    return message


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("templates", [TEMPLATES, {one["name"]: one["template"] for one in TEMPLATES}])
def test_a_template_with_a_path_for_a_name_is_refused(folder: Path, name: str, templates: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    add(folder / name, chat_template=templates)
    message = load_and_save(folder)
    assert f"{folder / name} has a chat_template called '{CANARY}', which would become a path" in message
    assert "rename the template using only letters" in message


@pytest.mark.parametrize("name", [".", "a b", "a.b", "sub/x"])
def test_a_template_s_file_with_another_name_is_refused(folder: Path, name: str) -> None:
    file = folder / "additional_chat_templates" / f"{name}.jinja"
    file.parent.mkdir(parents=True)
    file.write_text("a")
    assert f"{folder}/additional_chat_templates has a chat_template called '{name}'" in load_and_save(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_file", "../canary"),
        ("merges_file", "/etc/passwd"),
        ("tokenizer_file", "../canary"),
        ("sp_model_kwargs", {"model_file": "../canary"}),
        ("vocab", "../canary"),
        ("init_inputs", ["../canary"]),
        ("fast_tokenizer_files", ["../tokenizer.4.0.json"]),
        ("auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}),
        ("tokenizer_class", "RagTokenizer"),
        ("tokenizer_class", "AutoModel"),
    ],
)
def test_a_tokenizer_that_names_code_or_a_path_is_refused(folder: Path, name: str, key: str, value: Any) -> None:
    add(folder / name, **{key: value})
    message = load_and_save(folder)
    assert message.startswith(f"tokenizer.name is '{folder}', but {folder / name} has {key}")
    assert "delete the key: python -c" in message
    assert "canary" in message or str(value) in message


@pytest.mark.parametrize("class_name", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_a_file_elsewhere_is_not_copied_into_what_is_saved(folder: Path, class_name: str) -> None:
    # transformers 5.24 still reads this path and would copy the file's lines into the saved vocabulary.
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    add(folder / "special_tokens_map.json", vocab_file=str(folder.parent / "canary"), unk_token="[UNK]")
    canary = shown(str(folder.parent / "canary"))  # shortened if the tests' folder has a long name
    assert f"special_tokens_map.json has vocab_file {canary}" in load_and_save(folder)


CONFIG_KEYS: list[tuple[str, Any]] = [
    ("_attn_implementation_internal", "acme/kernel"),
    ("_attn_implementation", "acme/kernel@v1:fn"),
    ("attn_implementation", {"": "acme/kernel"}),
    ("attn_implementation", "flash_attention_2"),  # transformers downloads it if it is not installed
    ("experts_implementation", "sonicmoe"),
    ("_experts_implementation", "acme/kernel"),
    ("_experts_implementation_internal", "grouped_mm"),
    ("auto_map", {"AutoModelForCausalLM": "modeling_dbrx.DbrxForCausalLM"}),
    ("configuration_files", ["../config.4.0.0.json"]),
    ("transformers_weights", "../other/model.safetensors"),
]
ENTRANCES: dict[str, Callable[[Path], Any]] = {
    "tokenizer.name": load,
    "the architecture of a YAML": lambda folder: read_values(str(folder)),
    "weights": lambda folder: PretrainedFolder.open(str(folder)),
    "generation and evaluation": open_here,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("key", "value"), CONFIG_KEYS)
def test_a_config_json_that_names_code_is_refused(folder: Path, entrance: str, key: str, value: Any) -> None:
    add(folder / "config.json", model_type="dbrx", **{key: value})
    (folder / "modeling_dbrx.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    message = refused(lambda: ENTRANCES[entrance](folder))
    assert f"{folder / 'config.json'} has {key} " in message
    assert repr(value)[:20] in message
    assert "delete the key: python -c" in message
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("below", ["attn_config", "ffn_config", "text_config"])
def test_a_nested_key_is_found(folder: Path, below: str) -> None:
    add(folder / "config.json", **{below: {"list": [{"_attn_implementation": "acme/kernel"}]}})
    assert f"config.json has {below}.list.0._attn_implementation 'acme/kernel'" in refused(lambda: load(folder))


@pytest.mark.subprocess
def test_the_command_in_the_error_removes_the_key(folder: Path) -> None:
    add(folder / "config.json", model_type="dbrx", attn_config={"auto_map": {"AutoConfig": "x.Y"}, "kv_n_heads": 2})
    command = refused(lambda: load(folder)).rpartition("delete the key: ")[2]
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, timeout=60)
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "dbrx", "attn_config": {"kv_n_heads": 2}}
    assert load(folder).vocab_size


@pytest.mark.subprocess
def test_a_key_cannot_put_anything_into_the_command(folder: Path) -> None:
    evil = f"'\"]; open({str(folder / 'canary')!r}, 'w') #$(touch {folder / 'canary'})\n\x1b[2J"
    add(folder / "config.json", **{evil: {"auto_map": {"a": "b"}}})
    message = refused(lambda: load(folder))
    subprocess.run(["bash", "-c", message.rpartition("delete the key: ")[2]], timeout=60, check=False)
    assert not (folder / "canary").exists()
    assert message.isprintable()


def test_code_beside_the_weights_is_not_run(folder: Path) -> None:
    # transformers 4.57 runs it in from_pretrained(folder, trust_remote_code=False).
    write_stock_folder(folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\n")
    message = refused(lambda: open_here(folder))
    assert f"{folder / 'custom_generate/generate.py'} is code that transformers 4 runs" in message
    assert "remove the file" in message
    assert not (folder / "canary").exists()


def move_into_a_run(folder: Path) -> Path:
    run = folder.parent / "run"
    (run / "ep0-ba1").mkdir(parents=True)
    (run / "ep0-ba1" / ".metadata").write_bytes(b"")
    (run / "config.yaml").write_text("")
    shutil.move(folder, run / "tokenizer")
    return run


def test_a_checkpoint_s_tokenizer_is_checked_too(folder: Path) -> None:
    run = move_into_a_run(folder)
    add(run / "tokenizer" / "tokenizer_config.json", chat_template=TEMPLATES)
    assert f"{run}/tokenizer/tokenizer_config.json has a chat_template called" in refused(lambda: open_run(run))


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "adapter_config.json", "a.py", "sub/a", "sub/"])
def test_code_beside_a_run_s_tokenizer_is_not_exported(folder: Path, name: str) -> None:
    run = move_into_a_run(folder)
    file = run / "tokenizer" / name
    file.parent.mkdir(exist_ok=True)
    file.mkdir() if name.endswith("/") else file.write_text("{}")
    assert f"{run}/tokenizer/{name.split('/')[0]}" in refused(lambda: export(run, run / "out"))
    assert not (run / "out").exists()


@pytest.mark.parametrize("target", ["../../canary", ".", "../..", "missing", "x.safetensors"])
def test_a_link_in_a_run_s_tokenizer_is_not_exported(folder: Path, target: str) -> None:
    run = move_into_a_run(folder)
    (run / "tokenizer" / "x.safetensors").symlink_to(target)
    assert f"{run}/tokenizer/x.safetensors is " in refused(lambda: export(run, run / "out"))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str, absolute: bool) -> None:
    link, canary = folder / name, folder.parent / "canary"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(canary if absolute else os.path.relpath(canary, link.parent))
    message = load_and_save(folder)
    assert f"{link} is a link to {shown(str(canary))}, outside of the folder" in message
    assert "replace the link with a copy of the file" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("stored", ["", "0123456789abcdef" * 2, f"SHA256E-s12--{'0123456789abcdef' * 4}.json"])
def test_a_link_to_a_file_of_the_same_name_or_a_hash_is_followed(folder: Path, name: str, stored: str) -> None:
    link, store = folder / name, folder.parent / "store"
    link.parent.mkdir(exist_ok=True)
    link.touch()
    expected = load(folder).fingerprint
    store.mkdir()
    link.rename(store / (stored or link.name))
    (store / "chain").symlink_to(stored or link.name)
    link.symlink_to(store / "chain")
    assert load(folder).fingerprint == expected
    run = move_into_a_run(folder)
    assert f"{run}/tokenizer/{name} is a link" in refused(lambda: open_run(run))


@pytest.mark.parametrize("target", ["/dev/stdin", "/proc/self/environ", "store", "../store", "missing"])
def test_a_link_to_a_file_of_another_name_is_refused(folder: Path, target: str) -> None:
    (folder.parent / "store").mkdir()
    (folder / "vocab.txt").symlink_to(target)
    (folder / "store").symlink_to(folder.parent / "store")
    message = refused(lambda: load(folder))
    assert "outside of the folder" in message
    assert "are allowed" in message


def test_links_that_stay_inside_are_followed(folder: Path) -> None:
    (folder / "chat_template.jinja").rename(folder / "default.jinja")
    (folder / "chat_template.jinja").symlink_to("default.jinja")
    (folder / "model.safetensors").symlink_to(folder.parent / "canary")
    (folder.parent / "link").symlink_to(folder)
    assert load(folder.parent / "link").fingerprint == load(folder).fingerprint


def test_the_hub_s_cache_consists_of_links(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"additional_chat_templates/tool.jinja": b"x"}
    with serve({"acme/good": Repository(files)}) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        snapshot = Path(snapshot_download("acme/good"))
        fingerprint = build_tokenizer(TokenizerConfig(name="acme/good")).fingerprint
    assert (snapshot / "tokenizer.json").is_symlink()
    assert load(snapshot).fingerprint == fingerprint
    (snapshot / "vocab.txt").symlink_to("../../blobs/../../../canary")
    assert "outside of the folder" in refused(lambda: load(snapshot))
    (snapshot / "vocab.txt").unlink()
    (snapshot / "canary").symlink_to(folder.parent / "canary")  # the link has the file's own name
    assert "outside of the folder" in refused(lambda: load(snapshot))


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_nested_too_deeply_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert f"{folder / name} cannot be checked, because its values are nested too deeply" in refused(
        lambda: load(folder)
    )


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_config_json_that_is_nested_too_deeply_is_refused(folder: Path, entrance: str) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json cannot be checked" in refused(lambda: ENTRANCES[entrance](folder))


def test_a_value_that_is_nested_too_deeply_is_refused(folder: Path) -> None:
    add(folder / "config.json", auto_map=json.loads("[" * 900 + "]" * 900))
    assert "config.json cannot be checked" in refused(lambda: load(folder))


@pytest.mark.parametrize("value", ["a\nb", {"a": "b"}, 7])
def test_an_unusual_special_tokens_map_file_has_a_reason(folder: Path, value: Any) -> None:
    add(folder / "tokenizer_config.json", special_tokens_map_file=value)
    assert f"special_tokens_map_file {value!r}, which is a path that is opened" in refused(lambda: load(folder))


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_the_hub_s_files_are_checked_before_the_rest_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {file.name: file.read_bytes() for file in folder.iterdir()}
    add(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    bad = {file.name: file.read_bytes() for file in folder.iterdir()} | {"evil.py": b"raise SystemExit"}
    weights = {"config.json": b'{"model_type": "dbrx", "auto_map": {"AutoConfig": "x.Y"}}', "model.safetensors": b"1"}
    repositories = {"acme/good": Repository(good), "acme/bad": Repository(bad), "acme/dbrx": Repository(weights)}
    with serve(repositories) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        message = refused(lambda: build_tokenizer(TokenizerConfig(name="acme/bad")))
        assert "'acme/bad', but tokenizer_config.json of acme/bad on the hub has auto_map" in message
        assert "`hf download acme/bad --local-dir bad`" in message
        fetched = {path.rpartition("/")[2] for path in hub.requests if path.startswith("GET /acme/bad/")}
        assert fetched <= {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
        assert "config.json of acme/dbrx on the hub has auto_map" in refused(lambda: PretrainedFolder.open("acme/dbrx"))
        assert build_tokenizer(TokenizerConfig(name="acme/good")).fingerprint


def test_files_of_real_repositories_are_accepted(folder: Path) -> None:
    add(folder / "config.json", model_type="dbrx", auto_map={}, attn_implementation="sdpa", _attn_implementation=None)
    add(folder / "config.json", _attn_implementation_autoset=True, tokenizer_class="GPT2Tokenizer", architectures=["A"])
    add(folder / "tokenizer_config.json", name_or_path="/home/somebody", special_tokens_map_file="/home/somebody/x")
    add(folder / "tokenizer_config.json", vocab_file=None, init_inputs=[], fast_tokenizer_files=["tokenizer.4.0.json"])
    add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", auto_map=None)
    check_json_files(folder)


def test_templates_with_names_are_loaded_and_saved(folder: Path, tmp_path: Path) -> None:
    add(folder / "tokenizer_config.json", chat_template=[TEMPLATES[0], {"name": "tool_use-2", "template": "c"}])
    (folder / "chat_template.jinja").unlink()
    load(folder).save_pretrained(tmp_path / "again", 64)
    assert (tmp_path / "again/additional_chat_templates/tool_use-2.jinja").read_text() == "c"
    assert load(tmp_path / "again").fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("where", ["file", "override"])
def test_a_yaml_creates_no_objects(tmp_path: Path, where: str) -> None:
    tag = f"!!python/object/apply:os.mkdir ['{tmp_path / 'canary'}']"
    (tmp_path / "a.yaml").write_text(f"seed: {tag}\n" if where == "file" else "seed: 1\n")
    overrides = [] if where == "file" else [f"seed={tag}"]
    message = refused(lambda: read_config(str(tmp_path / "a.yaml"), overrides))
    assert "not valid YAML: could not determine a constructor for the tag" in message
    assert not (tmp_path / "canary").exists()


def test_nested_aliases_do_not_explode(tmp_path: Path) -> None:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(8)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    assert "expansion exceeds the configured limit of 10000" in refused(lambda: read_config(str(tmp_path / "a.yaml")))


def test_a_file_that_decompresses_to_far_more_stays_small_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.formats.content.MAX_ROW_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"0" * (50 << 20) + b'\n{"text": "a"}\n', 1))
    source = open_source(of_file(tmp_path / "a.jsonl.gz"))
    tracemalloc.start()
    (_, problem), (_, row) = read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the row has a size of 50.01mb" in problem.text
    assert (row, peak < 20 << 20) == ({"text": "a"}, True)


def test_every_test_in_the_table_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in texts.get(file, "")] == []
