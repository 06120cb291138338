--
-- SPDX-License-Identifier: Apache-2.0
--
-- The lines of one worker on their way to the receiver: numbered, in batches, bounded, each batch with
-- the same bytes however often it is sent.
--
-- Rules of this file:
-- - A line's number is taken whether or not the line is kept: what is dropped shows as a hole.
-- - A sealed batch never changes: its identity is (node, pid, start of this worker, batch number).
-- - One flush at a time; between failures it waits, longer each time; a line never waits for it.
-- - This module outlives a hot reload of the plugin, so that numbers go on.
--
local core   = require("apisix.core")
local sender = require("apisix.plugins.apicost-logger.sender")
local ngx          = ngx
local pcall        = pcall
local tostring     = tostring
local io_open      = io.open
local os_rename    = os.rename
local os_remove    = os.remove
local str_format   = string.format
local str_gsub     = string.gsub
local str_match    = string.match
local table_remove = table.remove
local math_min     = math.min
local timer_at     = ngx.timer.at

local MAX_BATCH_BYTES = 1048576  -- well below the receiver's bound of 8 MiB
local MAX_WAIT_S      = 15       -- between two tries while the receiver fails
local QUIET_S         = 30       -- the same complaint is logged once in so many seconds

local _M = {}

local line          -- the module `line`
local settings_of   -- gives the settings in force
local settings
local worker        -- {pid, started_ms, next, batch, dropped, failed, refused}; nil before the first line
local batch         -- what is being filled: {first, count, base_us, base_mono_ns, base_unix_ns}
local buf
local sealed = {}   -- batches waiting, oldest first: {head, body, name, lines}
local sealed_bytes = 0
local timer_set = false
local flushing = false
local failures = 0  -- in a row
local waiting = false   -- for the next try after a failure


local complaints = {}

-- An error for the log, without flooding it: what was left out is counted in the next one.
local function complain(kind, ...)
    local now = ngx.now()
    local last = complaints[kind]
    if last and now - last.at < QUIET_S then
        last.more = last.more + 1
        return
    end
    complaints[kind] = {at = now, more = 0}
    core.log.error("apicost-logger: ", last and last.more > 0 and "(" .. last.more .. " more) " or "", ...)
end


_M.complain = complain


function _M.configure(get_settings, line_module)
    settings_of, line = get_settings, line_module
    settings = nil
end


local function refresh()
    settings = settings_of()
    settings.node = settings.node or line.hostname()
end


local function start_worker()
    ngx.update_time()
    worker = {
        pid = ngx.worker.pid(), started_ms = str_format("%d", ngx.now() * 1000), next = 1, batch = 1,
        dropped = 0, failed = 0, refused = 0,
    }
    batch, buf, sealed, sealed_bytes = nil, line.new_buffer(), {}, 0
end


