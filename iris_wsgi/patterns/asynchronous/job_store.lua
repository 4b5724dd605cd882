-- Scripts of the Redis job store. Redis runs each script atomically.
--
-- A line "--- name" starts a section. `shared` is prepended to each of the other sections, which are one script each.
-- The arguments of a script start with: now ('' for the clock of Redis), keep, keep_failed, remember (seconds).
--
-- Keys, all in one slot of a cluster because of the hash tag {iris}:
-- - {iris}:stream: one entry for each queued or running job; the consumer group delivers new entries in order
-- - {iris}:job:ID: hash with the fields of one job
-- - {iris}:STATE: sorted set, scored by the time of entering the state; for counts, ages, and expiry
-- - {iris}:due: sorted set with the end of the lease, or the time of the next attempt
-- - {iris}:keys: hash from Idempotency-Key to job id
-- - {iris}:gone: sorted set of expired ids, scored by the time at which the store forgets them
--
-- An entry stays pending in the group until its job is done; then it is deleted. Claims find started jobs in `due`, ordered by
-- time. XAUTOCLAIM would scan all pending entries, with one idle time for all of them instead of a lease for each.

--- shared
local stream, group = KEYS[1], 'workers'
local call = redis.call
local now = tonumber(ARGV[1])
if not now then
    -- The clock of Redis: the clocks of the machines need not agree.
    local t = call('TIME')
    now = t[1] + t[2] / 1000000
end
local keep, keep_failed, remember = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function text(number) return string.format('%.6f', number) end
local function key(name) return '{iris}:' .. name end
local function job(id) return key('job:' .. id) end
local function kept(state) return state == 'failed' and keep_failed or keep end

-- A Redis without free memory rejects commands that may allocate, unless the script has already written. Scripts that call this
-- first can still finish and remove jobs, while `submit` is rejected.
local function allow_when_full() call('HDEL', key('keys'), '') end

local function record(id)
    return call('HMGET', job(id), 'id', 'state', 'attempts', 'created', 'started', 'finished',
        'body', 'result', 'error', 'note', 'lease')
end

local function remove_entry(id)
    local entry = call('HGET', job(id), 'entry')
    if entry then
        call('XACK', stream, group, entry)
        call('XDEL', stream, entry)
    end
end

