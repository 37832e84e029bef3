"""Every option there is, once: name, type, bounds, default,help. The command line is generated from this struct."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantize = Literal["auto", "none", "int8", "int4", "fp8"]
KvCacheDtype = Literal["auto", "fp8"]
Role = Literal["mixed", "prefill", "decode"]
Policy = Literal["fcfs", "lpm", "priority"]
ToolFormatName = Literal[
    "auto", "none", "hermes", "llama3", "mistral", "mistral-v11", "deepseek", "deepseek-v3.1", "qwen3-coder"
]  # fmt: skip
ReasoningFormatName = Literal["auto", "none", "think", "mistral"]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen after `core.resolve`; read in core and launch only, everybody else receives plain values."""

    # -- model
    model: Annotated[str, Meta(description="GGUF file, Hugging Face folder, hub id, `default`, or dummy:<name>")] = (
        "default"
    )
    served_model_name: Annotated[str | None, Meta(description="name in the API; default: derived from the model")] = (
        None
    )
    dtype: Annotated[Dtype, Meta(description="activation type; auto: the fastest that keeps the model's precision")] = (
        "auto"
    )
    quantize: Annotated[Quantize, Meta(description="weight storage; auto: as the checkpoint stores it")] = "auto"
    kv_cache_dtype: Annotated[
        KvCacheDtype,
        Meta(description="type of cached keys and values; auto: the activation type; fp8: half of it (GPU)"),
    ] = "auto"
    deterministic: Annotated[
        bool,
        Meta(description="a request's bits depend on nothing that runs beside it, as always on a CPU; slower on a GPU"),
    ] = False
    chat_template: Annotated[str | None, Meta(description="file with a Jinja chat template; default: the model's")] = (
        None
    )
    tool_format: Annotated[
        ToolFormatName, Meta(description="how the model writes tool calls; auto: as its chat template does")
    ] = "auto"
    reasoning_format: Annotated[
        ReasoningFormatName, Meta(description="how the model sets reasoning apart; auto: as its chat template does")
    ] = "auto"
    max_model_len: Annotated[
        Annotated[int, Meta(ge=2)] | None, Meta(description="longest context in tokens; default: the model's")
    ] = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="base of the seeds of requests that bring none")] = 0

    # -- machine
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="where the model runs")] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads of the model; default: every core")
    ] = None
    memory_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1e6)] | None,
        Meta(description="GB for the KV cache; default: solved from what is free"),
    ] = None
    page_size: Annotated[
        int, Meta(ge=1, le=4096, description="tokens a KV page; the CPU kernels want a multiple of 32")
    ] = 32

    # -- parallelism
    tp: Annotated[int, Meta(ge=1, le=64, description="ranks that share every layer (tensor parallel)")] = 1
    ep: Annotated[int, Meta(ge=1, le=64, description="of those ranks, how many hold whole experts (1 or --tp)")] = 1
    pp: Annotated[int, Meta(ge=1, le=64, description="stages that share the layers (pipeline parallel)")] = 1
    dp: Annotated[int, Meta(ge=1, le=64, description="replicas on this machine, with a router in front")] = 1
    router_policy: Annotated[
        Literal["cache-aware", "least-tokens", "round-robin"], Meta(description="with --dp: where a request goes")
    ] = "cache-aware"
    nodes: Annotated[int, Meta(ge=1, le=64, description="machines that share the ranks of a replica")] = 1
    node_rank: Annotated[int, Meta(ge=0, le=63, description="which of --nodes this machine is; node 0 serves")] = 0
    meet: Annotated[
        str | None, Meta(description="HOST:PORT of node 0 where --nodes meet; the two ports above it are used, too")
    ] = None

    role: Annotated[
        Role, Meta(description="prefill: computes prompts for other replicas, too; decode: lets others compute prompts")
    ] = "mixed"
    kv_port: Annotated[
        int, Meta(ge=0, le=65535, description="port where a prefill replica answers others; 0: any free one")
    ] = 0

    # -- cluster
    cluster: Annotated[Literal["none", "ray"], Meta(description="where replicas run: here, or on a Ray cluster")] = (
        "none"
    )
    ray_address: Annotated[str, Meta(description="Ray's HOST:PORT; auto: the cluster that this machine is in")] = "auto"
    min_replicas: Annotated[int, Meta(ge=1, le=4096, description="with --cluster: never fewer replicas")] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=4096, description="with --cluster: never more replicas")] = 1

    # -- scheduling
    policy: Annotated[Policy, Meta(description="who goes first among the waiting")] = "lpm"
    max_running: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="sequences running at once; default: 64 on a CPU, 256 on a GPU"),
    ] = None
    max_step_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=16384)] | None,
        Meta(description="token budget of one step; default: 1024 on a CPU, 8192 on a GPU"),
    ] = None
    max_queue: Annotated[int, Meta(ge=1, description="requests open at once before the server answers 503")] = 1024
    overlap: Annotated[
        Literal["auto", "0", "1"], Meta(description="steps planned ahead; auto: 0 on CPU, 1 on a GPU")
    ] = "auto"
    prefix_cache: Annotated[bool, Meta(description="keep and share the KV cache of prompts and answers")] = True

    # -- server
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    api_key: Annotated[str | None, Meta(description="bearer key that clients must send; default: none")] = None
    max_body_mb: Annotated[float, Meta(gt=0, le=10_000, description="largest HTTP body in MB")] = 8.0
    program_functions: Annotated[
        str | None,
        Meta(description="FILE.py:NAME or MODULE:NAME of a mapping of functions that programs may call; default: none"),
    ] = None
    drain_timeout_s: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds that running requests get at shutdown")
    ] = 10.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least severe line logged")] = (
        "info"
    )
    max_restarts: Annotated[
        int | None,
        Meta(
            description="times a dead engine is replaced before the server exits; default: 3 with --tp or --pp, else 0"
        ),
    ] = None
    record: Annotated[str | None, Meta(description="file that every decision is recorded to, for replay")] = None
