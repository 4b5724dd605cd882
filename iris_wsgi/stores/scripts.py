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

local function found(id)
    local state, finished = unpack(call('HMGET', job(id), 'state', 'finished'))
    if not state then return call('ZSCORE', key('gone'), id) and 'gone' or 'unknown' end
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
    call('XACK', stream, group, entry)
    call('XDEL', stream, entry)
    call('ZREM', key('due'), id)
    move(id, state)
    call('HSET', job(id), 'finished', text(now))
end

local function held(id, lease)
    local state, own = unpack(call('HMGET', job(id), 'state', 'lease'))
    return state == 'running' and own == lease and tonumber(call('ZSCORE', key('due'), id)) > now
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

CLAIM = """
local worker, most, lease_seconds, attempts, given_up = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
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
    call('XCLAIM', stream, group, worker, 0, call('HGET', job(id), 'entry'))
    take(id, lost)
end
need_group()
for _, id in ipairs(call('ZRANGEBYSCORE', key('due'), '-inf', text(now), 'LIMIT', 0, most)) do
    local state, tried = unpack(call('HMGET', job(id), 'state', 'attempts'))
    local lost = state == 'running'
    if tonumber(tried) >= attempts then
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
    for _, entry in ipairs(new and new[1][2] or {}) do take(entry[2][2], 0) end
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
    "claim": PRELUDE + ALSO_WHEN_FULL + CLAIM,
    "heartbeat": PRELUDE + ALSO_WHEN_FULL + HEARTBEAT,
    "finish": PRELUDE + ALSO_WHEN_FULL + FINISH,
    "fail": PRELUDE + ALSO_WHEN_FULL + FAIL,
    "redrive": PRELUDE + ALSO_WHEN_FULL + REDRIVE,
    "counts": PRELUDE + COUNTS,
    "sweep": PRELUDE + ALSO_WHEN_FULL + SWEEP,
}
