"""Asking the registry: the list of models, one of them, and what was made from what."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.registry.database import Database
from sdkit.registry.rows import Activity, Entry, File, Model, Publication, Source

# What people and files say in words: table → column.
WORDS = {"triggers": "word", "tags": "tag", "notes": "text", "licences": "licence"}
_JOINED = "artifacts a LEFT JOIN files f ON f.artifact = a.id"
# Of an edge `e`: whether anything came out of its activity. Publishing alone has no output.
HAS_OUTPUT = "EXISTS (SELECT 1 FROM edges o WHERE o.activity = e.activity AND o.role = 'output')"
PUBLISH = "publish"
_GROUPED = "GROUP BY a.id"


class Queries:
    """What a database knows of models. Nothing here writes."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def stamps(self) -> dict[str, str]:
        """Path → stamp of every file that was there when last looked for."""
        return {row["path"]: row["stamp"] for row in self._db.rows("SELECT path, stamp FROM files WHERE NOT missing")}

    def stamp(self, path: Path) -> str | None:
        """The stamp of one file; None where it is not registered."""
        row = self._db.row("SELECT stamp FROM files WHERE path = ? AND NOT missing", str(path))
        return None if row is None else str(row["stamp"])

    def hashed_files(self) -> dict[str, tuple[str, str]]:
        """Path → stamp and sha256 of the files that were read whole."""
        rows = self._db.rows("SELECT path, stamp, sha256 FROM files WHERE sha256 IS NOT NULL AND NOT missing")
        return {row["path"]: (row["stamp"], row["sha256"]) for row in rows}

    def roots(self) -> dict[str, str]:
        """The folders that were scanned, and the program each belongs to."""
        return {row["path"]: row["program"] for row in self._db.rows("SELECT * FROM roots ORDER BY path")}

    def entries(
        self,
        words: Sequence[str] = (),
        *,
        kind: str = "",
        family: str = "",
        tag: str = "",
        missing: bool = False,
        everything: bool = False,
        limit: int | None = None,
    ) -> list[Entry]:
        """The models that have files, the newest first.

        Args:
            words: each must begin a word of its name, title, triggers, tags, notes, sources, family or file names.
            kind: only of this kind.
            family: only of this family.
            tag: only with this tag.
            missing: only those whose files are gone.
            everything: also those that are only known as parents.
            limit: at most so many.
        """
        condition, values = self._condition(words, kind=kind, family=family, tag=tag, everything=everything)
        return self._entries(condition, values, missing=missing, limit=limit)

    def count(self, words: Sequence[str] = (), *, missing: bool = False, **filters: Any) -> int:
        """How many there are, see `entries`."""
        condition, values = self._condition(words, **filters)
        having = "HAVING MIN(f.missing)" if missing else ""
        query = f"SELECT 1 FROM {_JOINED} WHERE {condition} {_GROUPED} {having}"
        row = self._db.row(f"SELECT COUNT(*) AS found FROM ({query})", *values)
        assert row is not None
        return int(row["found"])

    def find(self, name: str) -> Entry:
        """The model called `name`, or ``@ID``, or by its path, a hub's reference, or a sha256 of at least ten digits.

        Raises:
            SdkitError: there is none (the hint names the nearest) or there are several.
        """
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        if not found:
            raise SdkitError(f"no model is called {name!r}", self._near(name))
        lines = "\n".join(f"@{entry.id}  {entry.name}  {entry.path or '(no file)'}" for entry in found)
        raise UsageError(f"{name!r} names several models:\n{lines}", "write the @number, or the path")

    def named(self, name: str) -> list[Entry]:
        """All models of that name; only where none has a file, those that are known as parents."""
        if name.startswith("@") and name[1:].isdecimal():
            return self._entries("a.id = ?", [int(name[1:])])
        found = self._entries("a.name = ?", [name])
        if not found:
            found = self._entries("a.id IN (SELECT artifact FROM files WHERE path = ?)", [os.path.abspath(name)])
        if not found and ":" in name:
            source = "SELECT artifact FROM sources WHERE reference = ? OR reference || '@' || revision = ?"
            found = self._entries(f"a.id IN ({source})", [name, name])
        digits = name.lower().removeprefix("sha256:")
        if not found and len(digits) >= 10 and not set(digits) - set("0123456789abcdef"):
            scheme = "a.id IN (SELECT artifact FROM identities WHERE scheme = 'sha256' AND value BETWEEN ? AND ?)"
            found = self._entries(scheme, [digits, f"{digits}g"])
        return [entry for entry in found if entry.path] or found

    def names(self, beginning: str = "") -> list[str]:
        """The names of models with files, for completion."""
        escaped = beginning.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        rows = self._db.rows(
            "SELECT DISTINCT name FROM artifacts WHERE name LIKE ? ESCAPE '\\' "
            "AND id IN (SELECT artifact FROM files WHERE NOT missing) ORDER BY name LIMIT 200",
            f"{escaped}%",
        )
        return [row["name"] for row in rows]

    def model(self, artifact: int) -> Model:
        """Everything known of one."""
        entry = self._entries("a.id = ?", [artifact])[0]
        row = self._db.row("SELECT facts, named FROM artifacts WHERE id = ?", artifact)
        assert row is not None
        files = self._db.rows("SELECT * FROM files WHERE artifact = ? ORDER BY missing, id", artifact)
        identities = self._db.rows("SELECT scheme, value FROM identities WHERE artifact = ? ORDER BY 1, 2", artifact)
        sources = self._db.rows("SELECT * FROM sources WHERE artifact = ? ORDER BY hub, reference", artifact)
        return Model(
            entry,
            json.loads(row["facts"]),
            tuple((one["scheme"], one["value"]) for one in identities),
            tuple(_file(one) for one in files),
            tuple(Source(one["hub"], one["reference"], one["revision"], one["url"]) for one in sources),
            self.words("licences", artifact),
            self.words("notes", artifact),
            tuple(self._publications(artifact)),
            bool(row["named"]),
        )

    def pulled(self, reference: str, revision: str = "") -> list[Model]:
        """The models that a hub gave for a reference, the newest first. (What a sidecar claims does not count.)"""
        query = (
            "SELECT artifact FROM sources WHERE reference = ?1 AND ?2 IN ('', revision) AND origin = 'hub' "
            "ORDER BY artifact DESC"
        )
        return [self.model(int(row["artifact"])) for row in self._db.rows(query, reference, revision)]

    def words(self, table: str, artifact: int) -> tuple[str, ...]:
        """The triggers, tags, notes or licences of one."""
        column = WORDS[table]
        query = f"SELECT {column} FROM {table} WHERE artifact = ? ORDER BY {column}"
        return tuple(row[0] for row in self._db.rows(query, artifact))

    def made(self, artifact: int) -> list[Activity]:
        """What it was made by; several where several files of the same tensors tell differently."""
        return self._activities("SELECT activity FROM edges WHERE artifact = ? AND role = 'output'", artifact)

    def used(self, artifact: int) -> list[Activity]:
        """What was made from it."""
        which = f"SELECT activity FROM edges e WHERE artifact = ? AND role != 'output' AND {HAS_OUTPUT}"
        return self._activities(which, artifact)

    def _publications(self, artifact: int) -> Iterator[Publication]:
        which = f"SELECT activity FROM edges e WHERE artifact = ? AND NOT {HAS_OUTPUT}"
        query = f"SELECT recipe FROM activities WHERE verb = '{PUBLISH}' AND id IN ({which}) ORDER BY id"
        for row in self._db.rows(query, artifact):
            told = json.loads(row["recipe"])
            yield Publication(told["to"], told["revision"], told["url"], tuple(told["files"]))

    def artifact_of(self, scheme: str, value: str) -> int | None:
        """The artifact whose content has this name."""
        row = self._db.row("SELECT artifact FROM identities WHERE scheme = ? AND value = ?", scheme, value)
        return None if row is None else int(row["artifact"])

    @staticmethod
    def _condition(
        words: Sequence[str], *, kind: str = "", family: str = "", tag: str = "", everything: bool = False
    ) -> tuple[str, list[str]]:
        conditions, values = ["1"], []
        for column, value in (("a.kind", kind), ("a.family", family)):
            if value:
                conditions.append(f"{column} = ?")
                values.append(value)
        if tag:
            conditions.append("a.id IN (SELECT artifact FROM tags WHERE tag = ?)")
            values.append(tag)
        if query := _match(words):
            conditions.append("a.id IN (SELECT rowid FROM search WHERE search MATCH ?)")
            values.append(query)
        if not everything:
            conditions.append("f.id IS NOT NULL")
        return " AND ".join(conditions), values

    def _entries(
        self, condition: str, values: Sequence[object], *, missing: bool = False, limit: int | None = None
    ) -> list[Entry]:
        # The words are looked up only for those that are shown.
        rows = self._db.rows(
            "SELECT *, (SELECT group_concat(word, char(31)) FROM triggers WHERE artifact = m.id) AS triggers, "
            "(SELECT group_concat(tag, char(31)) FROM tags WHERE artifact = m.id) AS tags FROM "
            "(SELECT a.id, a.name, a.kind, a.family, a.format, a.size, a.added, f.path, MIN(f.missing) AS missing "
            f"FROM {_JOINED} WHERE {condition} {_GROUPED} {'HAVING MIN(f.missing)' if missing else ''} "
            "ORDER BY a.added DESC, a.id DESC LIMIT ?) m",
            *values,
            -1 if limit is None else limit,
        )
        return [_entry(row) for row in rows]

    def _near(self, name: str) -> str:
        from sdkit.core.plugins import nearest_hint

        names = self.names()
        return nearest_hint(name, names) if names else "`sdkit models scan DIR` registers the models of a folder"

    def _activities(self, which: str, artifact: int) -> list[Activity]:
        found = []
        for row in self._db.rows(f"SELECT * FROM activities WHERE id IN ({which}) ORDER BY id", artifact):
            edges = self._db.rows("SELECT * FROM edges WHERE activity = ? ORDER BY position", row["id"])
            inputs = tuple((one["artifact"], one["role"], one["strength"]) for one in edges if one["role"] != "output")
            output = next((int(one["artifact"]) for one in edges if one["role"] == "output"), 0)
            found.append(Activity(row["id"], row["verb"], json.loads(row["recipe"]), inputs, output))
        return found


def _match(words: Sequence[str]) -> str:
    """An FTS5 query for words that begin with each of these."""
    quoted = [word.replace('"', '""') for word in words if any(sign.isalnum() for sign in word)]
    return " ".join(f'"{word}"*' for word in quoted)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split("\x1f")) if text else ()


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        family=row["family"],
        format=row["format"],
        size=row["size"],
        added=row["added"],
        path=row["path"] or "",
        missing=bool(row["missing"]),
        triggers=_split(row["triggers"]),
        tags=_split(row["tags"]),
    )


def _file(row: sqlite3.Row) -> File:
    return File(
        row["path"],
        row["size"],
        row["stamp"],
        row["quick_id"],
        row["sha256"],
        bool(row["stored"]),
        bool(row["missing"]),
    )
