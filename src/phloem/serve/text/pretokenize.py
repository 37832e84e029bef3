"""Pre-tokenizers by the names GGUF files give them (`tokenizer.ggml.pre`).

A name stands for patterns applied one after the other, each cutting the pieces the one before it left; then bytes are
spelled as characters. The patterns are those of the models' own tokenizer.json files and of llama.cpp's table.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CASED_WORD = (  # a word starts at a change from lower to upper case
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{SYMBOLS}[\r\n]*|{SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{SYMBOLS}[\r\n]*|{SPACES}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
)
TEKKEN = rf"{CASED_WORD % ('', '')}|\p{{N}}|{SYMBOLS}[\r\n/]*|{SPACES}"
GPT4O = rf"{CASED_WORD % (CONTRACTIONS + '?', CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{SYMBOLS}[\r\n/]*|{SPACES}"
SEED = rf"{CONTRACTIONS}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
NO_PUNCTUATION = r" ?[^(\s|.,!?…。，、।۔،)]+"
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
CJK_AND_HANGUL = r"[一-龥ࠀ-一가-퟿]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)
CASED_LETTERS = r"\s?[\p{Lu}\p{Ll}\p{Lt}]+"


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` in order. With `whole_words`, a piece that is itself in the vocabulary is one token, whatever the
    merges say. `add_bos` holds where the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` object that does it."""
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


DIGIT_THEN_GPT2 = PreTokenizer((r"\p{N}", GPT2))
LLAMA3_WORDS = PreTokenizer((LLAMA3,), whole_words=True, add_bos=True)
FAMILIES = (
    (("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "mellum", "modern-bert", "gigachat", "a.x-4.0", "trillion",
      "granite-docling"), PreTokenizer((GPT2,))),
    (("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), DIGIT_THEN_GPT2),
    (("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), LLAMA3_WORDS),
    (("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((LLAMA3,))),
    (("glm4", "glm5"), PreTokenizer((LLAMA3,), whole_words=True)),
    (("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo", "f2llmv2", "solar-open", "grok-2"),
     PreTokenizer((QWEN2,))),
    (("qwen35",), PreTokenizer((QWEN35,))),
    (("tekken",), PreTokenizer((TEKKEN,), whole_words=True, add_bos=True)),
    (("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), PreTokenizer((GPT4O,))),
    (("seed-coder",), PreTokenizer((SEED,))),
    (("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((BAILING,))),
    (("bloom", "gpt3-finnish", "poro-chat"), PreTokenizer((NO_PUNCTUATION,))),
    (("viking",), PreTokenizer((NO_PUNCTUATION, r"\p{N}"))),
    (("falcon",), PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"))),
    (("deepseek-llm",),
     PreTokenizer((r"[\r\n]", CASED_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK_AND_HANGUL, r"\p{N}+"))),
    (("deepseek-coder",), PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_HANGUL, r"\p{N}"))),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), PreTokenizer((r"\p{N}{1,3}", CJK, DEEPSEEK3))),
    (("default", ""), PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
)  # fmt: skip
PRE_TOKENIZERS = {name: pre_tokenizer for names, pre_tokenizer in FAMILIES for name in names}
