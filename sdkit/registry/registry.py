"""What is known of models, and how it changes: the only code that speaks SQL about them."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.paths import data_folder
from sdkit.registry.database import NAME, Database, explained
from sdkit.registry.rows import Activity, Entry, File, Model, Source

if TYPE_CHECKING:
    from sdkit.registry.facts import Facts
    from sdkit.registry.recipes import Input, Made

HEADER, SIDECAR, USER = "header", "sidecar", "user"
_LONGEST_NAME = 120
_WORDS = {"triggers": "word", "tags": "tag", "notes": "text", "licences": "licence"}


_JOINED = "artifacts a LEFT JOIN files f ON f.artifact = a.id"
_GROUPED = "GROUP BY a.id"


def is_on() -> bool:
    """Whether there is to be a registry: ``SDKIT_REGISTRY=off`` does without."""
    return os.environ.get("SDKIT_REGISTRY", "").lower() not in ("off", "0", "no", "false")


def registry_exists() -> bool:
    """Whether something has been registered already."""
    return (data_folder() / NAME).exists()


@contextmanager
def open_registry(folder: Path | None = None) -> Iterator[Registry]:
    """The registry of this person, closed afterwards. Its backup is renewed now and then.

    Raises:
        RepairedError: it was damaged; opening it again will do.
        SdkitError: it is switched off or cannot be used.
    """
    if not is_on():
        raise SdkitError("the registry is switched off", "unset SDKIT_REGISTRY")
    database = Database(folder or data_folder())
    try:
        registry = Registry(database)
        yield registry
        if registry.changed:
            database.back_up()
    except sqlite3.Error as error:
        database.close()
        raise explained(database.path, error) from error
    finally:
        database.close()


class Registry:
    """The models of a database.

    Attributes:
        changed: whether anything was written.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self.changed = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Changes that happen together or not at all."""
        with self._db.writing():
            self.changed = True
            yield

    # Files

    def stamps(self) -> dict[str, str]:
        """Path → stamp of every file that was there when last looked for."""
        return {row["path"]: row["stamp"] for row in self._db.rows("SELECT path, stamp FROM files WHERE NOT missing")}

    def stamp(self, path: Path) -> str | None:
        """The stamp of one file; None where it is not registered."""
        row = self._db.row("SELECT stamp FROM files WHERE path = ? AND NOT missing", str(path))
        return None if row is None else str(row["stamp"])

    def observe(self, facts: Facts, *, stored: bool = False) -> int:
        """Register a file as it is now; returns the artifact it belongs to.

        A file known by its content is that artifact, wherever it was found. A known path that holds something else
        now is another artifact, unless only its header was edited.
        """
        with self.writing():
            known = self._db.row("SELECT * FROM files WHERE path = ?", str(facts.path))
            artifact = self.artifact_of("quick", facts.quick_id)
            if artifact is None and known is not None and _only_header_differs(known, facts):
                artifact = int(known["artifact"])
            if artifact is None:
                artifact = self._new_artifact(_name_of(facts.path))
            self._identify(artifact, "quick", facts.quick_id)
            self._describe(artifact, facts)
            self._place(artifact, facts, stored=stored or bool(known and known["stored"]))
            self._forget_moved(artifact, facts)
            if facts.made is not None:
                self.add_activity(artifact, facts.made)
            hashed = self._db.row("SELECT * FROM hashes WHERE stamp = ?", facts.stamp)
            if hashed is not None and hashed["quick_id"] == facts.quick_id:
                artifact = self.set_content(facts, hashed["content_id"], hashed["sha256"])
            self._index(artifact)
        return artifact

    def set_content(self, facts: Facts, content_id: str, sha256: str | None) -> int:
        """Say what reading a registered file whole gave; unites artifacts of equal tensors, and parts unequal ones."""
        with self.writing():
            row = self._db.row("SELECT artifact FROM files WHERE path = ?", str(facts.path))
            assert row is not None
            artifact = int(row["artifact"])
            same = self.artifact_of("content", content_id)
            other = self._db.row(
                "SELECT value FROM identities WHERE artifact = ? AND scheme = 'content' AND value != ?",
                artifact,
                content_id,
            )
            if other is not None:  # it only looked like an edit of the header
                artifact = self._part(artifact, same, facts)
            elif same is not None and same != artifact:
                artifact = self._unite(min(same, artifact), max(same, artifact))
            self._identify(artifact, "content", content_id)
            if sha256:
                before = self.artifact_of("sha256", sha256)
                if before is not None and before != artifact:
                    artifact = self._unite(artifact, before)
                self._identify(artifact, "sha256", sha256)
            self._db.run(
                "UPDATE files SET sha256 = ?, content_id = ? WHERE path = ?",
                sha256,
                content_id,
                str(facts.path),
            )
            self._db.run(
                "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)",
                facts.stamp,
                facts.quick_id,
                sha256,
                content_id,
            )
            self._index(artifact)
        return artifact

    def mark_missing(self, paths: Iterable[str]) -> None:
        """Say that files are gone; what is known of them stays."""
        with self.writing():
            for path in paths:
                self._db.run("UPDATE files SET missing = 1 WHERE path = ?", path)

    def forget_file(self, path: str) -> None:
        """Forget that a file holds anything."""
        with self.writing():
            self._db.run("DELETE FROM files WHERE path = ?", path)

    def roots(self) -> dict[str, str]:
        """The folders that were scanned, and the program each belongs to."""
        return {row["path"]: row["program"] for row in self._db.rows("SELECT * FROM roots ORDER BY path")}

    def add_root(self, path: Path, program: str) -> None:
        """Remember a folder, to be scanned again."""
        with self.writing():
            self._db.run("INSERT OR REPLACE INTO roots VALUES (?, ?)", str(path), program)

    # Finding

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

    def find(self, name: str) -> Entry:
        """The model called `name`, or ``@ID``, or by a sha256 of at least ten digits.

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
            bool(row["named"]),
        )

    def words(self, table: str, artifact: int) -> tuple[str, ...]:
        """The triggers, tags, notes or licences of one."""
        column = _WORDS[table]
        query = f"SELECT {column} FROM {table} WHERE artifact = ? ORDER BY {column}"
        return tuple(row[0] for row in self._db.rows(query, artifact))

    def learn(self, identities: Sequence[tuple[str, str]], name: str) -> Entry:
        """The model whose content has one of these names; one that is only known of, where there is none yet."""
        with self.writing():
            found = (self.artifact_of(scheme, value) for scheme, value in identities)
            artifact = next((one for one in found if one is not None), None)
            if artifact is None:
                artifact = self._new_artifact(_safe_name(name))
            for scheme, value in identities:
                self._identify(artifact, scheme, value)
            self._index(artifact)
        return self._entries("a.id = ?", [artifact])[0]

    # A person's changes

    def rename(self, artifact: int, name: str) -> None:
        """Give a model another name. Its files keep theirs.

        Raises:
            UsageError: it could not be told from a path, an option or an id.
        """
        check_name(name)
        with self.writing():
            self._db.run("UPDATE artifacts SET name = ?, named = 1 WHERE id = ?", name, artifact)
            self._index(artifact)

    def add_words(self, table: str, artifact: int, words: Iterable[str], origin: str = USER) -> None:
        """Add triggers, tags, notes or licences; a person's own stay theirs."""
        column = _WORDS[table]
        with self.writing():
            for word in words:
                self._db.run(
                    f"INSERT INTO {table} (artifact, {column}, origin) VALUES (?, ?, ?) "
                    f"ON CONFLICT DO UPDATE SET origin = excluded.origin WHERE origin != '{USER}'",
                    artifact,
                    word,
                    origin,
                )
            self._index(artifact)

    def remove_words(self, table: str, artifact: int, words: Iterable[str]) -> None:
        """Take triggers, tags, notes or licences away."""
        with self.writing():
            for word in words:
                self._db.run(f"DELETE FROM {table} WHERE artifact = ? AND {_WORDS[table]} = ?", artifact, word)
            self._index(artifact)

    def renew_words(self, table: str, artifact: int, words: Iterable[str], origin: str) -> None:
        """What the header or a sidecar says now, in place of what it said before."""
        with self.writing():
            self._db.run(f"DELETE FROM {table} WHERE artifact = ? AND origin = ?", artifact, origin)
            self.add_words(table, artifact, words, origin)

    def add_source(self, artifact: int, source: Source, origin: str = USER) -> None:
        """Say where a model comes from."""
        with self.writing():
            self._db.run(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)",
                artifact,
                source.hub,
                source.reference,
                source.revision,
                source.url,
                origin,
            )
            self._index(artifact)

    def remove(self, artifact: int) -> None:
        """Forget a model and its files. Where something was made from it, its name stays in that lineage."""
        with self.writing():
            self._db.run("DELETE FROM files WHERE artifact = ?", artifact)
            if self._db.row("SELECT 1 FROM edges WHERE artifact = ? AND role != 'output'", artifact) is None:
                self._delete_made(artifact)
                self._db.run("DELETE FROM artifacts WHERE id = ?", artifact)
                self._db.run("DELETE FROM search WHERE rowid = ?", artifact)
            else:
                for table in (*_WORDS, "sources"):
                    self._db.run(f"DELETE FROM {table} WHERE artifact = ?", artifact)

    # Lineage

    def add_activity(self, output: int, made: Made, ended: float | None = None) -> None:
        """Say how an artifact was made; saying it again changes nothing."""
        with self.writing():
            inputs = [self._input(entry) for entry in made.inputs]
            if made.before is not None and inputs:
                self.add_activity(inputs[_base_of(made.inputs)], made.before)
            if output in inputs or self._has_activity(output, made.hash):
                return
            activity = self._db.run(
                "INSERT INTO activities (verb, recipe, recipe_hash, version, ended) VALUES (?, ?, ?, ?, ?)",
                made.verb,
                made.recipe,
                made.hash,
                made.version,
                ended,
            )
            for position, (entry, artifact) in enumerate(zip(made.inputs, inputs, strict=True)):
                self._edge(activity, position, artifact, entry.role, entry.strength)
            self._edge(activity, len(inputs), output, "output", None)

    def finish_activity(self, output: int, made: Made, ended: float) -> None:
        """Say when something was made."""
        with self.writing():
            self._db.run(
                "UPDATE activities SET ended = ? WHERE recipe_hash = ? "
                "AND id IN (SELECT activity FROM edges WHERE artifact = ? AND role = 'output')",
                ended,
                made.hash,
                output,
            )

    def made(self, artifact: int) -> list[Activity]:
        """What it was made by; several where several files of the same tensors tell differently."""
        return self._activities("SELECT activity FROM edges WHERE artifact = ? AND role = 'output'", artifact)

    def used(self, artifact: int) -> list[Activity]:
        """What was made from it."""
        return self._activities("SELECT activity FROM edges WHERE artifact = ? AND role != 'output'", artifact)

    # Within

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

    def artifact_of(self, scheme: str, value: str) -> int | None:
        """The artifact whose content has this name."""
        row = self._db.row("SELECT artifact FROM identities WHERE scheme = ? AND value = ?", scheme, value)
        return None if row is None else int(row["artifact"])

    def _identify(self, artifact: int, scheme: str, value: str) -> None:
        self._db.run("INSERT OR IGNORE INTO identities VALUES (?, ?, ?)", scheme, value, artifact)

    def _new_artifact(self, name: str) -> int:
        return self._db.run("INSERT INTO artifacts (name, added) VALUES (?, ?)", name, time.time())

    def _describe(self, artifact: int, facts: Facts) -> None:
        files = self._db.rows("SELECT path FROM files WHERE artifact = ? AND path != ?", artifact, str(facts.path))
        if not any(os.path.exists(file["path"]) for file in files):  # a further copy gives it no other name
            name = _name_of(facts.path)
            self._db.run("UPDATE artifacts SET name = ? WHERE id = ? AND NOT named", name, artifact)
        self._db.run(
            "UPDATE artifacts SET kind = ?, family = ?, format = ?, size = ?, facts = ? WHERE id = ?",
            facts.kind,
            facts.family,
            facts.format,
            facts.size,
            json.dumps(dict(facts.details)),
            artifact,
        )
        self.renew_words("triggers", artifact, facts.triggers, HEADER)
        self.renew_words("licences", artifact, [facts.licence] if facts.licence else [], HEADER)

    def _place(self, artifact: int, facts: Facts, *, stored: bool) -> None:
        self._db.run(
            "INSERT INTO files (path, artifact, size, stamp, quick_id, sample_id, recipe_hash, stored) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET artifact = excluded.artifact, "
            "size = excluded.size, stamp = excluded.stamp, sample_id = excluded.sample_id, "
            "recipe_hash = excluded.recipe_hash, stored = excluded.stored, missing = 0, "
            "sha256 = CASE WHEN quick_id = excluded.quick_id THEN sha256 END, "
            "content_id = CASE WHEN quick_id = excluded.quick_id THEN content_id END, quick_id = excluded.quick_id",
            str(facts.path),
            artifact,
            facts.size,
            facts.stamp,
            facts.quick_id,
            facts.sample_id,
            facts.made.hash if facts.made else "",
            int(stored),
        )

    def _forget_moved(self, artifact: int, facts: Facts) -> None:
        """A file found elsewhere has moved, if its old place is empty; an unplugged drive is no empty place."""
        for row in self._db.rows("SELECT * FROM files WHERE artifact = ? AND path != ?", artifact, str(facts.path)):
            old = Path(row["path"])
            if not os.path.lexists(old) and (row["stamp"] == facts.stamp or old.parent.is_dir()):
                self._db.run("DELETE FROM files WHERE id = ?", row["id"])

    def _part(self, artifact: int, same: int | None, facts: Facts) -> int:
        """Move a file to the artifact of its tensors, away from one it was wrongly taken for."""
        right = same if same is not None else self._new_artifact(_name_of(facts.path))
        self._db.run("UPDATE files SET artifact = ? WHERE path = ?", right, str(facts.path))
        self._db.run("UPDATE identities SET artifact = ? WHERE scheme = 'quick' AND value = ?", right, facts.quick_id)
        self._describe(right, facts)
        if facts.made is not None:
            self.add_activity(right, facts.made)
        self._index(artifact)
        return right

    def _unite(self, kept: int, other: int) -> int:
        """Two artifacts turn out to be one; what is known of either stays."""
        rows = {row["id"]: row for row in self._db.rows("SELECT * FROM artifacts WHERE id IN (?, ?)", kept, other)}
        better = (
            rows[other]
            if (rows[other]["named"], bool(rows[other]["kind"]))
            > (
                rows[kept]["named"],
                bool(rows[kept]["kind"]),
            )
            else rows[kept]
        )
        described = rows[kept] if rows[kept]["kind"] else rows[other]
        self._db.run(
            "UPDATE artifacts SET name = ?, named = ?, kind = ?, family = ?, format = ?, size = ?, facts = ? "
            "WHERE id = ?",
            better["name"],
            better["named"],
            *(described[column] for column in ("kind", "family", "format", "size", "facts")),
            kept,
        )
        for table in ("identities", "files", *_WORDS, "sources", "edges"):
            self._db.run(f"UPDATE OR IGNORE {table} SET artifact = ? WHERE artifact = ?", kept, other)
        seen: set[str] = set()
        for activity in self.made(kept):
            row = self._db.row("SELECT recipe_hash FROM activities WHERE id = ?", activity.id)
            assert row is not None
            if row["recipe_hash"] in seen:
                self._db.run("DELETE FROM activities WHERE id = ?", activity.id)
            seen.add(row["recipe_hash"])
        self._db.run("DELETE FROM artifacts WHERE id = ?", other)
        self._db.run("DELETE FROM search WHERE rowid = ?", other)
        self._index(kept)
        return kept

    def _input(self, entry: Input) -> int:
        """The artifact that went in; unknown ones are remembered by their name until a file of them turns up."""
        artifact = self.artifact_of(entry.scheme, entry.value)
        if artifact is None:
            artifact = self._new_artifact(_name_of(Path(entry.name)))
            self._identify(artifact, entry.scheme, entry.value)
            self._index(artifact)
        return artifact

    def _has_activity(self, output: int, recipe_hash: str) -> bool:
        query = (
            "SELECT 1 FROM edges e JOIN activities a ON a.id = e.activity "
            "WHERE e.artifact = ? AND e.role = 'output' AND a.recipe_hash = ?"
        )
        return self._db.row(query, output, recipe_hash) is not None

    def _edge(self, activity: int, position: int, artifact: int, role: str, strength: float | None) -> None:
        self._db.run("INSERT INTO edges VALUES (?, ?, ?, ?, ?)", activity, position, artifact, role, strength)

    def _delete_made(self, artifact: int) -> None:
        """Forget how it was made, and parents that nothing else knows."""
        for activity in self.made(artifact):
            self._db.run("DELETE FROM activities WHERE id = ?", activity.id)
            for parent, _, _ in activity.inputs:
                lonely = (
                    "DELETE FROM artifacts WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM files WHERE artifact = ?1) "
                    "AND NOT EXISTS (SELECT 1 FROM edges WHERE artifact = ?1)"
                )
                self._db.run(lonely, parent)

    def _activities(self, which: str, artifact: int) -> list[Activity]:
        found = []
        for row in self._db.rows(f"SELECT * FROM activities WHERE id IN ({which}) ORDER BY id", artifact):
            edges = self._db.rows("SELECT * FROM edges WHERE activity = ? ORDER BY position", row["id"])
            inputs = tuple((one["artifact"], one["role"], one["strength"]) for one in edges if one["role"] != "output")
            output = next((int(one["artifact"]) for one in edges if one["role"] == "output"), 0)
            found.append(Activity(row["id"], row["verb"], json.loads(row["recipe"]), inputs, output))
        return found

    def _index(self, artifact: int) -> None:
        """Renew the words by which it is found."""
        row = self._db.row("SELECT * FROM artifacts WHERE id = ?", artifact)
        if row is None:
            return
        facts = json.loads(row["facts"])
        words = [
            row["name"],
            row["kind"],
            row["family"],
            row["format"],
            str(facts.get("title", "")),
            str(facts.get("author", "")),
        ]
        words += [
            Path(one["path"]).name for one in self._db.rows("SELECT path FROM files WHERE artifact = ?", artifact)
        ]
        for table in _WORDS:
            words += self.words(table, artifact)
        for one in self._db.rows("SELECT hub, reference FROM sources WHERE artifact = ?", artifact):
            words += [one["hub"], one["reference"]]
        self._db.run("DELETE FROM search WHERE rowid = ?", artifact)
        self._db.run("INSERT INTO search (rowid, words) VALUES (?, ?)", artifact, " ".join(words))


