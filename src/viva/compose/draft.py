"""What can be said of a skeleton without a model: sentences that are true because the index says so.

A section is a line of places, each with alternatives: the embedded model chooses among them, token by token; a larger
model gets the first of each as the draft it may improve on.
"""

from __future__ import annotations

from viva.bank.schema import MODULES
from viva.compose.skeleton import Skeleton

Place = tuple[str, ...]  # alternatives, each true
Sections = dict[str, tuple[Place, ...]]
NEW_LINE: Place = ("\n",)

WHERE = {  # (in a loop, in a branch or behind a return)
    (False, False): "", (False, True): "，处在分支之中或提前返回之后",
    (True, False): "，在循环体内，每次迭代一次", (True, True): "，在循环体内，是否执行还看分支",
}  # fmt: skip

MAX_TOLD = 5
ASPECTS = {
    "execution": "调度",
    "graph-ir": "图与内存",
    "kv-cache": "KV cache 与内存",
    "parallelism": "并行",
    "system": "系统",
}


def drafts(skeleton: Skeleton) -> Sections:
    """Every section that is prose, in the order in which it is written."""
    return {
        "title": _title(skeleton),
        "overview": _overview(skeleton),
        "flow": _flow(skeleton),
        "layout": _layout(skeleton),
        "vllm": _peer(skeleton),
        "second": _second(skeleton),
        "tradeoffs": _tradeoffs(skeleton),
        "evolution": _evolution(skeleton),
    }


def plain_text(places: tuple[Place, ...]) -> str:
    return "".join(place[0] for place in places)


def proposed_names(skeleton: Skeleton) -> tuple[str, ...]:
    """What the section on evolution invents."""
    return (f"{_last(_slow(skeleton))}_many", f"{_camel(skeleton.lead[1].name)}Contract")


def _title(skeleton: Skeleton) -> tuple[Place, ...]:
    root, target, file = skeleton.root.name, skeleton.lead[1].qualname, skeleton.lead[1].file
    if skeleton.absent:
        return (
            (f"常有人说这里由 `{skeleton.absent}` 负责；在 `{root}` 与 `{target}` 里，真正做事的是谁，按什么顺序？",),
        )
    return (
        (
            f"`{root}` 按什么顺序做事，它怎样经由 `{skeleton.lead[0]}` 走到 `{file}` 的 `{target}`，"
            "哪些步骤不是每次都发生？",
            f"从 `{root}` 到 `{target}` 的调用链上，先后次序由什么决定，条件与循环落在哪里？",
        ),
    )


def _listed(names: list[str]) -> str:
    return "、".join(f"`{name}`" for name in names)


def _overview(skeleton: Skeleton) -> tuple[Place, ...]:
    root, (call, target) = skeleton.root, skeleton.lead
    symbol = root.symbol
    told = _listed([item.text for item in root.calls[:MAX_TOLD]])
    places: list[Place] = []
    if skeleton.absent:
        places.append(
            (f"前提不成立：源码里没有 `{skeleton.absent}`。", f"`{skeleton.absent}` 在这个版本的源码里不存在。")
        )
    places.append(
        (
            f"`{root.name}` 占 `{symbol.file}` 第 {symbol.line}-{symbol.end} 行，正文里先后出现的调用是 {told}。[c1]",
            f"读{MODULES[skeleton.slot.module]}的这一段，先看 `{root.name}`：源码中依次出现的调用是 {told}。[c1]",
        )
    )
    if root.num_returns:
        places.append((f"除末尾外它还有 {root.num_returns} 处 return，有的调用因此会被跳过。[c1]",
                       f"末尾之外的 return 共 {root.num_returns} 处，决定了哪些调用会被跳过。[c1]"))  # fmt: skip
    places += [
        ("\n\n",),
        (
            f"`{call}` 落到 `{target.file}` 里的 `{target.qualname}`，这条跨文件的边由静态调用图确认。[c1, c2]",
            f"跨文件的一步是 `{call}`：定义是 `{target.qualname}`，在 `{target.file}` 第 {target.line} 行。[c1, c2]",
        ),
        (f"状态保存在 `{skeleton.owner.qualname}`。[c3]", f"相关的状态由 `{skeleton.owner.qualname}` 持有。[c3]"),
    ]
    return tuple(places)


def _flow(skeleton: Skeleton) -> tuple[Place, ...]:
    places: list[Place] = []
    for call in skeleton.root.calls[:MAX_TOLD]:
        said = WHERE[call.in_loop, call.condition]
        places.append(
            (f"第 {call.line} 行调用 `{call.text}`{said}。[c1]", f"`{call.text}` 在第 {call.line} 行{said}。[c1]")
        )
        places.append(NEW_LINE)
    target = skeleton.lead[1]
    places.append((f"`{skeleton.lead[0]}` 进入 `{target.qualname}`，控制流由此换到 `{target.file}`。[c2]",))
    return tuple(places)


