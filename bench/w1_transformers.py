"""The peer of bench/w1.py in the same run: transformers' continuous batching, FlashAttention-3 and CUDA graphs.

    python -m bench.w1_transformers --shape 0.6b --seeds 1,0

Prints one JSON line a seed; the first seed warms up. Needs the package `flash_attn_interface`, else it says so and
takes transformers' own choice of attention.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from bench.w1_work import w1

SHAPES = {
    "0.6b": {
        "num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 3072, "tie_word_embeddings": True,
    },
    "14b": {
        "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8,
        "intermediate_size": 17408, "tie_word_embeddings": False,
    },
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument("--seeds", default="1,0")
    arguments = parser.parse_args(argv)
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.generation.continuous_batching.utils import WorkloadHints

    attention = "flash_attention_3" if find_spec("flash_attn_interface") else "sdpa"
    config = Qwen3Config(
        vocab_size=151936, head_dim=128, max_position_embeddings=40960, rope_theta=1e6, **SHAPES[arguments.shape]
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.bfloat16).eval()
    generation = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0, max_new_tokens=1024
    )
    manager = model.init_continuous_batching(
        generation_config=generation,
        workload_hints=WorkloadHints(max_prompt_length=1024, max_generated_length=1024, num_requests=256),
    )
    manager.start()
    for seed in map(int, arguments.seeds.split(",")):
        work = w1(seed)
        began_s = time.perf_counter()
        for prompt, length in zip(work.prompts, work.lengths):
            manager.add_request(list(prompt), max_new_tokens=length)
        num_done = num_tokens = 0
        while num_done < len(work.prompts):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                num_done += 1
                num_tokens += len(result.generated_tokens)
            elif result is None and not manager.is_running():
                sys.exit("transformers stopped")
        total_s = time.perf_counter() - began_s
        assert num_tokens == sum(work.lengths), (num_tokens, sum(work.lengths))
        print(json.dumps({"engine": f"transformers ({attention})", "shape": arguments.shape, "seed": seed,
                          "seconds": total_s, "tok_s": num_tokens / total_s}), flush=True)  # fmt: skip
    manager.stop(block=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
