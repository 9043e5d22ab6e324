"""The tables, as the list of steps that made them. A step is never changed once it has been released; add another.

    artifacts    a model: some tensors, whatever files hold them. One without files is only known of, as a parent
    identities   what names an artifact's content: quick (core/hashing.py), sha256 (of a file), content (tensors)
    files        where it lies; `stamp` is device:inode:size:mtime_ns, which changes when the file does
    hashes       what reading a file whole gave, by stamp, so that nothing is read twice
    activities   what was done, with the recipe; edges say which artifacts went in and which came out (published: none)
    search       the words by which an artifact is found (FTS5)

`origin` says who wrote a row: ``header`` (the file), ``sidecar`` (a file beside it), ``hub`` (what one says of it) or
``user``. Scanning or asking again renews the first three and never touches the last.
"""

from __future__ import annotations

_FIRST = """
CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL COLLATE NOCASE,
    named INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL DEFAULT '',
    family TEXT NOT NULL DEFAULT '',
    format TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL DEFAULT 0,
    added REAL NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX artifacts_name ON artifacts (name);
CREATE INDEX artifacts_added ON artifacts (added);
CREATE TABLE identities (
    scheme TEXT NOT NULL,
    value TEXT NOT NULL,
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    PRIMARY KEY (scheme, value)
) WITHOUT ROWID;
CREATE INDEX identities_artifact ON identities (artifact);
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    size INTEGER NOT NULL,
    stamp TEXT NOT NULL,
    quick_id TEXT NOT NULL,
    sample_id TEXT NOT NULL,
    recipe_hash TEXT NOT NULL DEFAULT '',
    sha256 TEXT,
    content_id TEXT,
    stored INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX files_artifact ON files (artifact);
CREATE TABLE hashes (
    stamp TEXT PRIMARY KEY,
    quick_id TEXT NOT NULL,
    sha256 TEXT,
    content_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE sources (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    hub TEXT NOT NULL,
    reference TEXT NOT NULL,
    revision TEXT NOT NULL DEFAULT '',
    url TEXT NOT NULL DEFAULT '',
    origin TEXT NOT NULL,
    PRIMARY KEY (artifact, hub, reference)
) WITHOUT ROWID;
CREATE TABLE triggers (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    word TEXT NOT NULL,
    origin TEXT NOT NULL,
    PRIMARY KEY (artifact, word)
) WITHOUT ROWID;
CREATE TABLE tags (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    tag TEXT NOT NULL COLLATE NOCASE,
    origin TEXT NOT NULL,
    PRIMARY KEY (artifact, tag)
) WITHOUT ROWID;
CREATE TABLE notes (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    origin TEXT NOT NULL,
    PRIMARY KEY (artifact, text)
) WITHOUT ROWID;
CREATE TABLE licences (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    licence TEXT NOT NULL,
    url TEXT NOT NULL DEFAULT '',
    origin TEXT NOT NULL,
    PRIMARY KEY (artifact, licence)
) WITHOUT ROWID;
CREATE TABLE activities (
    id INTEGER PRIMARY KEY,
    verb TEXT NOT NULL,
    recipe TEXT NOT NULL,
    recipe_hash TEXT NOT NULL,
    version TEXT NOT NULL DEFAULT '',
    ended REAL
);
CREATE INDEX activities_recipe ON activities (recipe_hash);
CREATE TABLE edges (
    activity INTEGER NOT NULL REFERENCES activities (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    strength REAL,
    PRIMARY KEY (activity, position)
) WITHOUT ROWID;
CREATE INDEX edges_artifact ON edges (artifact);
CREATE TABLE roots (
    path TEXT PRIMARY KEY,
    program TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE VIRTUAL TABLE search USING fts5 (words, prefix = '2 3');
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)


def statements(step: str) -> list[str]:
    """The statements of a step."""
    return [statement.strip() for statement in step.split(";\n") if statement.strip()]
