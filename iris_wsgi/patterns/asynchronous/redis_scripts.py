"""What the Redis store does in one step each: Lua that the server runs, so that no half of a step is ever seen or left behind."""

# Keys, all in the one slot of a cluster that their tag {iris} gives:
#   {iris}:stream          entries of jobs that are queued or running; its consumer group gives new ones, in order
#   {iris}:job:ID          a hash, what there is to know of one job
#   {iris}:queued, …       a sorted set for each state, by the time when a job came into it: counts, ages and expiry
#   {iris}:due             a sorted set: the end of a lease, or the time of the next attempt
#   {iris}:keys            a hash from Idempotency-Key to job
#   {iris}:gone            a sorted set of ids that have expired, by until when that is told
#
# An entry stays pending in the group until its job is done, and is deleted then: a job that was begun is found in `due`, in
# order of time, by whoever claims next. XAUTOCLAIM would go through all that is running to find what is over, by one idle time
# for all of it, that of who asks and not of who promised.
PRELUDE = """
local stream, group = KEYS[1], 'workers'
local call = redis.call
local now = tonumber(ARGV[1])
if not now then
    -- The server's clock, so that machines need not agree on theirs.
    local t = call('TIME')
    now = t[1] + t[2] / 1000000
end
local keep, keep_failed, remember = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function text(number) return string.format('%.6f', number) end
local function key(name) return '{iris}:' .. name end
local function job(id) return key('job:' .. id) end
local function kept(state) return state == 'failed' and keep_failed or keep end

local function record(id)
    return call('HMGET', job(id), 'id', 'state', 'attempts', 'created', 'started', 'finished',
        'body', 'result', 'error', 'note', 'lease')
end

-- A Redis that evicts, or was restored in part, may lack any key. What is left of a job becomes a dead letter.
local function lose(id, since)
    local entry = call('HGET', job(id), 'entry')
    if entry then
        call('XACK', stream, group, entry)
        call('XDEL', stream, entry)
    end
    for _, state in ipairs({'due', 'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
        call('ZREM', key(state), id)
    end
    call('HDEL', job(id), 'result', 'entry')
    call('HSETNX', job(id), 'created', text(since or now))
    call('HSETNX', job(id), 'attempts', 0)
    call('HSETNX', job(id), 'lease', 0)
    call('HSETNX', job(id), 'body', '')
    call('HSET', job(id), 'id', id, 'state', 'failed', 'finished', text(now),
        'error', 'the store has lost a part of this job; hand it in again')
    call('ZADD', key('failed'), text(now), id)
end

local function whole(id)
    local parts = call('HMGET', job(id), 'id', 'state', 'attempts', 'created', 'body', 'lease')
    for i = 1, 6 do if not parts[i] then return false end end
    return true
end

local function found(id)
    local state, finished = unpack(call('HMGET', job(id), 'state', 'finished'))
    if not state or not whole(id) then
        local since
        for _, one in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
            since = since or call('ZSCORE', key(one), id)
        end
        if since or state then
            lose(id, since)
            return 'failed'
        end
        return call('ZSCORE', key('gone'), id) and 'gone' or 'unknown'
    end
    if finished and tonumber(finished) + kept(state) <= now then return 'gone' end
    return state
end

local function move(id, state)
    call('ZREM', key(call('HGET', job(id), 'state')), id)
    call('HSET', job(id), 'state', state)
    call('ZADD', key(state), text(now), id)
end

local function need_group()
    if call('EXISTS', stream) == 0 then call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM') end
end

local function enqueue(id)
    need_group()
    call('HSET', job(id), 'entry', call('XADD', stream, '*', 'id', id))
end

local function finish(id, state)
    local entry = call('HGET', job(id), 'entry')
    if entry then
        call('XACK', stream, group, entry)
        call('XDEL', stream, entry)
    end
    call('ZREM', key('due'), id)
    move(id, state)
    call('HSET', job(id), 'finished', text(now))
end

local function held(id, lease)
    local state, own = unpack(call('HMGET', job(id), 'state', 'lease'))
    local due = call('ZSCORE', key('due'), id)
    return state == 'running' and own == lease and due and tonumber(due) > now and whole(id)
end
"""

SUBMIT = """
local id, body, note, name, digest, limit = unpack(ARGV, 5)
if name ~= '' then
    local first = call('HGET', key('keys'), name)
    local state = first and found(first)
    if first and state ~= 'gone' and state ~= 'unknown' then
        if call('HGET', job(first), 'digest') ~= digest then return {'conflict'} end
        return {state, record(first)}
    end
end
if call('ZCARD', key('queued')) >= tonumber(limit) then return {'full'} end
call('HSET', job(id), 'id', id, 'state', 'queued', 'attempts', 0, 'lease', 0, 'created', text(now), 'body', body)
if note ~= '' then call('HSET', job(id), 'note', note) end
if name ~= '' then
    call('HSET', job(id), 'key', name, 'digest', digest)
    call('HSET', key('keys'), name, id)
end
call('ZADD', key('queued'), text(now), id)
enqueue(id)
return {'queued', record(id)}
"""