-- A Redis that evicts keys, or was restored in part, may lack any key. The remains of a job become a dead letter.
local function lose(id, since)
    remove_entry(id)
    for _, state in ipairs({'due', 'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
        call('ZREM', key(state), id)
    end
    call('HDEL', job(id), 'result', 'entry')
    call('HSETNX', job(id), 'created', text(since or now))
    call('HSETNX', job(id), 'attempts', 0)
    call('HSETNX', job(id), 'lease', 0)
    call('HSETNX', job(id), 'body', '')
    call('HSET', job(id), 'id', id, 'state', 'failed', 'finished', text(now),
        'error', 'The store lost part of this job; submit it again.')
    call('ZADD', key('failed'), text(now), id)
end

local function is_complete(id)
    local fields = call('HMGET', job(id), 'id', 'state', 'attempts', 'created', 'body', 'lease')
    for i = 1, 6 do if not fields[i] then return false end end
    return true
end

-- Returns the state of a job, or 'gone' or 'unknown'.
local function find(id)
    local state, finished = unpack(call('HMGET', job(id), 'state', 'finished'))
    if not state or not is_complete(id) then
        local since
        for _, name in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
            since = since or call('ZSCORE', key(name), id)
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

local function ensure_group()
    if call('EXISTS', stream) == 0 then call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM') end
end

local function enqueue(id)
    ensure_group()
    call('HSET', job(id), 'entry', call('XADD', stream, '*', 'id', id))
end

local function finish(id, state)
    remove_entry(id)
    call('ZREM', key('due'), id)
    move(id, state)
    call('HSET', job(id), 'finished', text(now))
end

local function holds_lease(id, lease)
    local state, current = unpack(call('HMGET', job(id), 'state', 'lease'))
    local due = call('ZSCORE', key('due'), id)
    return state == 'running' and current == lease and due and tonumber(due) > now and is_complete(id)
end

--- submit
local id, body, note, name, digest, limit = unpack(ARGV, 5)
if name ~= '' then
    local first = call('HGET', key('keys'), name)
    local state = first and find(first)
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

--- state
return {find(ARGV[5])}

--- get
local state = find(ARGV[5])
if state == 'gone' or state == 'unknown' then return {state} end
return {state, record(ARGV[5])}

--- cancel
allow_when_full()
local id = ARGV[5]
local state = find(id)
if state == 'gone' or state == 'unknown' then return {state} end
if state == 'queued' or state == 'running' then
    finish(id, 'cancelled')
    call('HDEL', job(id), 'error')
end
return {'cancelled', record(id)}

--- claim
allow_when_full()
local worker, max_jobs, lease_seconds, max_attempts, lost_error = unpack(ARGV, 5)
max_jobs, lease_seconds, max_attempts = tonumber(max_jobs), tonumber(lease_seconds), tonumber(max_attempts)
local taken = {}

-- Repairs jobs that no claim would find because a key was lost. These are queued jobs that are neither in the stream nor due, and
-- running jobs without the end of their lease. The three counts agree unless Redis lost something.
local function repair()
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
        -- The worker of the job extends this lease by its next heartbeat.
        call('ZADD', key('due'), 'NX', text(now + lease_seconds), id)
    end
    for _, id in ipairs(call('ZRANGE', key('queued'), 0, -1)) do
        if not call('ZSCORE', key('due'), id) then
            local entry, attempts = unpack(call('HMGET', job(id), 'entry', 'attempts'))
            if not is_complete(id) then
                lose(id, call('ZSCORE', key('queued'), id))
            elseif tonumber(attempts) > 0 then
                call('ZADD', key('due'), text(now), id)
            elseif not entry or #call('XRANGE', stream, entry, entry) == 0 then
                enqueue(id)
            end
        end
    end
end

local function take(id, lost)
    call('HINCRBY', job(id), 'attempts', 1)
    call('HINCRBY', job(id), 'lease', 1)
    call('HSET', job(id), 'started', text(now))
    move(id, 'running')
    call('ZADD', key('due'), text(now + lease_seconds), id)
    table.insert(taken, {lost, record(id)})
end

local function retake(id, lost)
    local entry = call('HGET', job(id), 'entry')
    if entry then call('XCLAIM', stream, group, worker, 0, entry) end
    take(id, lost)
end

ensure_group()
repair()
for _, id in ipairs(call('ZRANGEBYSCORE', key('due'), '-inf', text(now), 'LIMIT', 0, max_jobs)) do
    local state, attempts = unpack(call('HMGET', job(id), 'state', 'attempts'))
    local lost = state == 'running'
    if (state ~= 'running' and state ~= 'queued') or not is_complete(id) then
        if state or call('ZSCORE', key('queued'), id) or call('ZSCORE', key('running'), id) then lose(id) end
        call('ZREM', key('due'), id)
    elseif tonumber(attempts) >= max_attempts then
        if lost then call('HSET', job(id), 'error', (string.gsub(lost_error, 'COUNT', attempts))) end
        finish(id, 'failed')
    elseif not lost then
        retake(id, 0)
    elseif #taken > 0 then
        return taken
    else
        retake(id, 1)
        return taken
    end
end
if #taken < max_jobs then
    local new = call('XREADGROUP', 'GROUP', group, worker, 'COUNT', max_jobs - #taken, 'STREAMS', stream, '>')
    for _, entry in ipairs(new and new[1][2] or {}) do
        local id = entry[2][2]
        local state = call('HGET', job(id), 'state')
        if state == 'queued' and is_complete(id) then
            take(id, 0)
        else
            -- The job of this entry is missing or done.
            call('XACK', stream, group, entry[1])
            call('XDEL', stream, entry[1])
            find(id)
        end
    end
end
return taken

--- heartbeat
allow_when_full()
local extended = {}
for i = 6, #ARGV, 2 do
    local held = holds_lease(ARGV[i], ARGV[i + 1])
    if held then call('ZADD', key('due'), text(now + tonumber(ARGV[5])), ARGV[i]) end
    table.insert(extended, held and 1 or 0)
end
return extended

--- finish
allow_when_full()
local written = {}
for i = 5, #ARGV, 3 do
    local id, lease = ARGV[i], ARGV[i + 1]
    if holds_lease(id, lease) then
        finish(id, 'succeeded')
        call('HDEL', job(id), 'error')
        call('HSET', job(id), 'result', ARGV[i + 2])
    end
    local state, current = unpack(call('HMGET', job(id), 'state', 'lease'))
    table.insert(written, state == 'succeeded' and current == lease and 1 or 0)
end
return written

--- fail
allow_when_full()
local id, lease, reason, retry_at = unpack(ARGV, 5)
if not holds_lease(id, lease) then return 0 end
call('HSET', job(id), 'error', reason)
if retry_at == '' then
    finish(id, 'failed')
else
    move(id, 'queued')
    call('ZADD', key('due'), retry_at, id)
end
return 1

--- redrive
allow_when_full()
local room, max_jobs = tonumber(ARGV[5]) - call('ZCARD', key('queued')), tonumber(ARGV[6])
local ids, moved = {unpack(ARGV, 8)}, 0
if ARGV[7] == 'all' then
    ids = call('ZRANGEBYSCORE', key('failed'), '(' .. text(now - keep_failed), '+inf', 'LIMIT', 0, max_jobs)
end
for i = 1, math.min(#ids, max_jobs) do
    if moved < room and find(ids[i]) == 'failed' then
        move(ids[i], 'queued')
        call('HSET', job(ids[i]), 'attempts', 0)
        call('HDEL', job(ids[i]), 'started', 'finished', 'error')
        enqueue(ids[i])
        moved = moved + 1
    end
end
return moved

--- counts
local oldest = call('ZRANGE', key('queued'), 0, 0, 'WITHSCORES')[2]
local counts = {oldest and text(math.max(0, now - oldest)) or '0'}
for i = 5, #ARGV do table.insert(counts, call('ZCARD', key(ARGV[i]))) end
return counts

--- sweep
allow_when_full()
local max_jobs, removed = tonumber(ARGV[5]), 0
for _, state in ipairs({'succeeded', 'failed', 'cancelled'}) do
    for _, id in ipairs(call('ZRANGEBYSCORE', key(state), '-inf', text(now - kept(state)), 'LIMIT', 0, max_jobs - removed)) do
        local name = call('HGET', job(id), 'key')
        if name and call('HGET', key('keys'), name) == id then call('HDEL', key('keys'), name) end
        call('ZADD', key('gone'), text(call('ZSCORE', key(state), id) + kept(state) + remember), id)
        call('ZREM', key(state), id)
        call('UNLINK', job(id))
        removed = removed + 1
    end
end
for _, id in ipairs(call('ZRANGEBYSCORE', key('gone'), '-inf', text(now), 'LIMIT', 0, max_jobs)) do
    call('ZREM', key('gone'), id)
    removed = removed + 1
end
-- Remains of jobs whose hashes are lost: their entries, which are the oldest pending ones, and their idempotency keys.
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
-- Each worker process has a new consumer name. The group forgets consumers without jobs that were idle for an hour.
if call('EXISTS', stream) == 1 then
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
        local fields = {}
        for i = 1, #consumer, 2 do fields[consumer[i]] = consumer[i + 1] end
        if fields.pending == 0 and fields.idle > 3600000 then call('XGROUP', 'DELCONSUMER', stream, group, fields.name) end
    end
end
return removed
