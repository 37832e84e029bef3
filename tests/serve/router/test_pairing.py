"""Who computes a request's prompt: the router's pairing of prefill and decode replicas, before replicas that only note
what they were sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import msgspec
import pytest

from phloem.core.clock import MonotonicClock
from phloem.parallel.replicas import Load, Offer, Prompt, Routing, make_policy
from phloem.serve.http.admission import Admission
from phloem.serve.openai.responses import ModelCard, ModelList
from phloem.serve.router import fleet as fleet_module
from phloem.serve.router.app import Admin, create_router_app
from phloem.serve.router.fleet import Fleet
from phloem.serve.router.metrics import RouterMetrics
from phloem.serve.router.prompt import PromptReader
from phloem.serve.router.proxy import Proxy
from phloem.serve.router.upstream import Address, UpstreamLost

P1, P2, D1, D2 = (f"http://{name}:80" for name in ("p1", "p2", "d1", "d2"))
KV_FROM = b"x-phloem-kv-from"


@dataclass
class FakeReplica:
    """A server that answers at once, and keeps the pairing header of each completion it got."""

    offer: dict[str, object] | None = None
    is_well: bool = True
    named: list[list[bytes]] = field(default_factory=list)
    during: Callable[[], Awaitable[None]] | None = None

    async def answer(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, object]:
        if not self.is_well:
            raise UpstreamLost("gone")
        match target:
            case b"/ready":
                return 200, {}
            case b"/v1/models":
                return 200, msgspec.to_builtins(ModelList(data=[ModelCard(id="m", created=0, max_model_len=None)]))
            case b"/transfer" if self.offer is not None:
                return 200, self.offer
            case b"/v1/completions":
                self.named.append([value for name, value in headers if name == KV_FROM])
                if self.during is not None:
                    await self.during()
                return 200, {}
        return 404, {}


def prefill(address: str, *, fingerprint: str = "same") -> FakeReplica:
    return FakeReplica({"role": "prefill", "address": address, "fingerprint": fingerprint})


def decode(*, fingerprint: str = "same") -> FakeReplica:
    return FakeReplica({"role": "decode", "address": None, "fingerprint": fingerprint})


@dataclass
class FakeConnection:
    status: int
    content: object
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])

    async def body(self) -> bytes:
        return json.dumps(self.content).encode()


class Bench:
    """A router before fakes."""

    def __init__(self, servers: dict[str, FakeReplica]) -> None:
        self.fleet = Fleet(clock=MonotonicClock())
        self.servers = servers
        admission = Admission(max_queue=10)
        metrics = RouterMetrics(lambda: [(one.load, one.is_available) for one in self.fleet.replicas.values()])
        proxy = Proxy(
            fleet=self.fleet,
            routing=Routing(make_policy("least-tokens")),
            reader=PromptReader(None),
            admission=admission,
            metrics=metrics,
            max_body_bytes=10_000,
        )
        admin = Admin(fleet=self.fleet, admission=admission, metrics=metrics, admin_key=None)
        app = httpx.ASGITransport(create_router_app(admin, proxy))
        self.client = httpx.AsyncClient(transport=app, base_url="http://router")

    async def ask(self, *, token: int = 1, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": [token] * 100}, headers=headers)


def run(monkeypatch, servers: dict[str, FakeReplica], scenario: Callable[[Bench], Awaitable[None]]) -> None:
    class FakePool:
        def __init__(self, address: Address) -> None:
            self._server = servers[address.url]

        async def request(self, method, target, headers=(), body=b"") -> FakeConnection:
            return FakeConnection(*await self._server.answer(target, list(headers)))

        def release(self, connection: FakeConnection) -> None: ...

        def abort(self) -> None: ...

    async def play() -> None:
        bench = Bench(servers)
        for url in servers:
            await bench.fleet.add(url)
        await scenario(bench)
        await bench.fleet.close()

    monkeypatch.setattr(fleet_module, "Pool", FakePool)
    asyncio.run(asyncio.wait_for(play(), 20))


def test_a_decode_replica_is_told_the_least_loaded_prefill_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when a prefill replica gets a request, the busier one is named, another fingerprint is, or a client's header
    passes."""
    servers = {P1: prefill("p1:9"), P2: prefill("p2:9"), D1: decode(), D2: decode(fingerprint="other")}

    async def scenario(bench: Bench) -> None:
        bench.fleet.replicas[D2].load.num_tokens = 10_000
        loads = [bench.fleet.replicas[url].load for url in (P1, P2)]
        loads[0].num_tokens = 50
        counted: list[list[int]] = []

        async def during() -> None:
            counted.append([load.num_tokens for load in loads])

        servers[D1].during = during
        answer = await bench.ask(**{KV_FROM.decode(): "evil:1"})
        assert (answer.status_code, answer.headers["x-phloem-replica"]) == (200, D1)
        loads[0].num_tokens, loads[1].num_tokens = 0, 50
        await bench.ask(token=2)
        assert servers[D1].named == [[b"p2:9"], [b"p1:9"]]
        assert counted == [[50, 100], [100, 50]]
        assert [(load.num_tokens, load.num_requests) for load in loads] == [(0, 0), (50, 0)]
        bench.fleet.replicas[D1].state = "draining"
        await bench.ask(**{KV_FROM.decode(): "evil:1"})
        assert servers[D2].named == [[]]
        assert servers[P1].named == servers[P2].named == []
        metrics = (await bench.client.get("/metrics")).text
        assert f'phloem:router_prompts_handed_over_total{{replica="{P1}"}} 1.0' in metrics

    run(monkeypatch, servers, scenario)