_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})


def check_name(name: str) -> None:
    """Refuse names that would be taken for something else.

    Raises:
        UsageError: it is empty or too long, looks like a path, an option or an id, or holds control characters.
    """
    taken = name.startswith(("-", "@", ".")) or any(sign in name for sign in "/\\=\0")
    if not name.strip() or len(name) > _LONGEST_NAME or taken or not name.isprintable():
        raise UsageError(
            f"{name[:_LONGEST_NAME]!r} cannot be a name",
            "a name is not empty, has no / \\ = or control characters, and does not begin with - @ or a dot",
        )


def _safe_name(text: str) -> str:
    """A name from a file's: what could not be typed or shown is a ``_``."""
    shown = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in text)[:_LONGEST_NAME].strip()
    return shown.lstrip("-@.") or "unnamed"


def _name_of(path: Path) -> str:
    return _safe_name(path.stem if path.suffix in _SUFFIXES else path.name)


def _only_header_differs(known: sqlite3.Row, facts: Facts) -> bool:
    """Whether the same tensors seem to lie at the same place; another recipe says that they do not."""
    recipe = facts.made.hash if facts.made else ""
    return bool(known["sample_id"] == facts.sample_id and known["recipe_hash"] == recipe)


def _base_of(inputs: Sequence[Input]) -> int:
    """Which of the inputs gave a file its metadata, and with them the recipe it had before."""
    return next((index for index, entry in enumerate(inputs) if entry.role in ("base", "A")), 0)


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
