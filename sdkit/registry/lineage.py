"""Lineage: what a model was made from and what was made from it, as a tree, as data and in Graphviz's language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdkit.registry.registry import Registry
from sdkit.registry.rows import Activity, Entry, Publication

_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Node:
    """A model in the graph, the activities that made it, and where it was published."""

    entry: Entry
    made: tuple[Activity, ...]
    published: tuple[Publication, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """A part of the graph.

    Attributes:
        start: the model asked about.
        nodes: everything it came from, and everything that came from it, by id.
        descendants: ids of what came from it.
    """

    start: int
    nodes: dict[int, Node]
    descendants: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: models, and the activities between them."""
        activities = {activity.id: activity for node in self.nodes.values() for activity in node.made}
        return {
            "model": self.start,
            "models": [
                {
                    "id": node.entry.id,
                    "name": node.entry.name,
                    "kind": node.entry.kind,
                    "family": node.entry.family,
                    "path": node.entry.path,
                    "missing": node.entry.missing or not node.entry.path,
                    "published": [asdict(one) for one in node.published],
                }
                for node in self.nodes.values()
            ],
            "activities": [
                {
                    "verb": activity.verb,
                    "recipe": activity.recipe,
                    "inputs": [
                        {"model": artifact, "role": role, "strength": strength}
                        for artifact, role, strength in activity.inputs
                    ],
                    "output": activity.output,
                }
                for activity in activities.values()
            ],
        }


def lineage(registry: Registry, artifact: int) -> Lineage:
    """The ancestors and the descendants of a model."""
    nodes: dict[int, Node] = {}
    _ancestors(registry, artifact, nodes)
    above = set(nodes)
    front = [artifact]
    while front:
        made = [activity.output for one in front for activity in registry.used(one)]
        front = [one for one in dict.fromkeys(made) if one not in nodes]
        for one in front:
            nodes[one] = _node(registry, one)
    known = Lineage(artifact, nodes, tuple(one for one in nodes if one not in above))
    for one in known.descendants:  # their other parents
        for activity in nodes[one].made:
            for parent, _, _ in activity.inputs:
                nodes.setdefault(parent, replace(_node(registry, parent), made=()))
    return known


def _node(registry: Registry, artifact: int) -> Node:
    model = registry.model(artifact)
    return Node(model.entry, tuple(registry.made(artifact)), model.published)


def _ancestors(registry: Registry, artifact: int, nodes: dict[int, Node]) -> None:
    front = [artifact]
    while front:
        one = front.pop()
        if one in nodes:
            continue
        nodes[one] = _node(registry, one)
        front += [parent for activity in nodes[one].made for parent, _, _ in activity.inputs]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tree of ancestors.

    Attributes:
        entry: the model.
        edge: what it was to the one it went into: ``adapter x 0.5``; empty at the root.
        verbs: what made it; empty where that is not known.
        open: for every level from the root to its own, whether a brother of that level follows.
        repeated: whether it stands further up already, where its own parents are.
    """

    entry: Entry
    edge: str = ""
    verbs: str = ""
    open: tuple[bool, ...] = ()
    repeated: bool = False


def rows(found: Lineage) -> list[Row]:
    """The model and everything it came from, each below what it went into."""
    return list(_branch(found, found.start, "", (), frozenset()))


def _branch(found: Lineage, artifact: int, edge: str, open: tuple[bool, ...], above: frozenset[int]) -> Iterator[Row]:
    node = found.nodes[artifact]
    if artifact in above or len(above) > _DEEPEST:  # what a file says of its parents may go in circles
        yield Row(node.entry, edge, open=open, repeated=True)
        return
    yield Row(node.entry, edge, " or ".join(described(activity) for activity in node.made), open)
    inputs = [given for activity in node.made for given in activity.inputs]
    for left, (parent, role, strength) in zip(range(len(inputs) - 1, -1, -1), inputs, strict=True):
        told = role if strength is None else f"{role} x {strength:g}"
        yield from _branch(found, parent, told, (*open, left > 0), above | {artifact})


def tree(found: Lineage) -> list[str]:
    """The ancestors as an indented tree, then what became of it."""
    return [*map(_line, rows(found)), *became(found)]


def became(found: Lineage) -> list[str]:
    """A line with the names of the descendants, and one with the places it was published, if there are any."""
    told = {
        "went into": (found.nodes[one].entry.name for one in found.descendants),
        "published": dict.fromkeys(one.reference for one in found.nodes[found.start].published),
    }
    lines = ((what, ", ".join(names)) for what, names in told.items())
    return [f"{what}: {names}" for what, names in lines if names]


def _line(row: Row) -> str:
    indent = "".join("|  " if follows else "   " for follows in row.open[:-1])
    edge = f"{indent}{'|- ' if row.open[-1] else '`- '}{row.edge}: " if row.open else ""
    if row.repeated:
        return f"{edge}{row.entry.name} (see above)"
    return f"{edge}{_label(row.entry)}{f' <- {row.verbs}' if row.verbs else ''}"


def described(activity: Activity) -> str:
    """An activity in a few words: ``train lora``, ``blend ties``."""
    method = activity.recipe.get("method")
    return f"{activity.verb} {method}" if isinstance(method, str) and method else activity.verb


def _label(entry: Entry) -> str:
    told = kind_and_state(entry)
    return f"{entry.name} ({told})" if told else entry.name


def kind_and_state(entry: Entry) -> str:
    """``checkpoint sd1``, and whether its file is not there."""
    what = " ".join(word for word in (entry.kind, entry.family) if word and word != "unknown")
    where = "" if entry.path and not entry.missing else "missing" if entry.path else "not here"
    return ", ".join(word for word in (what, where) if word)


def dot(found: Lineage) -> list[str]:
    """The graph in Graphviz's language: boxes are models, ellipses what was done."""
    lines = ["digraph lineage {", "  rankdir=LR;"]
    for artifact, node in found.nodes.items():
        style = ", style=bold" if artifact == found.start else ""
        lines.append(f"  m{artifact} [shape=box, label={_quoted(_label(node.entry))}{style}];")
        for number, one in enumerate(node.published):
            lines.append(f"  p{artifact}_{number} [shape=ellipse, label={_quoted(f'publish {one.reference}')}];")
            lines.append(f"  m{artifact} -> p{artifact}_{number};")
    activities = {activity.id: activity for node in found.nodes.values() for activity in node.made}
    for activity in activities.values():
        lines.append(f"  a{activity.id} [shape=ellipse, label={_quoted(described(activity))}];")
        for parent, role, strength in activity.inputs:
            told = f"{role} x {strength:g}" if strength is not None else role
            lines.append(f"  m{parent} -> a{activity.id} [label={_quoted(told)}];")
        lines.append(f"  a{activity.id} -> m{activity.output};")
    return [*lines, "}"]


def _quoted(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else "?" for sign in text)
    return json.dumps(shown, ensure_ascii=False)
