"""Writing down what is known of models: words, sources, and what was made from what."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.registry.database import Database
from sdkit.registry.naming import check_name, name_of, safe_name
from sdkit.registry.queries import HAS_OUTPUT, PUBLISH, WORDS, Queries
from sdkit.registry.rows import Entry, Publication, Source

if TYPE_CHECKING:
    from sdkit.registry.recipes import Input, Made

HEADER, SIDECAR, HUB, USER = "header", "sidecar", "hub", "user"


class Changes(Queries):
    """What is said of models, by people, sidecars and recipes.

    Attributes:
        changed: whether anything was written.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.changed = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Changes that happen together or not at all."""
        with self._db.writing():
            self.changed = True
            yield

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
        with self.writing():
            self._write_words(table, artifact, words, origin)
            self._index(artifact)

    def remove_words(self, table: str, artifact: int, words: Iterable[str]) -> None:
        """Take triggers, tags, notes or licences away."""
        with self.writing():
            for word in words:
                self._db.run(f"DELETE FROM {table} WHERE artifact = ? AND {WORDS[table]} = ?", artifact, word)
            self._index(artifact)

    def renew_words(self, table: str, artifact: int, words: Iterable[str], origin: str) -> None:
        """What the header or a sidecar says now, in place of what it said before."""
        with self.writing():
            self._rewrite_words(table, artifact, words, origin)
            self._index(artifact)

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

    def learn(self, identities: Sequence[tuple[str, str]], name: str) -> Entry:
        """The model whose content has one of these names; one that is only known of, where there is none yet."""
        with self.writing():
            found = (self.artifact_of(scheme, value) for scheme, value in identities)
            artifact = next((one for one in found if one is not None), None)
            if artifact is None:
                artifact = self._new_artifact(safe_name(name))
            for scheme, value in identities:
                self._identify(artifact, scheme, value)
            self._index(artifact)
        return self._entries("a.id = ?", [artifact])[0]

    def add_publication(self, artifact: int, told: Publication, when: float | None = None) -> None:
        """Say where a model was published: an activity that something went into, and nothing came out of."""
        with self.writing():
            if told in self._publications(artifact):
                return
            recipe = json.dumps(
                {
                    "verb": PUBLISH,
                    "to": told.reference,
                    "revision": told.revision,
                    "url": told.url,
                    "files": told.files,
                },
                sort_keys=True,
            )
            activity = self._db.run(
                "INSERT INTO activities (verb, recipe, recipe_hash, ended) VALUES (?, ?, ?, ?)",
                PUBLISH,
                recipe,
                hashlib.sha256(recipe.encode()).hexdigest(),
                when,
            )
            self._edge(activity, 0, artifact, "published", None)
            self._index(artifact)

    def remove(self, artifact: int) -> None:
        """Forget a model and its files. Where something was made from it, its name stays in that lineage."""
        with self.writing():
            self._db.run("DELETE FROM files WHERE artifact = ?", artifact)
            which = f"SELECT activity FROM edges e WHERE artifact = ? AND NOT {HAS_OUTPUT}"
            self._db.run(f"DELETE FROM activities WHERE id IN ({which})", artifact)
            if not self.used(artifact):
                self._delete_made(artifact)
                self._db.run("DELETE FROM artifacts WHERE id = ?", artifact)
                self._db.run("DELETE FROM search WHERE rowid = ?", artifact)
            else:
                for table in (*WORDS, "sources"):
                    self._db.run(f"DELETE FROM {table} WHERE artifact = ?", artifact)

    def add_root(self, path: Path, program: str) -> None:
        """Remember a folder, to be scanned again."""
        with self.writing():
            self._db.run("INSERT OR REPLACE INTO roots VALUES (?, ?)", str(path), program)

    def mark_missing(self, paths: Iterable[str]) -> None:
        """Say that files are gone; what is known of them stays."""
        with self.writing():
            for path in paths:
                self._db.run("UPDATE files SET missing = 1 WHERE path = ?", path)

    def forget_file(self, path: str) -> None:
        """Forget that a file holds anything."""
        with self.writing():
            self._db.run("DELETE FROM files WHERE path = ?", path)

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

    def _write_words(self, table: str, artifact: int, words: Iterable[str], origin: str) -> None:
        for word in words:
            self._db.run(
                f"INSERT INTO {table} (artifact, {WORDS[table]}, origin) VALUES (?, ?, ?) "
                f"ON CONFLICT DO UPDATE SET origin = excluded.origin WHERE origin != '{USER}'",
                artifact,
                word,
                origin,
            )

    def _rewrite_words(self, table: str, artifact: int, words: Iterable[str], origin: str) -> None:
        """`renew_words`, for callers that index the artifact when they have written everything."""
        self._db.run(f"DELETE FROM {table} WHERE artifact = ? AND origin = ?", artifact, origin)
        self._write_words(table, artifact, words, origin)

    def _identify(self, artifact: int, scheme: str, value: str) -> None:
        self._db.run("INSERT OR IGNORE INTO identities VALUES (?, ?, ?)", scheme, value, artifact)

    def _new_artifact(self, name: str) -> int:
        return self._db.run("INSERT INTO artifacts (name, added) VALUES (?, ?)", name, time.time())

    def _input(self, entry: Input) -> int:
        """The artifact that went in; unknown ones are remembered by their name until a file of them turns up."""
        artifact = self.artifact_of(entry.scheme, entry.value)
        if artifact is None:
            artifact = self._new_artifact(name_of(Path(entry.name)))
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
        for table in WORDS:
            words += self.words(table, artifact)
        for one in self._db.rows("SELECT hub, reference FROM sources WHERE artifact = ?", artifact):
            words += [one["hub"], one["reference"]]
        words += [one.reference for one in self._publications(artifact)]
        self._db.run("DELETE FROM search WHERE rowid = ?", artifact)
        self._db.run("INSERT INTO search (rowid, words) VALUES (?, ?)", artifact, " ".join(words))


def _base_of(inputs: Sequence[Input]) -> int:
    """Which of the inputs gave a file its metadata, and with them the recipe it had before.

    Conversions and calculations with adapters name it first; a base behind it only told how to read it.
    """
    if inputs[0].role in ("source", "adapter"):
        return 0
    return next((index for index, entry in enumerate(inputs) if entry.role in ("base", "A")), 0)