-- Close the batch being filled. Its header counts what was dropped until now.
local function seal()
    if not batch then
        return
    end
    local body = line.take(buf)
    local head = str_format('{"apicost":1,"node":%s,"worker":{"pid":%d,"started_unix_ms":%s},"batch":%d,'
        .. '"first":%d,"count":%d,"dropped":%d,"base_mono_ns":%s,"base_unix_ns":%s,"failed":%d,"refused":%d}\n',
        core.json.encode(settings.node), worker.pid, worker.started_ms, worker.batch,
        batch.first, batch.count, worker.dropped, batch.base_mono_ns, batch.base_unix_ns,
        worker.failed, worker.refused)
    local name = str_format("%s-%d-%s-%d.usage", (str_gsub(settings.node, "[^%w._-]", "_")), worker.pid,
                            worker.started_ms, worker.batch)
    sealed[#sealed + 1] = {head = head, body = body, name = name, lines = batch.count}
    sealed_bytes = sealed_bytes + #head + #body
    worker.batch = worker.batch + 1
    batch = nil
end


local function forget(index)
    local gone = table_remove(sealed, index)
    sealed_bytes = sealed_bytes - #gone.head - #gone.body
    return gone
end


-- Write a batch as a file of the same bytes: under another name first, so that no half is picked up.
local function write_file(item)
    local path = settings.spool_dir .. "/" .. item.name
    local file, err = io_open(path .. ".tmp", "wb")
    if not file then
        return nil, err
    end
    local ok
    ok, err = file:write(item.head, item.body)
    local closed, close_err = file:close()
    if ok and closed then
        ok, err = os_rename(path .. ".tmp", path)
    else
        ok, err = nil, err or close_err
    end
    if not ok then
        os_remove(path .. ".tmp")
    end
    return ok, err
end


-- Everything unsent into files. Blocks for as long as the disk takes: only for the worker's exit.
function _M.spool()
    if not worker then
        return
    end
    seal()
    while sealed[1] do
        local ok, err = write_file(sealed[1])
        local item = forget(1)
        if not ok then
            core.log.error("apicost-logger: ", item.lines, " lines are lost: ", err)
        end
    end
end


-- The first of two timers sends what is full, at once; the other what has waited long enough, full or not.
local flush
local timers = {soon = false, due = false}

local function set_timer(kind, delay)
    if timers[kind] then
        return
    end
    local ok, err = timer_at(delay, flush, kind)
    if not ok and delay > 0 then
        ok, err = timer_at(0, flush, kind)  -- an exiting worker takes no other
    end
    if ok then
        timers[kind] = true
    else
        complain("timer", "no timer to send with: ", err)
    end
end


-- Send what is sealed, oldest first. Returns the delay until the next try, or nil when all is sent.
local function send_sealed()
    local connection = sender.new(settings)
    while sealed[1] do
        local item = sealed[1]
        local outcome, reason, after_s = connection:post(item.head, item.body)
        if outcome == "failed" then
            connection:close()
            failures = failures + 1
            complain("sending", reason, "; ", #sealed, " batches wait, ", worker.dropped,
                     " lines dropped so far")
            return after_s or math_min(0.25 * 2 ^ math_min(failures, 10), MAX_WAIT_S)
        end
        failures = 0
        if outcome == "refused" then
            complain("refused", item.lines, " lines are lost: ", reason)
            worker.refused = worker.refused + item.lines
        elseif reason then
            complain("lines", reason)
        end
        if sealed[1] == item then  -- the worker's exit may have made a file of it meanwhile
            forget(1)
        end
    end
    connection:keep()
end


function flush(premature, kind)
    timers[kind] = false
    if not worker then
        return
    end
    local exiting = premature or ngx.worker.exiting()
    if kind == "due" or exiting then
        refresh()
        seal()
    end
    if flushing then
        return
    end

    flushing = true
    local ok, wait_s = pcall(send_sealed)
    flushing = false
    if not ok then
        complain("flush", wait_s)
        wait_s = MAX_WAIT_S
    end
    waiting = wait_s ~= nil
    if waiting and (exiting or ngx.worker.exiting()) then
        -- No second try will come: the sidecar takes it from disk.
        return _M.spool()
    end
    if waiting then
        set_timer("due", wait_s)
    elseif batch then
        set_timer("due", settings.flush_interval)
    end
end


-- Send everything at the next turn of the event loop.
function _M.flush_soon()
    if worker then
        timers.due = false
        set_timer("due", 0)
    end
end


-- One finished request. Returns its line's number, or nil where it was dropped. Called in the log phase, guarded by
-- the caller.
function _M.add(ctx)
    if not worker then
        refresh()
        start_worker()
    end
    local number = worker.next
    worker.next = number + 1
    if sealed_bytes + line.size(buf) > settings.max_queue_bytes then
        worker.dropped = worker.dropped + 1
        return
    end

    local now_us
    if batch then
        now_us = line.mono_us()
    else
        batch = {first = number, count = 0}
        now_us, batch.base_mono_ns, batch.base_unix_ns = line.clocks()
        batch.base_us = now_us
        if not flushing then
            set_timer("due", settings.flush_interval)
        end
    end
    line.write(buf, ctx, number - batch.first, now_us, batch.base_us)
    batch.count = batch.count + 1

    if batch.count >= settings.batch_max_lines or line.size(buf) >= MAX_BATCH_BYTES then
        seal()
        if not flushing and not waiting then
            set_timer("soon", 0)
        end
    end
    return number
end


-- A line that could not be written: what it left in the buffer is cut off again, and the batch
-- closed, so that a repeated failure does not copy the same lines over and over.
function _M.failed(err)
    complain("line", "a line is lost: ", tostring(err))
    if not worker then
        return
    end
    worker.failed = worker.failed + 1
    if batch then
        buf:put(str_match(line.take(buf), "^.*\n") or "")
        if batch.count > 0 then
            seal()
        else
            batch = nil
        end
    end
end


-- For tests and for whoever looks at a worker: its counters.
function _M.state()
    return {
        worker = worker, waiting = #sealed, waiting_bytes = sealed_bytes,
        buffered_bytes = buf and line.size(buf) or 0, flushing = flushing, failures = failures,
    }
end


return _M