def test_without_a_healthy_prefill_replica_the_decode_replica_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when a request waits for, or names, a prefill replica that is gone or drains."""
    servers = {P1: prefill("p1:9"), D1: decode()}

    async def scenario(bench: Bench) -> None:
        bench.fleet.lost(bench.fleet.replicas[P1], "gone")
        servers[P1].is_well = False
        await bench.ask()
        servers[P1].is_well, servers[P1].offer = True, prefill("p1:10").offer  # it came back on another port
        async with asyncio.timeout(5):
            while bench.fleet.replicas[P1].state != "ready":
                await asyncio.sleep(0.05)
        await bench.ask()
        assert servers[D1].named == [[], [b"p1:10"]]
        await bench.fleet.remove(P1, drain_timeout_s=0)
        await bench.ask()
        assert servers[D1].named[2:] == [[]]

    run(monkeypatch, servers, scenario)


def test_plain_replicas_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when a server that knows no roles gets a header it refuses, or /replicas does not show who is what; and when
    prefill replicas alone count as ready."""
    servers = {P1: prefill("p1:9"), D1: FakeReplica()}

    async def scenario(bench: Bench) -> None:
        await bench.ask(**{KV_FROM.decode(): "p1:9"})
        assert servers[D1].named == [[]]
        assert [one.load.name for one in bench.fleet.available()] == [D1]
        assert [one.offer.role for one in bench.fleet.replicas.values()] == ["prefill", "mixed"]
        await bench.fleet.remove(D1, drain_timeout_s=0)
        assert (await bench.client.get("/ready")).status_code == 503
        assert (await bench.ask()).status_code == 503
        cards = (await bench.client.get("/replicas")).json()["replicas"]
        assert [(card["url"], card["role"], card["state"]) for card in cards] == [(P1, "prefill", "ready")]

    run(monkeypatch, servers, scenario)


def test_a_prompt_counts_at_the_prefill_replica_until_the_first_token() -> None:
    """Red when a long answer keeps a prefill replica busy, or a failed request counts there for ever."""
    decodes, prefills = Load("d"), Load("p")
    for is_answered in (True, False):
        assignment = Routing(make_policy("least-tokens")).assign(Prompt(b"1234" * 9), [decodes])
        assignment.compute_prompt_at(prefills)
        assert (prefills.num_tokens, prefills.num_requests) == (9, 1)
        if is_answered:
            assignment.answered()
            assert (prefills.num_tokens, prefills.num_requests) == (0, 0)
        assignment.end()
        assert (prefills.num_tokens, prefills.num_requests, decodes.num_tokens) == (0, 0, 0)


def test_who_computes_for_whom() -> None:
    """Red when pages would go between replicas that cannot read each other's."""
    source, wants = Offer("prefill", "p:1", "f"), Offer("decode", None, "f")
    assert source.computes_for(wants)
    for other in (Offer("decode", None, "g"), Offer("mixed", None, "f"), source):
        assert not source.computes_for(other)
    assert not Offer("prefill", None, "f").computes_for(wants)