def _layout(skeleton: Skeleton) -> tuple[Place, ...]:
    owner, fields = skeleton.owner, skeleton.fields
    listed = _listed([item.name for item in fields])
    typed = sum(bool(item.type) for item in fields)
    places: list[Place] = [
        (
            f"`{owner.qualname}` 的关键字段在 `{owner.file}` 第 {fields[0].line}-{fields[-1].line} 行：{listed}。[c3]",
            f"第 {fields[0].line}-{fields[-1].line} 行是 `{owner.qualname}` 的字段 {listed}。[c3]",
        ),
        (f"其中 {typed} 个有类型信息，{len(fields) - typed} 个只能从赋值推断。[c3]",),
    ]
    tensors: list[str] = []
    containers: list[str] = []
    for item in fields:
        kind = item.type.lower()
        if "tensor" in kind:
            tensors.append(item.name)
        elif kind.startswith(("list", "dict", "set", "deque", "optional[list", "optional[dict")):
            containers.append(item.name)
    if tensors:
        places.append((f"{_listed(tensors)} 是张量：字段本身只是引用，拷贝对象不拷贝数据。[c3]",))
    if containers:
        places.append((f"{_listed(containers)} 是 Python 容器：元素是分散的对象，逐个访问要付出引用的间接代价。[c3]",))
    return tuple(places)


def _peer(skeleton: Skeleton) -> tuple[Place, ...]:
    peer, aspect = skeleton.peer, ASPECTS[skeleton.slot.module]
    told = _listed([item.text for item in peer.calls[:3]])
    return (
        (
            f"{aspect}：vLLM 的对应入口之一是 `{peer.symbol.file}` 的 `{peer.name}`，其中依次出现 {told}。[c4]",
            f"{aspect}：vLLM 把相近的职责放在 `{peer.name}`，源码顺序是 {told}。[c4]",
        ),
        (
            f"它有 {peer.num_branches} 个分支，"
            f"这里的 `{skeleton.root.name}` 有 {skeleton.root.num_branches} 个。[c1, c4]",
        ),
    )


def _second(skeleton: Skeleton) -> tuple[Place, ...]:
    return ((f"{ASPECTS[skeleton.slot.module]}：{skeleton.second.text}。[c5]",),)


def _slow(skeleton: Skeleton) -> str:
    return skeleton.root.loop_call or skeleton.root.calls[0].text


def _tradeoffs(skeleton: Skeleton) -> tuple[Place, ...]:
    root, slow = skeleton.root, _slow(skeleton)
    handled = f"失败路径上它捕获 {_listed(list(dict.fromkeys(root.handled))[:2])}。[c1]"
    return (
        (f"延迟：循环体内的 `{slow}` 使一次执行的耗时随迭代次数增长。[c1]"
         if root.loop_call else f"延迟：`{slow}` 不在循环里，执行到它时它的耗时计入一次。[c1]",),
        (f"复杂度：{root.num_branches} 个分支与 {root.num_returns} 处末尾之外的 return 要求每条路径各有测试。[c1]",),
        *(((handled,),) if root.handled and all(name.isidentifier() for name in root.handled) else ()),
        ("吞吐：批越大，单次的固定开销摊得越薄，等待也越久。", "吞吐与延迟在批的大小上相互交换。"),
        ("内存：先量字段所持对象的峰值，再谈缓存。", "内存的峰值由同时存活的对象决定。"),
        (f"低延迟场景先测 `{slow}` 的单次耗时；高吞吐场景先测批的大小。[c1]",),
    )  # fmt: skip


def _evolution(skeleton: Skeleton) -> tuple[Place, ...]:
    many, contract = proposed_names(skeleton)
    slow, target = _slow(skeleton), skeleton.lead[1]
    return (
        (
            f"为 `{slow}` 增加批量接口 `{many}`：一次收下整批参数，先以影子模式与旧路径逐项比对，"
            "再在 1、8、64 次迭代下测单步耗时，差值不超过噪声就放弃。[c1]",
        ),
        NEW_LINE,
        (
            f"把 `{skeleton.root.name}` 与 `{target.qualname}` 之间的约定写成显式的 `{contract}`："
            "列出参数、返回值与失败方式，用空实现驱动调用方的单元测试，再替换真实实现。[c1, c2]",
        ),
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2].lstrip("_")


def _camel(name: str) -> str:
    return "".join(part.title() for part in name.split("_") if part)
