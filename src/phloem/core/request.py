"""What a caller asks for, already parsed: nothing downstream validates again."""

from __future__ import annotations

from typing import Literal

import msgspec

ConstraintKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural"]


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What the generated text has to match, from its first token to its end token.

    `text` by `kind`: json_schema: the schema as JSON; json_object: empty; regex: a regular expression (Rust's syntax);
    choice: a JSON list of strings; grammar: a Lark grammar or EBNF; structural: a Lark grammar written by a format's
    spec, which may name the tokenizer's special tokens and hold a `grammar` in a line `rule: %grammar "JSON string"`.
    """

    kind: ConstraintKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are chosen. Defaults are the identity: plain sampling at temperature 1.

    `top_k` 0 and `top_p` 1 mean off. `logprobs` is the number of alternatives reported per generated token (0: only the
    chosen one; None: nothing), `prompt_logprobs` the same for the prompt, from its entry `prompt_logprobs_start` on
    (entry 0 belongs to the second token): what comes before may be taken from the prefix cache. `stop` is matched on
    text by the front end; `stop_token_ids` and the model's end tokens by the engine. Penalties follow the OpenAI API
    (presence, frequency: generated tokens only) and the CTRL paper, section 4.1 (repetition: prompt, too).
    """

    max_tokens: int = 16
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    constraint: Constraint | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken; temperatures under 1e-5 count as 0."""
        return self.temperature < 1e-5


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token's log-probability (natural log, of the distribution before temperature) and the best alternatives.

    `rank` counts from 1. `top` holds (token id, log-probability), most likely first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()
