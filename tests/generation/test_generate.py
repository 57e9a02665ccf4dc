"""Generated text is the same for our model and transformers, in a batch and alone, and characters are never split."""

import random
import shutil

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.open_here import open_here
from tests.helpers.small_export import MODEL, save_checkpoint, write_export
from tests.helpers.toy_tokenizer import ToyTokenizer
from train.config.sampling import Sampling
from train.generation.decoders import DbrxDecoder
from train.generation.generate import TextStream, choose, generate, stream_answers
from train.generation.open_model import open_model
from train.hardware import kernels
from train.models.attention import layout
from train.models.config import LoraConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.experts import grouped_mm as experts_grouped_mm
from train.models.experts import megablocks as experts_megablocks
from train.models.lora.adapters import add_lora

BASE = "pretrained_model_name_or_path"

PROMPTS = ["Reverse: kotab\n", "x", "Sort the letters: wsus\n", "Count to 7, and then back to 1.\n"]
GREEDY = Sampling(max_new_tokens=20)
SAMPLED = Sampling(max_new_tokens=20, temperature=0.8, top_k=50, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def ours(run):
    return open_here(run)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return open_here(write_export(run, tmp_path_factory.mktemp("hf") / "model"))


@pytest.fixture(scope="module")
def prompts(ours):
    return [ours.tokenizer.encode(prompt).tolist() for prompt in PROMPTS]


def written(decoder, prompts, sampling, stop=(), **kwargs):
    rows = [[] for _ in prompts]
    for tokens in generate(decoder, prompts, sampling, stop, **kwargs):
        for row, token in zip(rows, tokens, strict=True):
            row.extend([] if token is None else [token])
    return rows


def without_cache(opened, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(opened.decoder.model(torch.tensor([ids]), return_logits=True).logits_BSV[0, -1].argmax()))
    return ids[len(prompt) :]


def test_weights_that_are_not_finite_are_refused_with_their_names(run, tmp_path):
    state = open_here(run).decoder.model.state_dict()
    state["lm_head.weight"][2, 1] = torch.nan
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "ep0-ba10"
    shutil.rmtree(checkpoint)
    save_checkpoint(checkpoint, state)
    with pytest.raises(
        ConfigError, match=rf"numbers in the weights of {checkpoint}: lm_head.weight: specify an earlier"
    ):
        open_here(checkpoint)
    folder = write_export(tmp_path / "run", tmp_path / "hf")
    message = (
        rf"'{folder}', but there are NaN or infinite numbers in its weights: lm_head.weight in model-00001-of-00001"
    )
    with pytest.raises(ConfigError, match=message):
        open_here(folder)


@torch.no_grad()
def test_a_batch_is_continued_as_each_prompt_is_without_a_cache(ours, prompts):
    assert written(ours.decoder, prompts, GREEDY) == [without_cache(ours, prompt, 20) for prompt in prompts]


@torch.no_grad()
def test_a_checkpoint_of_adapters_is_read_with_its_base(run, ours, prompts, tmp_path):
    lora = LoraConfig(r=2, alpha=8, target_modules=["Wqkv", "out_proj", "experts", "router"])
    adapted = DbrxForCausalLM(MODEL)
    adapted.load_state_dict(ours.decoder.model.state_dict())
    add_lora(adapted, lora)
    draw = torch.Generator().manual_seed(1)
    own = {name: param.normal_(0, 0.3, generator=draw) for name, param in adapted.named_parameters() if "lora_" in name}
    written_here = written(DbrxDecoder(adapted.eval()), prompts, GREEDY)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("ep0-*"))
    base, config = write_export(run, tmp_path / "base"), tmp_path / "run" / "config.yaml"
    lines = "lora: {r: 2, alpha: 8, target_modules: [Wqkv, out_proj, experts, router]}\n"
    config.write_text(config.read_text().replace("model:\n  {", f"{lines}model:\n  {{{BASE}: {base}, "))
    save_checkpoint(tmp_path / "run" / "ep0-ba10", own)
    assert written(open_here(tmp_path / "run").decoder, prompts, GREEDY) == written_here
    assert written_here != written(ours.decoder, prompts, GREEDY)


@pytest.mark.parametrize(("moe_impl", "attn_impl"), [("megablocks", "flash"), ("grouped_mm", "flex")])
def test_a_run_that_trained_on_a_gpu_generates_on_a_cpu(run, ours, prompts, tmp_path, moe_impl, attn_impl):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text().replace("moe_top_k: 3", f"moe_top_k: 3, moe_impl: {moe_impl}, moe_recompute: true")
    config.write_text(text.replace("kv_n_heads: 2", f"kv_n_heads: 2, attn_impl: {attn_impl}"))
    opened = open_model(tmp_path / "run", "cpu", "fp32")
    assert written(opened.decoder, prompts, GREEDY) == written(ours.decoder, prompts, GREEDY)