STATE = """
return {found(ARGV[5])}
"""

GET = """
local state = found(ARGV[5])
if state == 'gone' or state == 'unknown' then return {state} end
return {state, record(ARGV[5])}
"""

CANCEL = """
local id = ARGV[5]
local state = found(id)
if state == 'gone' or state == 'unknown' then return {state} end
if state == 'queued' or state == 'running' then
    finish(id, 'cancelled')
    call('HDEL', job(id), 'error')
end
return {'cancelled', record(id)}
"""

# Jobs that nobody would get any more, as a key was lost: queued ones whose entry is not in the stream, or that are not due, and
# running ones without the end of their lease. The three counts agree unless something was lost.
MEND = """
local lease_seconds = tonumber(ARGV[7])
local function mend()
    local pending, entries = call('XPENDING', stream, group)[1], call('XLEN', stream)
    local active = call('ZCARD', key('queued')) + call('ZCARD', key('running'))
    if entries <= active and entries - pending == active - call('ZCARD', key('due')) then return end
    local function restore(id)
        local state, since = unpack(call('HMGET', job(id), 'state', 'created'))
        if state == 'queued' or state == 'running' then call('ZADD', key(state), 'NX', since or text(now), id) end
    end
    for _, id in ipairs(call('ZRANGE', key('due'), 0, -1)) do restore(id) end
    for _, entry in ipairs(call('XRANGE', stream, '-', '+')) do restore(entry[2][2]) end
    for _, id in ipairs(call('ZRANGE', key('running'), 0, -1)) do
        -- Whoever has the job keeps it by its next heartbeat.
        call('ZADD', key('due'), 'NX', text(now + lease_seconds), id)
    end
    for _, id in ipairs(call('ZRANGE', key('queued'), 0, -1)) do
        if not call('ZSCORE', key('due'), id) then
            local entry, attempts = unpack(call('HMGET', job(id), 'entry', 'attempts'))
            if not whole(id) then
                lose(id, call('ZSCORE', key('queued'), id))
            elseif tonumber(attempts) > 0 then
                call('ZADD', key('due'), text(now), id)
            elseif not entry or #call('XRANGE', stream, entry, entry) == 0 then
                enqueue(id)
            end
        end
    end
end
"""

CLAIM = """
local worker, most, attempts, given_up = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[8]), ARGV[9]
local taken = {}
local function take(id, lost)
    call('HINCRBY', job(id), 'attempts', 1)
    call('HINCRBY', job(id), 'lease', 1)
    call('HSET', job(id), 'started', text(now))
    move(id, 'running')
    call('ZADD', key('due'), text(now + lease_seconds), id)
    table.insert(taken, {lost, record(id)})
end
local function again(id, lost)
    local entry = call('HGET', job(id), 'entry')
    if entry then call('XCLAIM', stream, group, worker, 0, entry) end
    take(id, lost)
end
need_group()
mend()
for _, id in ipairs(call('ZRANGEBYSCORE', key('due'), '-inf', text(now), 'LIMIT', 0, most)) do
    local state, tried = unpack(call('HMGET', job(id), 'state', 'attempts'))
    local lost = state == 'running'
    if (state ~= 'running' and state ~= 'queued') or not whole(id) then
        if state or call('ZSCORE', key('queued'), id) or call('ZSCORE', key('running'), id) then lose(id) end
        call('ZREM', key('due'), id)
    elseif tonumber(tried) >= attempts then
        if lost then call('HSET', job(id), 'error', (string.gsub(given_up, 'COUNT', tried))) end
        finish(id, 'failed')
    elseif not lost then
        again(id, 0)
    elseif #taken > 0 then
        return taken
    else
        again(id, 1)
        return taken
    end
end
if #taken < most then
    local new = call('XREADGROUP', 'GROUP', group, worker, 'COUNT', most - #taken, 'STREAMS', stream, '>')
    for _, entry in ipairs(new and new[1][2] or {}) do
        local id = entry[2][2]
        local state = call('HGET', job(id), 'state')
        if state == 'queued' and whole(id) then
            take(id, 0)
        else
            -- An entry of no job, or of one that is over.
            call('XACK', stream, group, entry[1])
            call('XDEL', stream, entry[1])
            found(id)
        end
    end
end
return taken
"""

HEARTBEAT = """
local told = {}
for i = 6, #ARGV, 2 do
    local ours = held(ARGV[i], ARGV[i + 1])
    if ours then call('ZADD', key('due'), text(now + tonumber(ARGV[5])), ARGV[i]) end
    table.insert(told, ours and 1 or 0)
end
return told
"""

