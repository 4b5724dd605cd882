"""The tables of the SQLite store, and what must hold in them."""

# `since` is when a job came into its state. `due` is when somebody else may have it: the end of its lease, or the time of
# its next attempt; new jobs have none, nor have those that are done. What is large is apart, or each heartbeat would write it
# again. Triggers count jobs by state, as counting rows would take longer the more there are.
SCRIPT = """
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    since REAL NOT NULL,
    due REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    lease INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    key TEXT,
    digest BLOB,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    error TEXT,
    result BLOB
) STRICT;

CREATE TABLE content (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, note BLOB) STRICT;

CREATE TABLE gone (id TEXT PRIMARY KEY, until REAL NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX job_key ON job (key) WHERE key IS NOT NULL;

CREATE INDEX job_state ON job (state, since);

CREATE INDEX job_due ON job (due) WHERE due IS NOT NULL;

CREATE INDEX job_new ON job (since, seq) WHERE state = 'queued' AND due IS NULL;

CREATE INDEX gone_until ON gone (until);

CREATE TRIGGER job_comes AFTER INSERT ON job BEGIN UPDATE tally SET jobs = jobs + 1 WHERE state = new.state; END;

CREATE TRIGGER job_goes AFTER DELETE ON job BEGIN UPDATE tally SET jobs = jobs - 1 WHERE state = old.state; END;

CREATE TRIGGER job_moves AFTER UPDATE OF state ON job WHEN old.state != new.state BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
END;

INSERT INTO tally VALUES ('queued', 0), ('running', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0)
"""
APPLICATION, VERSION = 0x69726A6F, 1
LATEST = "SELECT max(since) FROM (SELECT max(since) AS since FROM job GROUP BY state)"

JOB = "SELECT id, state, attempts, created, started, finished, body, result, error, note FROM job JOIN content USING (seq)"
HELD = "id = ? AND lease = ? AND state = 'running' AND due > ?"
