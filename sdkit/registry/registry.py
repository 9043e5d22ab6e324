"""The registry: files and the artifacts they hold. (Beside it, `queries` and `changes` are all the SQL there is.)"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.core.paths import data_folder
from sdkit.registry.changes import HEADER, Changes
from sdkit.registry.database import NAME, Database, explained
from sdkit.registry.naming import name_of
from sdkit.registry.queries import WORDS

if TYPE_CHECKING:
    from sdkit.registry.facts import Facts


def is_on() -> bool:
    """Whether there is to be a registry: ``SDKIT_REGISTRY=off`` does without."""
    return os.environ.get("SDKIT_REGISTRY", "").lower() not in ("off", "0", "no", "false")


def registry_exists() -> bool:
    """Whether something has been registered already; so too where it cannot be seen, as opening it will say why."""
    try:
        (data_folder() / NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


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


class Registry(Changes):
    """The models of a database. What a file holds is told by its content: see `observe`."""

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
                artifact = self._new_artifact(name_of(facts.path))
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

    def _describe(self, artifact: int, facts: Facts) -> None:
        files = self._db.rows("SELECT path FROM files WHERE artifact = ? AND path != ?", artifact, str(facts.path))
        if not any(os.path.exists(file["path"]) for file in files):  # a further copy gives it no other name
            name = name_of(facts.path)
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
        right = same if same is not None else self._new_artifact(name_of(facts.path))
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
        # A name a person gave is better than a file's, and a file's better than what a recipe calls a parent.
        better = max(rows[kept], rows[other], key=lambda row: (row["named"], bool(row["kind"])))
        described = rows[kept] if rows[kept]["kind"] else rows[other]
        self._db.run(
            "UPDATE artifacts SET name = ?, named = ?, kind = ?, family = ?, format = ?, size = ?, facts = ? "
            "WHERE id = ?",
            better["name"],
            better["named"],
            *(described[column] for column in ("kind", "family", "format", "size", "facts")),
            kept,
        )
        for table in ("identities", "files", *WORDS, "sources", "edges"):
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


def _only_header_differs(known: sqlite3.Row, facts: Facts) -> bool:
    """Whether the same tensors seem to lie at the same place; another recipe says that they do not."""
    recipe = facts.made.hash if facts.made else ""
    return bool(known["sample_id"] == facts.sample_id and known["recipe_hash"] == recipe)
