"""Invariants of a job store. The check reads the whole store and works at any moment."""

import sqlite3

from iris_wsgi.patterns.asynchronous.job import STATES, JobStore
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

# Each query returns the rows that violate an invariant.
SQL_VIOLATIONS = {
    "job {} has no content": "SELECT id FROM job LEFT JOIN content USING (seq) WHERE body IS NULL",
    "content {} has no job": "SELECT seq FROM content LEFT JOIN job USING (seq) WHERE id IS NULL",
    "the number of {} jobs is incorrect": """
        SELECT state FROM tally WHERE jobs != (SELECT count(*) FROM job WHERE job.state = tally.state)""",
    "job {} is {}, due {}, {} attempts": """
        SELECT id, state, due, attempts FROM job WHERE state NOT IN (SELECT state FROM tally) OR CASE state
        WHEN 'queued' THEN (due IS NULL) != (attempts = 0) WHEN 'running' THEN due IS NULL OR attempts = 0 ELSE due END""",
    "job {} is {}, finished {}": """
        SELECT id, state, finished FROM job WHERE (finished IS NULL) != (state IN ('queued', 'running'))
        OR (result IS NULL) != (state != 'succeeded') OR (state = 'failed' AND error IS NULL)""",
    "job {} exists and is also marked as gone": "SELECT id FROM job JOIN gone USING (id)",
}

REDIS_VIOLATIONS = """
local violations, entries = {}, {}
local function say(...) table.insert(violations, table.concat({...}, ' ')) end
for _, entry in ipairs(call('XRANGE', stream, '-', '+')) do entries[entry[2][2]] = entry[1] end
local pending = {}
if call('EXISTS', stream) == 1 then
    for _, entry in ipairs(call('XPENDING', stream, group, '-', '+', 2147483647)) do pending[entry[1]] = true end
end
local jobs, due = 0, 0
for i = 5, #ARGV do
    local state = ARGV[i]
    local active, done = state == 'queued' or state == 'running', state == 'succeeded'
    for _, id in ipairs(call('ZRANGE', key(state), 0, -1)) do
        jobs = jobs + 1
        local own, attempts, finished, result, reason, entry, body =
            unpack(call('HMGET', job(id), 'state', 'attempts', 'finished', 'result', 'error', 'entry', 'body'))
        local leased = call('ZSCORE', key('due'), id)
        if leased then due = due + 1 end
        if own ~= state then say('job', id, 'is listed as', state, 'and its state is', tostring(own)) end
        if not body then say('job', id, 'has no body') end
        if active ~= not finished or done ~= not not result then say('job', id, 'is', state, 'with invalid fields') end
        if state == 'failed' and not reason then say('job', id, 'failed without an error') end
        if active ~= (entries[id] ~= nil and entries[id] == entry) then say('job', id, 'is', state, 'with an invalid entry') end
        local begun = active and tonumber(attempts) > 0
        if begun ~= not not leased then say('job', id, 'is', state, 'after', attempts, 'attempts') end
        if not not leased ~= (pending[entry] or false) then say('job', id, 'has a lease or a pending entry, but not both') end
        if call('ZSCORE', key('gone'), id) then say('job', id, 'exists and is also marked as gone') end
        entries[id] = nil
    end
end
for id in pairs(entries) do say('entry without a job', id) end
if due ~= call('ZCARD', key('due')) then say('a lease has no job') end
for _, id in ipairs(call('HVALS', key('keys'))) do
    if call('EXISTS', job(id)) == 0 then say('an idempotency key refers to the missing job', id) end
end
local records = #call('KEYS', key('job:*'))
if records ~= jobs then say('there are', records, 'records and', jobs, 'jobs') end
return violations
"""


def invariant_violations(store: JobStore) -> list[str]:
    """Returns one line for each violated invariant."""
    if isinstance(store, SqliteJobStore):
        return sqlite_violations(store)
    store.scripts["check"] = store.register(REDIS_VIOLATIONS)
    return store.run("check", *STATES, parse=lambda lines: [line.decode() for line in lines])


def sqlite_violations(store: SqliteJobStore) -> list[str]:
    with store.database.read() as db:
        # One transaction, so that all queries see the same state.
        db.execute("BEGIN")
        try:
            damage = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
            return damage + [text.format(*row) for text, query in SQL_VIOLATIONS.items() for row in db.execute(query)]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        finally:
            db.execute("ROLLBACK")
