"""What must hold in a store of jobs at any moment: reads all of it."""

import sqlite3

from iris_wsgi.patterns.asynchronous.job import STATES, JobStore
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

# Each gives rows that must not be.
SQL_VIOLATIONS = {
    "job {} has no content": "SELECT id FROM job LEFT JOIN content USING (seq) WHERE body IS NULL",
    "content {} has no job": "SELECT seq FROM content LEFT JOIN job USING (seq) WHERE id IS NULL",
    "the number of {} jobs is wrong": """
        SELECT state FROM tally WHERE jobs != (SELECT count(*) FROM job WHERE job.state = tally.state)""",
    "job {} is {}, due {}, {} attempts": """
        SELECT id, state, due, attempts FROM job WHERE state NOT IN (SELECT state FROM tally) OR CASE state
        WHEN 'queued' THEN (due IS NULL) != (attempts = 0) WHEN 'running' THEN due IS NULL OR attempts = 0 ELSE due END""",
    "job {} is {}, finished {}": """
        SELECT id, state, finished FROM job WHERE (finished IS NULL) != (state IN ('queued', 'running'))
        OR (result IS NULL) != (state != 'succeeded') OR (state = 'failed' AND error IS NULL)""",
    "job {} is there and gone": "SELECT id FROM job JOIN gone USING (id)",
}

REDIS_VIOLATIONS = """
local wrong, entries = {}, {}
local function say(...) table.insert(wrong, table.concat({...}, ' ')) end
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
        if own ~= state then say('job', id, 'is among the', state, 'and says', tostring(own)) end
        if not body then say('job', id, 'has no body') end
        if active ~= not finished or done ~= not not result then say('job', id, 'is', state, 'with the wrong parts') end
        if state == 'failed' and not reason then say('job', id, 'failed without an error') end
        if active ~= (entries[id] ~= nil and entries[id] == entry) then say('job', id, 'is', state, 'with the wrong entry') end
        local begun = active and tonumber(attempts) > 0
        if begun ~= not not leased then say('job', id, 'is', state, 'after', attempts, 'attempts') end
        if not not leased ~= (pending[entry] or false) then say('job', id, 'is pending, or not, against what is due') end
        if call('ZSCORE', key('gone'), id) then say('job', id, 'is there and gone') end
        entries[id] = nil
    end
end
for id in pairs(entries) do say('entry of no job', id) end
if due ~= call('ZCARD', key('due')) then say('something is due that is no job') end
for _, id in ipairs(call('HVALS', key('keys'))) do
    if call('EXISTS', job(id)) == 0 then say('a key has the job', id, 'that is not there') end
end
local records = #call('KEYS', key('job:*'))
if records ~= jobs then say(records, 'records are there of', jobs, 'jobs') end
return wrong
"""


def invariant_violations(store: JobStore) -> list[str]:
    """What is not as it must be, a line each."""
    if isinstance(store, SqliteJobStore):
        return sqlite_violations(store)
    store.scripts["check"] = store.register(REDIS_VIOLATIONS)
    return store.run("check", *STATES, parse=lambda told: [line.decode() for line in told])


def sqlite_violations(store: SqliteJobStore) -> list[str]:
    with store.database.read() as db:
        # In one transaction, so that all of it is of one moment.
        db.execute("BEGIN")
        try:
            found = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
            return found + [text.format(*row) for text, query in SQL_VIOLATIONS.items() for row in db.execute(query)]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        finally:
            db.execute("ROLLBACK")
