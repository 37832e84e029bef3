"""From files to tokenizers: what is read, and what is said when it cannot be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phloem.core.errors import ConfigError, ModelError
from phloem.graph.checkpoint.gguf import read_header
from phloem.serve.text.gguf import GgufTokenizerMetadata
from phloem.serve.text.load import load_text, load_tokenizer
from phloem.serve.text.tokenizer import Tokenizer

Maker = Callable[..., dict[str, Any]]


def rewrite(path: Path, **changes: Any) -> None:
    contents = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in contents.items() if value is not None}), encoding="utf-8")


def test_folder_and_gguf_of_one_vocabulary_agree(
    hf_folder: Path, byte_level: Tokenizer, make_byte_level_metadata: Maker, hard_texts: list[str]
) -> None:
    """Red if the two ways to load the same vocabulary give other ids."""
    from_file = GgufTokenizerMetadata(make_byte_level_metadata(pre="gpt-2"), hf_folder).tokenizer()
    from_folder = load_tokenizer(hf_folder)
    for text in hard_texts:
        if "<tool_call>" not in text:  # the folder does not declare it as an added token
            assert from_folder.encode(text) == from_file.encode(text)
    assert (from_folder.bos_id, from_folder.eos_ids) == (from_file.bos_id, from_file.eos_ids)
    assert from_folder.control_ids == from_file.control_ids


def test_ends_of_a_folder_are_collected(hf_folder: Path) -> None:
    """Red if generation_config.json's list of end tokens is not read: answers would run on."""
    (hf_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (hf_folder / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    end = load_tokenizer(hf_folder).encode("<|im_end|>", allow_special=True)[0]
    assert load_tokenizer(hf_folder).eos_ids == {7, 8, 9, end}


@pytest.mark.parametrize("flag", [True, False])
def test_bos_of_a_folder_follows_its_flag(hf_folder: Path, flag: bool) -> None:
    """Red if add_bos_token is ignored."""
    rewrite(hf_folder / "tokenizer_config.json", add_bos_token=flag)
    tokenizer = load_tokenizer(hf_folder)
    assert (tokenizer.encode("a")[0] == tokenizer.bos_id) is flag


def test_tokens_that_only_the_configuration_declares(hf_folder: Path) -> None:
    """Red if added_tokens_decoder or a named token is not made special."""
    extra = {"content": "<extra>", "special": True, "normalized": False}
    rewrite(
        hf_folder / "tokenizer_config.json", added_tokens_decoder={"900": extra}, additional_special_tokens=["<more>"]
    )
    tokenizer = load_tokenizer(hf_folder)
    for text in ("<extra>", "<more>"):
        assert len(tokenizer.encode(text, allow_special=True)) == 1
        assert len(tokenizer.encode(text)) > 1


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json", "list"])
def test_chat_templates_of_a_folder(hf_folder: Path, where: str) -> None:
    """Red if one of the places where folders keep chat templates is not read."""
    template = "{{ messages[0].content }}!" if where != "tokenizer_config.json" else None
    if where == "chat_template.jinja":
        (hf_folder / where).write_text(str(template))
    elif where == "chat_template.json":
        rewrite(hf_folder / "tokenizer_config.json", chat_template=None)
        (hf_folder / where).write_text(json.dumps({"chat_template": template}))
    elif where == "list":
        rewrite(hf_folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    rendered = load_text(hf_folder).chat.render([{"role": "user", "content": "Hi"}])
    assert rendered == ("Hi!" if template else "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_given_chat_template_wins(hf_folder: Path, tmp_path: Path) -> None:
    """Red if --chat-template, a file or a template itself, is ignored, or a wrong path is served as a template."""
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}?")
    messages = [{"role": "user", "content": "Hi"}]
    for given in (str(tmp_path / "mine.jinja"), "{{ messages[0].content }}?"):
        assert load_text(hf_folder, chat_template=given).chat.render(messages) == "Hi?"
    for wrong in (str(tmp_path / "none.jinja"), "{% if %}"):
        with pytest.raises(ConfigError):
            load_text(hf_folder, chat_template=wrong)


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{nonsense"),
        ("tokenizer_config.json", '{"bos_token": 7}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {}}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("special_tokens_map.json", '{"additional_special_tokens": 3}'),
        ("generation_config.json", '{"eos_token_id": ["</s>"]}'),
        ("generation_config.json", b"\xff\xfe"),
        ("generation_config.json", '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ],
)
def test_corrupt_files_of_a_folder_are_named(hf_folder: Path, file: str, contents: str | bytes) -> None:
    """Red if a corrupt file is a traceback, or the error does not name it."""
    (hf_folder / file).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(ModelError) as error:
        load_tokenizer(hf_folder)
    assert file in error.value.message
    assert error.value.field == str(hf_folder / file)


def test_a_folder_without_tokenizer_names_the_remedy(tmp_path: Path) -> None:
    """Red if the error does not say which file is missing and what to do."""
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing: save the folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"model": "bert"}, "kind 'bert'"),
        ({"tokens": None}, "vocabulary"),
        ({"tokens": []}, "vocabulary"),
        ({"tokens": [1, 2]}, "vocabulary"),
        ({"merges": None}, "merges"),
        ({"merges": ["ab"]}, "merge 0"),
        ({"merges": [7]}, "merge 0"),
        ({"merges": ["Ġ nosuchpiece"]}, "do not fit together"),
        ({"token_type": [1]}, "token_type"),
        ({"pre": "unheard-of"}, "pre-tokenizer 'unheard-of'"),
        ({"pre": 3}, "tokenizer.ggml.pre"),
        ({"eos_token_id": 10**6}, "eos token 1000000"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
    ],
)
def test_corrupt_metadata_is_named(make_byte_level_metadata: Maker, changes: dict[str, Any], message: str) -> None:
    """Red if a corrupt vocabulary is accepted or ends in a traceback."""
    with pytest.raises(ModelError, match=message) as error:
        GgufTokenizerMetadata(make_byte_level_metadata(**changes), Path("bad.gguf")).tokenizer()
    assert error.value.message.startswith("bad.gguf: ")


def test_duplicate_tokens_are_refused(make_byte_level_metadata: Maker) -> None:
    """Red if two ids of one text are accepted: one of them could never be encoded."""
    tokens = make_byte_level_metadata()["tokenizer.ggml.tokens"]
    with pytest.raises(ModelError, match=r"tokens 3 and 5 .* both 'same'"):
        GgufTokenizerMetadata(
            make_byte_level_metadata(tokens=[*tokens[:3], "same", "x", "same", *tokens[6:]]), Path("bad.gguf")
        )


def test_end_tokens_of_a_file(make_byte_level_metadata: Maker) -> None:
    """Red if a known end token is missed, or one that the file declares to mean "unknown" counts as an end."""
    metadata = make_byte_level_metadata()
    ids = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    assert GgufTokenizerMetadata(metadata, Path("x")).tokenizer().eos_ids == {ids["<|im_end|>"]}
    del metadata["tokenizer.ggml.unknown_token_id"]
    both = {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert GgufTokenizerMetadata(metadata, Path("x")).tokenizer().eos_ids == both


def test_a_real_file_loads_fast(real_model: Path) -> None:
    """Red if start-up spends more than a second on the vocabulary (measured: 0.15 s for 49k tokens, 0.5 s for 152k)."""
    header = read_header(real_model)
    began = time.perf_counter()
    GgufTokenizerMetadata(header.metadata, real_model).tokenizer()
    assert time.perf_counter() - began < 2.0


def test_llama_cpp_vocabularies() -> None:
    """Red if a pre-tokenizer or the SentencePiece merges differ from llama.cpp's own expectations (ggml-vocab-*.gguf
    with their .inp and .out, where the cache folder has them).
    """
    from os import environ

    folder = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phloem" / "models"
    files = [path for path in sorted(folder.glob("ggml-vocab-*.gguf")) if path.with_name(path.name + ".out").is_file()]
    if not files:
        pytest.skip("no ggml-vocab-*.gguf in the cache folder")
    for path in files:
        metadata = read_header(path).metadata
        if metadata["tokenizer.ggml.model"] not in ("gpt2", "llama"):
            continue
        tokenizer = GgufTokenizerMetadata(metadata, path).tokenizer()
        texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
        wanted = path.with_name(path.name + ".out").read_text().split("\n")
        for text, line in zip(texts, wanted, strict=False):
            assert tokenizer.encode(text, add_special=False) == [int(id) for id in line.split()], (path.name, text)
