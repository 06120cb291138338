-- The catalogue: which segments the ledger consists of, which inputs it has counted, and what a
-- correlation step left open. All three change in one transaction, which is what "exactly once" means here.
-- user_version tells the form of these tables.

-- A segment is one Parquet file. Live while removed_unix_s is null; a removed one keeps its file for a
-- while, for readers that still have it in their list.
create table if not exists segment (
    id integer primary key autoincrement,
    kind text not null,              -- exchanges, usage, shapes, samples or completeness
    grain_s integer not null,        -- 0: rows as they came; else 60, or 900 and 86400 in rollups of usage and shapes
    day_unix_s integer not null,     -- the UTC day that all its rows lie in
    name text not null unique,       -- path below the ledger's folder
    row_count integer not null,
    bytes integer not null,
    crc32 integer not null,          -- of the file
    calls integer not null,          -- control sums of the rows, 0 where the kind has none
    wire_bytes integer not null,
    rolled integer not null,         -- 1: a minute segment whose sums also stand in its day's rollups
    added_unix_s integer not null,
    removed_unix_s integer           -- null: live
) strict;

create index if not exists segment_by_day on segment (kind, day_unix_s) where removed_unix_s is null;

-- Inputs whose outputs are in the ledger.
create table if not exists consumed (
    input text primary key,
    step integer not null,
    consumed_unix_s integer not null
) strict, without rowid;

-- What the last step left open: Arrow IPC streams by name.
create table if not exists carry (
    name text primary key,
    batch blob not null
) strict;

-- Operations that the documents have or once had. last_unix_s: null while they have it, else when it was missed.
create table if not exists documented (
    api text not null,
    method text not null,
    path_template text not null,     -- with its base path
    operation_id text not null,
    spec text not null,              -- the file that has or had it, and where in it
    pointer text not null,
    first_unix_s integer not null,
    last_unix_s integer,
    primary key (api, method, path_template)
) strict, without rowid;

-- Number of the last step; names of new segments derive from it.
create table if not exists counter (
    name text primary key,
    value integer not null
) strict;

insert or ignore into counter values ('step', 0);