FINISH = """
local told = {}
for i = 5, #ARGV, 3 do
    local id, lease = ARGV[i], ARGV[i + 1]
    if held(id, lease) then
        finish(id, 'succeeded')
        call('HDEL', job(id), 'error')
        call('HSET', job(id), 'result', ARGV[i + 2])
    end
    local state, own = unpack(call('HMGET', job(id), 'state', 'lease'))
    table.insert(told, state == 'succeeded' and own == lease and 1 or 0)
end
return told
"""

FAIL = """
local id, lease, reason, retry_at = unpack(ARGV, 5)
if not held(id, lease) then return 0 end
call('HSET', job(id), 'error', reason)
if retry_at == '' then
    finish(id, 'failed')
else
    move(id, 'queued')
    call('ZADD', key('due'), retry_at, id)
end
return 1
"""

REDRIVE = """
local room, most = tonumber(ARGV[5]) - call('ZCARD', key('queued')), tonumber(ARGV[6])
local ids, moved = {unpack(ARGV, 8)}, 0
if ARGV[7] == 'all' then
    ids = call('ZRANGEBYSCORE', key('failed'), '(' .. text(now - keep_failed), '+inf', 'LIMIT', 0, most)
end
for i = 1, math.min(#ids, most) do
    if moved < room and found(ids[i]) == 'failed' then
        move(ids[i], 'queued')
        call('HSET', job(ids[i]), 'attempts', 0)
        call('HDEL', job(ids[i]), 'started', 'finished', 'error')
        enqueue(ids[i])
        moved = moved + 1
    end
end
return moved
"""

COUNTS = """
local oldest = call('ZRANGE', key('queued'), 0, 0, 'WITHSCORES')[2]
local told = {oldest and text(math.max(0, now - oldest)) or '0'}
for i = 5, #ARGV do table.insert(told, call('ZCARD', key(ARGV[i]))) end
return told
"""

SWEEP = """
local most, removed = tonumber(ARGV[5]), 0
for _, state in ipairs({'succeeded', 'failed', 'cancelled'}) do
    for _, id in ipairs(call('ZRANGEBYSCORE', key(state), '-inf', text(now - kept(state)), 'LIMIT', 0, most - removed)) do
        local name = call('HGET', job(id), 'key')
        if name and call('HGET', key('keys'), name) == id then call('HDEL', key('keys'), name) end
        call('ZADD', key('gone'), text(call('ZSCORE', key(state), id) + kept(state) + remember), id)
        call('ZREM', key(state), id)
        call('UNLINK', job(id))
        removed = removed + 1
    end
end
for _, id in ipairs(call('ZRANGEBYSCORE', key('gone'), '-inf', text(now), 'LIMIT', 0, most)) do
    call('ZREM', key('gone'), id)
    removed = removed + 1
end
-- What is left of jobs whose records are lost: their entries, which are the oldest that are pending, and their keys.
if call('EXISTS', stream) == 1 then
    for _, pending in ipairs(call('XPENDING', stream, group, '-', '+', 20)) do
        local entry = call('XRANGE', stream, pending[1], pending[1])[1]
        if not entry or call('HGET', job(entry[2][2]), 'entry') ~= entry[1] then
            call('XACK', stream, group, pending[1])
            call('XDEL', stream, pending[1])
        end
    end
end
local names = redis.pcall('HRANDFIELD', key('keys'), 20, 'WITHVALUES')
for i = 1, names.err and 0 or #names, 2 do
    if call('EXISTS', job(names[i + 1])) == 0 then call('HDEL', key('keys'), names[i]) end
end
-- Workers come and go under new names; the group forgets those without jobs that have not asked for an hour.
if call('EXISTS', stream) == 1 then
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
        local fields = {}
        for i = 1, #consumer, 2 do fields[consumer[i]] = consumer[i + 1] end
        if fields.pending == 0 and fields.idle > 3600000 then call('XGROUP', 'DELCONSUMER', stream, group, fields.name) end
    end
end
return removed
"""

# A Redis that is full refuses what may take memory, unless the script has written before: jobs that are there go on, and are
# removed in the end, while no new ones are taken.
ALSO_WHEN_FULL = """
call('HDEL', key('keys'), '')
"""
STEPS = {
    "submit": PRELUDE + SUBMIT,
    "state": PRELUDE + STATE,
    "get": PRELUDE + GET,
    "cancel": PRELUDE + ALSO_WHEN_FULL + CANCEL,
    "claim": PRELUDE + ALSO_WHEN_FULL + MEND + CLAIM,
    "heartbeat": PRELUDE + ALSO_WHEN_FULL + HEARTBEAT,
    "finish": PRELUDE + ALSO_WHEN_FULL + FINISH,
    "fail": PRELUDE + ALSO_WHEN_FULL + FAIL,
    "redrive": PRELUDE + ALSO_WHEN_FULL + REDRIVE,
    "counts": PRELUDE + COUNTS,
    "sweep": PRELUDE + ALSO_WHEN_FULL + SWEEP,
}
