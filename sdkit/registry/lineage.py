"""Lineage: what a model was made from and what was made from it, as a tree, as data and in Graphviz's language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdkit.registry.registry import Registry
from sdkit.registry.rows import Activity, Entry

_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Node:
    """A model in the graph, and the activities that made it."""

    entry: Entry
    made: tuple[Activity, ...]


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
            nodes[one] = Node(registry.model(one).entry, tuple(registry.made(one)))
    known = Lineage(artifact, nodes, tuple(one for one in nodes if one not in above))
    for one in known.descendants:  # their other parents
        for activity in nodes[one].made:
            for parent, _, _ in activity.inputs:
                nodes.setdefault(parent, Node(registry.model(parent).entry, ()))
    return known


def _ancestors(registry: Registry, artifact: int, nodes: dict[int, Node]) -> None:
    front = [artifact]
    while front:
        one = front.pop()
        if one in nodes:
            continue
        nodes[one] = Node(registry.model(one).entry, tuple(registry.made(one)))
        front += [parent for activity in nodes[one].made for parent, _, _ in activity.inputs]


def tree(found: Lineage) -> list[str]:
    """The ancestors as an indented tree, then the names of the descendants."""
    lines = list(_branch(found, found.start, "", "", frozenset()))
    if found.descendants:
        names = ", ".join(found.nodes[one].entry.name for one in found.descendants)
        lines.append(f"went into: {names}")
    return lines


def _branch(found: Lineage, artifact: int, edge: str, indent: str, above: frozenset[int]) -> Iterator[str]:
    node = found.nodes[artifact]
    if artifact in above or len(above) > _DEEPEST:  # what a file says of its parents may go in circles
        yield f"{edge}{node.entry.name} (see above)"
        return
    verbs = " or ".join(described(activity) for activity in node.made)
    yield f"{edge}{_label(node.entry)}{f' <- {verbs}' if verbs else ''}"
    inputs = [given for activity in node.made for given in activity.inputs]
    for index, (parent, role, strength) in enumerate(inputs):
        last = index == len(inputs) - 1
        told = f"{role}{f' x {strength:g}' if strength is not None else ''}: "
        yield from _branch(
            found,
            parent,
            f"{indent}{'`- ' if last else '|- '}{told}",
            f"{indent}{'   ' if last else '|  '}",
            above | {artifact},
        )


def described(activity: Activity) -> str:
    """An activity in a few words: ``train lora``, ``blend ties``."""
    method = activity.recipe.get("method")
    return f"{activity.verb} {method}" if isinstance(method, str) and method else activity.verb


def _label(entry: Entry) -> str:
    what = " ".join(word for word in (entry.kind, entry.family) if word and word != "unknown")
    where = "" if entry.path and not entry.missing else "missing" if entry.path else "not here"
    told = ", ".join(word for word in (what, where) if word)
    return f"{entry.name} ({told})" if told else entry.name


def dot(found: Lineage) -> list[str]:
    """The graph in Graphviz's language: boxes are models, ellipses what was done."""
    lines = ["digraph lineage {", "  rankdir=LR;"]
    for artifact, node in found.nodes.items():
        style = ", style=bold" if artifact == found.start else ""
        lines.append(f"  m{artifact} [shape=box, label={_quoted(_label(node.entry))}{style}];")
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
