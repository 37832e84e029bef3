"""The cluster's decisions on fakes: scaling, loss, and a rollout during which the count that serves never falls."""

from __future__ import annotations

from phloem.parallel.replica_count import Controller, Scaler, Status


class FakeLauncher:
    """Replicas that serve when told."""

    def __init__(self) -> None:
        self.statuses: dict[str, Status] = {}
        self.stopped: list[str] = []

    def start(self, name: str) -> None:
        self.statuses[name] = Status()

    def status(self, name: str) -> Status:
        return self.statuses[name]

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def all_serve(self) -> None:
        for name in self.statuses:
            self.statuses[name] = Status(url=f"http://{name}")


class FakeFront:
    """A router that drains when told."""

    def __init__(self) -> None:
        self.urls: set[str] = set()
        self.waiting = 0
        self.is_drained = True

    def add(self, url: str) -> None:
        self.urls.add(url)

    def remove(self, url: str) -> None:
        self.urls.discard(url)

    def is_removed(self, url: str) -> bool:
        return self.is_drained

    def num_waiting(self, url: str) -> int:
        return self.waiting


def started(*, least: int, most: int) -> tuple[Controller, FakeLauncher, FakeFront]:
    launcher, front = FakeLauncher(), FakeFront()
    controller = Controller(launcher=launcher, front=front, scaler=Scaler(least=least, most=most, quiet_s=10))
    controller.tick(0)
    launcher.all_serve()
    controller.tick(1)
    return controller, launcher, front


def test_a_lost_replica_leaves_the_router_and_another_is_started() -> None:
    """Red if requests are still sent to a machine that is gone, or its place stays empty."""
    controller, launcher, front = started(least=2, most=2)
    assert front.urls == {"http://replica-0", "http://replica-1"}
    launcher.statuses["replica-0"] = Status(lost="its machine is gone")
    controller.tick(2)
    assert front.urls == {"http://replica-1"}
    assert launcher.stopped == ["replica-0"]
    assert [state for _, _, state in controller.states()] == ["ready", "starting"]


def test_a_queue_brings_one_more_at_a_time_and_quiet_takes_it_away() -> None:
    """Red if a queue starts several before the first of them can help, or the count leaves its bounds."""
    controller, launcher, front = started(least=1, most=2)
    front.waiting = 9
    controller.tick(2)
    controller.tick(3)
    assert len(controller.states()) == 2
    launcher.all_serve()
    for now_s in (4, 5, 6):
        controller.tick(now_s)
    assert len(controller.states()) == 2, "never more than the most"
    front.waiting = 0
    for now_s in (7, 18, 19, 40, 41):
        controller.tick(now_s)
    assert [name for name, _, _ in controller.states()] == ["replica-0"]


def test_a_rollout_never_serves_with_fewer_and_drains_before_it_ends_one() -> None:
    """Red if an old replica goes before a new one serves, or is ended while requests are open there."""
    controller, launcher, front = started(least=2, most=2)
    controller.roll_out()
    front.is_drained = False
    for now_s in range(2, 12):
        controller.tick(now_s)
        assert len(front.urls) >= 2
        if now_s == 5:
            assert not launcher.stopped, "two serve, the new one has not started"
            launcher.all_serve()
        if now_s == 8:
            assert [state for _, _, state in controller.states()].count("draining") >= 1
            assert not launcher.stopped, "requests are open there"
            front.is_drained = True
    launcher.all_serve()
    for now_s in range(12, 20):
        controller.tick(now_s)
        launcher.all_serve()
    assert [(version, state) for _, version, state in controller.states()] == [(1, "ready"), (1, "ready")]
    assert sorted(launcher.stopped) == ["replica-0", "replica-1"]
