"""Matchers: what may follow, what must, and that the two agree."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.grammar.conftest import PERSON, schema

from phloem.core.request import Constraint
from phloem.launch.text import END_ID
from phloem.runtime.grammar.masks import MaskPool, masked

CONSTRAINTS = {
    "schema": schema(PERSON),
    "enum": schema({"enum": ["Paris", "Parma", 3, None]}),
    "array": schema({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}),
    "regex": Constraint("regex", r"[0-9]{3}-[0-9]{4}"),
    "choice": Constraint("choice", '["one", "only", "é日"]'),
    "lark": Constraint("grammar", 'start: "a"+ "b" | "hello" " " "world"'),
    "ebnf": Constraint("grammar", 'root ::= "yes" | "no" [0-9]+'),
    "object": Constraint("json_object"),
}


def allowed(matcher):
    return np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")).tolist()


def spell(grammars, text):
    """Byte tokens of an ASCII text."""
    return grammars._made_compiler().tokenize(text)


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("which", ["grammars", "default_grammars"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_is_forced_is_what_sampling_would_give(request, which, name, data):
    """Red when a forced token has an alternative in its mask, or one without an alternative is not forced: then a text
    would depend on whether forced tokens are taken at once."""
    grammars = request.getfixturevalue(which)
    fast, slow = grammars.matcher(CONSTRAINTS[name]), grammars.matcher(CONSTRAINTS[name])
    for _ in range(40):
        for token in fast.force(1000):
            assert allowed(slow) == [token]
            slow.accept(token)
        if fast.is_finished:
            break
        choices = allowed(slow)
        assert len(choices) > 1
        assert choices == allowed(fast)
        token = data.draw(st.sampled_from(choices))
        fast.accept(token)
        slow.accept(token)
    assert fast.fault is None
    assert slow.fault is None


def test_forced_tokens_stop_at_the_end_and_at_the_limit(grammars):
    """Red when the end token is forced twice, not at all, or more is forced than may be generated."""
    matcher = grammars.matcher(Constraint("regex", "abc"))
    assert len(matcher.force(2)) == 2
    assert matcher.force(100)[1:] == [END_ID]
    assert matcher.force(100) == []
    assert matcher.fault is None


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_matcher_is_rebuilt_from_its_tokens(grammars, name):
    """Red when a row that starts again after a preemption continues differently."""
    matcher, tokens = grammars.matcher(CONSTRAINTS[name]), []
    for step in range(12):
        if matcher.is_finished:
            break
        token = allowed(matcher)[step % len(allowed(matcher))]
        matcher.accept(token)
        tokens += [token, *matcher.force(2)]
        assert allowed(grammars.matcher(CONSTRAINTS[name], tokens)) == allowed(matcher)


def test_control_tokens_and_ends_are_not_text(default_grammars):
    """Red when free text may hold control tokens, or a text may end before its grammar does."""
    matcher = default_grammars.matcher(Constraint("regex", "(.|\n)*x"))
    assert not set(allowed(matcher)) & set(range(17))
    matcher.accept_all(default_grammars._made_compiler().tokenize("box"))
    assert set(allowed(matcher)) & set(range(17)) == {2}


def test_a_wrong_token_is_a_fault_not_an_exception(grammars):
    """Red when a matcher raises, or goes on after a token that its grammar does not have."""
    matcher = grammars.matcher(Constraint("regex", "abc"))
    matcher.accept(END_ID)
    assert matcher.fault
    assert allowed(matcher) == []
    assert matcher.force(5) == []
    hopeless = grammars.matcher(Constraint("regex", "("))
    assert allowed(hopeless) == []
    assert hopeless.fault
    assert hopeless.force(5) == []
    assert hopeless.is_finished


def test_masks_are_applied_to_rows_of_logits(grammars):
    """Red when a bit is applied to another token, another row, or padding beyond the vocabulary."""
    matchers = {3: grammars.matcher(Constraint("regex", "[a-c]")), 9: grammars.matcher(Constraint("regex", "é"))}
    pool = MaskPool()
    pool.start(matchers.values())
    masks = pool.take(matchers, patience_s=10)
    pool.close()
    logits = np.arange(2 * 250, dtype=np.float32).reshape(2, 250)  # narrower than the tokenizer
    found = masked([logits[0], logits[1]], [masks[3], masks[9]])
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == sorted(spell(grammars, letter)[0] for letter in "abc")
    assert np.isfinite(found[1]).sum() == 1
    kept = np.isfinite(found)
    assert (found[kept] == logits[kept]).all()


def test_tokenizers_with_other_spellings(tmp_path):
    """Red when a SentencePiece vocabulary's spaces and byte pieces are not what the grammar thinks they are."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    from phloem.runtime.grammar.grammars import Grammars
    from phloem.runtime.grammar.vocabulary import Vocabulary
    from phloem.serve.text.tokenizer import Tokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: id for id, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b")], unk_token="<unk>",
                   fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer = Tokenizer(backend, eos_ids=(2,))
    own = Grammars(lambda: Vocabulary(tokenizer.to_json(), len(pieces), (2,)))
    matcher = own.matcher(Constraint("regex", " ab?|é"))
    texts = {tokenizer.token_bytes(id).decode(errors="replace") for id in allowed(matcher)}
    assert texts == {" ", " a", "\ufffd"}
    matcher.accept(pieces.index("▁a"))
    assert {pieces[id] for id in allowed(matcher)} == {"b", "</s>", "<0x62>"}


class SlowMatcher:
    """Its mask is ready when the test says so."""

    def __init__(self):
        self.may_go, self.num_asked = threading.Event(), 0

    def mask(self):
        self.num_asked += 1
        assert self.may_go.wait(10)
        return np.zeros(1, np.int32)


def test_a_late_mask_stays_under_way_and_holds_up_nobody(grammars):
    """Red when a mask that was not ready is computed from its beginning again, waited for beyond all patience, or
    stands in the way of another row's."""
    slow, quick, pool = SlowMatcher(), grammars.matcher(Constraint("regex", "[ab]")), MaskPool()
    pool.start([slow, quick])
    assert set(pool.take({1: slow, 2: quick}, patience_s=0.5)) == {2}
    pool.start([slow, quick])
    slow.may_go.set()
    assert set(pool.take({1: slow, 2: quick}, patience_s=10)) == {1, 2}
    assert slow.num_asked == 1
    pool.start([slow])
    gone = weakref.ref(slow)
    assert set(pool.take({1: slow}, patience_s=10)) == {1}
    assert slow.num_asked == 2, "the next token has a mask of its own"
    pool.close()
    del slow
    assert gone() is None