def test_a_large_model_is_not_generated_from_by_the_loop_on_a_gpu(run, monkeypatch):
    monkeypatch.setattr(kernels, "_LOOP_LIMIT", 1000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(experts_grouped_mm, "_grouped_mm", torch.mm)
    monkeypatch.setattr(experts_megablocks, "_import", lambda: "MegaBlocks is not installed")
    monkeypatch.setattr(layout, "_flash_import_error", lambda: "the package flash-attn is not installed")
    message = (
        r"ba10 is opened on a GPU, but only the loop .*: use --precision bf16, .*, or use the CPU with --device cpu$"
    )
    with pytest.raises(ConfigError, match=message):
        open_model(run, "gpu", "fp32")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_transformers_on_the_export_writes_what_our_model_writes(ours, exported, prompts, sampling):
    assert written(exported.decoder, prompts, sampling) == written(ours.decoder, prompts, sampling)


def test_greedy_is_what_transformers_own_generate_writes(exported, prompts):
    model = exported.decoder.model
    for prompt, mine in zip(prompts, written(exported.decoder, prompts, GREEDY), strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=[])
        assert whole[0, len(prompt) :].tolist() == mine


def test_samples_depend_only_on_seed_and_number(ours, prompts):
    together = written(ours.decoder, prompts, SAMPLED)
    alone = [written(ours.decoder, [prompt], SAMPLED, first_number=row)[0] for row, prompt in enumerate(prompts)]
    assert alone == together
    assert written(ours.decoder, prompts, Sampling(max_new_tokens=20, temperature=0.8, seed=6)) != together
    assert written(ours.decoder, [prompts[0]] * 2, SAMPLED)[0] != written(ours.decoder, [prompts[0]] * 2, SAMPLED)[1]


def test_a_prompt_that_ends_leaves_the_others_alone(ours, prompts):
    full = written(ours.decoder, prompts, GREEDY)
    stop = full[0][3]
    assert [row.index(stop) if stop in row else 20 for row in full] != [3] * 4
    cut = written(ours.decoder, prompts, GREEDY, stop=[stop])
    assert cut == [row[: row.index(stop)] if stop in row else row for row in full]


def test_an_answer_ends_at_max_seq_len(ours):
    answers = [None, None]
    prompts = [[5] * 60, [6] * 63]
    for row, _, answer in stream_answers(ours.decoder, ours.tokenizer, prompts, GREEDY, []):
        answers[row] = answer or answers[row]
    assert [(len(answer.tokens), answer.ended) for answer in answers] == [(4, False), (1, False)]


def test_tokens_are_drawn_as_often_as_their_probability():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, -3.0]).expand(20000, 5)
    draws = [torch.Generator().manual_seed(seed) for seed in range(20000)]
    probs = (logits[0] / 0.7).softmax(0)
    drawn = choose(logits, Sampling(temperature=0.7), draws).bincount(minlength=5) / 20000
    assert (drawn - probs).abs().max() < 0.015
    # 0.76 and 0.18 together exceed 0.9, so a third token is never drawn.
    top_p = choose(logits, Sampling(temperature=0.7, top_p=0.9), draws).bincount(minlength=5) / 20000
    assert top_p[[1, 3, 4]].tolist() == [0, 0, 0]
    assert abs(top_p[0] - probs[0] / (probs[0] + probs[2])) < 0.015
    top_k = choose(logits, Sampling(temperature=0.7, top_k=1), draws)
    assert top_k.tolist() == [0] * 20000


@pytest.mark.parametrize("temperature", [1e-9, 1e9])
def test_no_temperature_is_too_extreme(temperature):
    drawn = choose(torch.tensor([[3.0, 1.0], [1.0, 3.0]]), Sampling(temperature=temperature), [torch.Generator()] * 2)
    assert set(drawn.tolist()) <= {0, 1}
    assert temperature > 1 or drawn.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but it must be at least 1"),
        ({"temperature": -1}, "temperature is -1, but it must be at least 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0, but it must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p is 0.0, but it must be in \(0, 1\]"),
        ({"top_p": 0.5}, r"temperature is 0 \(greedy decoding\), but top_k or top_p is set"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_invalid_sampling_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


class Bytes(ToyTokenizer):
    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def pieces(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in ids), stream.end()]


def test_a_character_is_output_when_it_is_complete():
    ids = list("aé漢🙂!".encode())
    assert pieces(Bytes(), ids) == ["a", "", "é", "", "", "漢", "", "", "", "🙂", "!", ""]


def test_joined_pieces_equal_the_text_of_all_tokens(ours):
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(256) for _ in range(draw.randrange(40))]
        assert "".join(pieces(Bytes(), ids)) == Bytes().decode(ids)
        vocabulary = [draw.randrange(ours.tokenizer.vocab_size) for _ in range(40)]
        assert "".join(pieces(ours.tokenizer, vocabulary)) == ours.tokenizer.decode(vocabulary)


def test_invalid_bytes_are_output_eventually():
    output = pieces(Bytes(), [0xFF] * 10)
    assert output == ["", "", "", *["\ufffd"] * 7, "\ufffd" * 3]
