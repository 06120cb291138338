--
-- SPDX-License-Identifier: Apache-2.0
--
-- Samples of bodies, for routes that ask for them: chosen by a share and a cap, bounded in bytes, with the fields
-- to be removed replaced before anything leaves the worker.
--
-- Rules of this file:
-- - It reads what nginx holds in memory anyway and changes nothing: no body is read because of it, none is
--   kept back, and what lies in a file or comes in unknown length is not looked at.
-- - A body in which the fields to be removed can't be found for certain stays here.
-- - A body that is cut or compressed stays here, too: that it is, is said.
-- - Samples may be dropped at any time, counted: nothing waits for them and nothing is kept on disk.
-- - Copies of text are made in a timer, not while a request waits.
--
local core   = require("apisix.core")
local queue  = require("apisix.plugins.apicost-logger.queue")
local sender = require("apisix.plugins.apicost-logger.sender")
local ngx          = ngx
local ipairs       = ipairs
local pcall        = pcall
local tonumber     = tonumber
local tostring     = tostring
local str_byte     = string.byte
local str_find     = string.find
local str_format   = string.format
local str_lower    = string.lower
local str_match    = string.match
local str_sub      = string.sub
local table_concat = table.concat
local table_remove = table.remove
local floor        = math.floor
local random       = math.random
local setmetatable = setmetatable
local type         = type

local MARKER = "[redacted]"       -- what the checker takes for any value
local MAX_WAITING = 256           -- samples of one worker
local MAX_WAITING_BYTES = 8388608
local MAX_HELD_BYTES = 8388608    -- of responses that are under way
local MAX_BATCH_BYTES = 2097152   -- well below the receiver's bound of 8 MiB
local MAX_DEPTH = 128             -- of a JSON body whose fields are to be removed
local PAUSE_BYTES = 65536         -- of such a body that are read in one go
local FLUSH_S = 1
local WAIT_S = 15                 -- after the receiver failed
local TARGET = {path = "/v1/samples", kind = "application/x-ndjson"}

local _M = {marker = MARKER}


-- Defaults stand here for people and again in the code: not every check fills them in.
_M.schema = {
    type = "object",
    description = "bodies of some requests are sent to the sidecar, held against the OpenAPI document, and dropped",
    properties = {
        rate = {
            type = "number",
            description = "share of the requests that are sampled; 0 is off",
            minimum = 0,
            maximum = 1,
            default = 0,
        },
        per_second = {
            type = "integer",
            description = "samples that one worker takes of one route in a second, at most",
            minimum = 1,
            maximum = 1000,
            default = 5,
        },
        max_body_bytes = {
            type = "integer",
            description = "a body with more bytes is not sampled",
            minimum = 1,
            maximum = 1048576,
            default = 65536,
        },
        redact = {
            type = "array",
            description = "JSON fields, or paths of them such as customer.email, whose values are removed; "
                .. "with any, only JSON bodies are sampled",
            items = {
                type = "string",
                minLength = 1,
                maxLength = 256,
            },
            maxItems = 256,
        },
        request = {
            type = "boolean",
            description = "whether request bodies are sampled",
            default = true,
        },
        response = {
            type = "boolean",
            description = "whether response bodies are sampled",
            default = true,
        },
    },
    -- A misspelt `redact` must not go unnoticed.
    additionalProperties = false,
}


local settings_of, line
local waiting, waiting_bytes = {}, 0
local held_bytes = 0
local dropped, failed = 0, 0     -- dropped: since the last batch that was taken
local batch_number = 0
local timer_set = false
local this_second, taken = 0, {}


function _M.configure(get_settings, line_module)
    settings_of, line = get_settings, line_module
end


-- Choosing -------------------------------------------------------------------------------------

-- Whether this request becomes a sample. Called in the access phase of routes that have `sample`.
function _M.choose(conf, ctx)
    local wanted = conf.sample
    local rate = wanted.rate or 0
    if rate <= 0 or random() >= rate then
        return
    end
    local second = floor(ngx.now())
    if second ~= this_second then
        this_second, taken = second, {}
    end
    local route = ctx.route_id or ""
    local count = taken[route] or 0
    if count >= (wanted.per_second or 5) then
        return
    end
    taken[route] = count + 1
    if #waiting >= MAX_WAITING then
        dropped = dropped + 1
        return
    end
    ctx.apicost_sample = {conf = conf, max = wanted.max_body_bytes or 65536, size = 0}
end


local function media_type(value)
    return str_lower(str_match(value or "", "^%s*([^;%s]*)"))
end


local function is_json(kind)
    return kind == "application/json" or str_find(kind, "^application/.+%+json$") ~= nil
end


-- What the checker can hold against a schema.
local function fits(kind, wanted)
    if is_json(kind) then
        return true
    end
    local removes = wanted.redact and #wanted.redact > 0
    return not removes and (kind == "text/plain" or kind == "application/x-www-form-urlencoded")
end


local function encoded(value)
    return value ~= nil and value ~= "" and str_lower(value) ~= "identity"
end


-- The response ---------------------------------------------------------------------------------

-- Whether the response's body is collected: in the header_filter phase its encoding is still the backend's.
function _M.header(sample)
    local wanted = sample.conf.sample
    local header = ngx.header
    local kind = header["Content-Type"]
    if wanted.response == false or not fits(media_type(kind and tostring(kind)), wanted) then
        return
    end
    local length = tonumber(header["Content-Length"])
    if encoded(header["Content-Encoding"]) or length and length > sample.max then
        sample.response_cut = true
        return
    end
    sample.parts = {}
end


local function give_up(sample)
    held_bytes = held_bytes - sample.size
    sample.parts, sample.size, sample.response_cut = nil, 0, true
end


-- One piece of the response on its way to the client. Only looks at it.
function _M.piece(sample)
    local parts = sample.parts
    if not parts then
        return
    end
    local piece, last = ngx.arg[1], ngx.arg[2]
    if piece and piece ~= "" then
        local size = #piece
        if sample.size + size > sample.max or held_bytes + size > MAX_HELD_BYTES then
            return give_up(sample)
        end
        parts[#parts + 1] = piece
        sample.size = sample.size + size
        held_bytes = held_bytes + size
    end
    if last then
        sample.ended = true
    end
end


-- The request ----------------------------------------------------------------------------------

-- The request's body as nginx has it in memory: text, or nil and whether there is one that is not here.
local function request_body(sample, var)
    local length = tonumber(var.content_length)
    if not length then
        -- In HTTP/2 a body needs no length; what should have none has none.
        local bare = not var.http_transfer_encoding and (var.http2 or "") == ""
        local method = var.request_method
        if bare or method == "GET" or method == "HEAD" or method == "DELETE" or method == "OPTIONS" then
            return ""
        end
        return nil, true
    end
    if length == 0 then
        return ""
    end
    if not fits(media_type(var.content_type), sample.conf.sample) then
        return nil
    end
    if length > sample.max or encoded(var.http_content_encoding) then
        return nil, true
    end
    local text = ngx.req.get_body_data()
    if not text or #text ~= length then
        return nil, true
    end
    return text
end


-- As a usage line says it: the backend answered.
local function from_upstream(ctx, var)
    if ctx._resp_source then
        return ctx._resp_source == "upstream"
    end
    local header_time = var.upstream_header_time or ""
    return header_time ~= "" and str_sub(header_time, -1) ~= "-"
end


local function host_of(var)
    local host = var.host or ""
    local name, port = str_match(var.http_host or "", "^(.-)(:%d+)$")
    local default = var.scheme == "https" and ":443" or ":80"
    if name and str_lower(name) == host and port ~= default then
        return host .. port
    end
    return host
end


local set_timer

-- The request is over: what was collected becomes a sample that waits. number: of its usage line, or nil.
-- Called in the log phase, guarded by the caller.
function _M.finish(ctx, number)
    local sample = ctx.apicost_sample
    ctx.apicost_sample = nil
    held_bytes = held_bytes - sample.size
    local var = ngx.var
    if not from_upstream(ctx, var) then
        return
    end
    local wanted = sample.conf.sample
    local sent, sent_cut
    if wanted.request ~= false then
        sent, sent_cut = request_body(sample, var)
    end
    local got_size = sample.parts and sample.ended and sample.size
    local got_cut = sample.response_cut or sample.parts ~= nil and not sample.ended
    local method = var.request_method
    local missing = sent == "" and (method == "POST" or method == "PUT" or method == "PATCH")
    if not (sent and sent ~= "" or got_size and got_size > 0 or missing) then
        return  -- nothing that could be checked
    end
    local bytes = (sent and #sent or 0) + (got_size or 0)
    if not number or #waiting >= MAX_WAITING or waiting_bytes + bytes > MAX_WAITING_BYTES then
        dropped = dropped + 1
        return
    end
    local path, query = str_match(var.request_uri or "", "^([^?]*)%??(.*)$")
    local upstream_uri = var.upstream_uri or ""
    waiting[#waiting + 1] = {
        bytes = bytes,
        redact = wanted.redact,
        sent = sent,
        got = got_size and sample.parts,
        fields = {
            line_no = number,
            unix_ms = floor(ngx.now() * 1000),
            method = method,
            host = line.text(host_of(var)),
            path = line.escape_uri(path),
            query_names = str_sub(line.query_names(str_sub(query, 1, 2048)), 1, 2048),
            status = tonumber(var.status) or 0,
            request_bytes = tonumber(var.request_length) or 0,
            response_bytes = tonumber(var.bytes_sent) or 0,
            request_content_type = line.media_type(media_type(var.content_type)),
            response_content_type = line.media_type(media_type(var.sent_http_content_type)),
            route_id = line.text(ctx.route_id or ""),
            service_id = line.text(ctx.service_id or ""),
            upstream_path = upstream_uri ~= "" and line.upstream_path(upstream_uri, var.request_uri) or "",
            consumer = line.text(ctx.consumer_name or ""),
            response_source = "upstream",
            request_cut = sent_cut and true or false,
            response_cut = got_cut and true or false,
        },
    }
    waiting_bytes = waiting_bytes + bytes
    set_timer(FLUSH_S)
end


-- A request whose sample could not be made; the request itself is not touched.
function _M.failed(sample, err)
    failed = failed + 1
    dropped = dropped + 1
    if sample and sample.parts then
        give_up(sample)
    end
    queue.complain("sample", "a sample is lost: ", tostring(err))
end


-- Removing fields ------------------------------------------------------------------------------

local QUOTE, BACKSLASH, COLON, COMMA = 34, 92, 58, 44
local OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = 123, 125, 91, 93

-- Position of the quote that ends the string which begins at `at`, or nil.
local function string_end(text, at)
    at = at + 1
    while true do
        local found = str_find(text, '["\\]', at)
        if not found then
            return nil
        end
        if str_byte(text, found) == QUOTE then
            return found
        end
        at = found + 2
    end
end


-- A name as it is compared: unescaped, in lower case; nil where it is no JSON string.
local function name_of(text, first, last)
    local name = str_sub(text, first + 1, last - 1)
    if str_find(name, "\\", 1, true) then
        local ok, list = pcall(core.json.decode, "[" .. str_sub(text, first, last) .. "]")
        name = ok and list and list[1]
        if type(name) ~= "string" then
            return nil
        end
    end
    return str_lower(name)
end


-- Whether the field `names[depth]` is to be removed: by its name, or by the end of the path that leads to it.
local function is_wanted(wanted, names, depth)
    local path = names[depth]
    if wanted[path] then
        return true
    end
    for above = depth - 1, 1, -1 do
        if names[above] then  -- arrays have none
            path = names[above] .. "." .. path
            if wanted[path] then
                return true
            end
        end
    end
    return false
end


local known_sets = setmetatable({}, {__mode = "k"})

local function set_of(redact)
    local set = known_sets[redact]
    if not set then
        set = {}
        for _, name in ipairs(redact) do
            set[str_lower(name)] = true
        end
        known_sets[redact] = set
    end
    return set
end


local VALUE, FIRST_VALUE, KEY, FIRST_KEY, AFTER = 1, 2, 3, 4, 5

-- The JSON text with the values of some fields replaced by the marker, everything else byte by byte as it was;
-- nil where it is no JSON text, so that nothing could be overlooked in what somebody else takes for one.
-- redact: names, or paths of names. pause: called now and then; may yield.
function _M.redacted(text, redact, pause)
    local wanted = set_of(redact)
    local out, copied = {}, 0       -- pieces, and up to where the text is in them
    local names, in_object = {}, {} -- by depth
    local depth, at, state = 0, 1, VALUE
    local hidden, hidden_from       -- depth of the field that is being removed, and where its value begins
    local next_pause = PAUSE_BYTES
    while true do
        at = str_find(text, "[^ \t\r\n]", at)
        if not at then
            break
        end
        if at > next_pause then
            next_pause = at + PAUSE_BYTES
            pause()
        end
        local c = str_byte(text, at)
        local ended   -- where a value ended just now
        if state == AFTER then
            if c == COMMA and depth > 0 then
                state = in_object[depth] and KEY or VALUE
                at = at + 1
            elseif depth > 0 and c == (in_object[depth] and CLOSE_OBJECT or CLOSE_ARRAY) then
                depth, ended = depth - 1, at
            else
                return nil
            end
        elseif state == KEY or state == FIRST_KEY then
            if c == QUOTE then
                local last = string_end(text, at)
                local name = last and name_of(text, at, last)
                local colon = name and str_find(text, "[^ \t\r\n]", last + 1)
                if not colon or str_byte(text, colon) ~= COLON then
                    return nil
                end
                names[depth] = name
                at = str_find(text, "[^ \t\r\n]", colon + 1)
                if not at then
                    return nil
                end
                if not hidden and is_wanted(wanted, names, depth) then
                    hidden, hidden_from = depth, at
                end
                state = VALUE
            elseif c == CLOSE_OBJECT and state == FIRST_KEY then
                depth, ended = depth - 1, at
            else
                return nil
            end
        elseif c == QUOTE then
            ended = string_end(text, at)
            if not ended then
                return nil
            end
        elseif c == OPEN_OBJECT or c == OPEN_ARRAY then
            depth = depth + 1
            if depth > MAX_DEPTH then
                return nil
            end
            in_object[depth], names[depth] = c == OPEN_OBJECT, false
            state = c == OPEN_OBJECT and FIRST_KEY or FIRST_VALUE
            at = at + 1
        elseif c == CLOSE_ARRAY and state == FIRST_VALUE then
            depth, ended = depth - 1, at
        else
            local _, last = str_find(text, "^[%w+.-]+", at)
            local word = last and str_sub(text, at, last)
            if not word or word ~= "true" and word ~= "false" and word ~= "null"
                and not str_find(word, "^-?%d[%d.eE+-]*$") then
                return nil
            end
            ended = last
        end
        if ended then
            if hidden == depth then
                out[#out + 1] = str_sub(text, copied + 1, hidden_from - 1)
                out[#out + 1] = '"' .. MARKER .. '"'
                copied, hidden = ended, nil
            end
            state, at = AFTER, ended + 1
        end
    end
    if state ~= AFTER or depth ~= 0 then
        return nil
    end
    out[#out + 1] = str_sub(text, copied + 1)
    return table_concat(out)
end


-- Sending --------------------------------------------------------------------------------------

local function pause()
    ngx.sleep(0)  -- other requests first
end


-- A body as it is sent, or nil where what is to be removed can't be found for certain.
local function body_of(text, kind, redact)
    if text ~= "" and redact and #redact > 0 then
        text = is_json(kind) and _M.redacted(text, redact, pause) or nil
    end
    return text and ngx.encode_base64(text)
end


-- One line of JSON, or nil where nothing is left to be checked.
local function encode(item)
    local fields = item.fields
    if item.sent then
        fields.request_body = body_of(item.sent, fields.request_content_type, item.redact)
    end
    if item.got then
        fields.response_body = body_of(table_concat(item.got), fields.response_content_type, item.redact)
    end
    pause()
    if not fields.request_body and not fields.response_body then
        return nil
    end
    return core.json.encode(fields)
end


-- The next batch of what waits: its header and its lines, and how many those are.
local function next_batch(settings)
    local lines, size = {}, 0
    while waiting[1] and size < MAX_BATCH_BYTES do
        local item = table_remove(waiting, 1)
        waiting_bytes = waiting_bytes - item.bytes
        local ok, text = pcall(encode, item)
        if not ok then
            _M.failed(nil, text)
        elseif text then
            lines[#lines + 1] = text
            size = size + #text
        else
            dropped = dropped + 1
        end
    end
    if #lines == 0 then
        return nil
    end
    batch_number = batch_number + 1
    local worker = queue.state().worker
    local head = str_format('{"apicost":1,"node":%s,"worker":{"pid":%d,"started_unix_ms":%s},"batch":%d,'
        .. '"count":%d,"dropped":%d}\n', core.json.encode(settings.node or line.hostname()), worker.pid,
        worker.started_ms, batch_number, #lines, dropped)
    lines[#lines + 1] = ""
    return head, table_concat(lines, "\n"), #lines - 1
end


-- Returns the delay until the next try where the receiver failed.
local function send()
    local settings = settings_of()
    local connection = sender.new(settings)
    while waiting[1] do
        local head, body, count = next_batch(settings)
        if head then
            local told = dropped
            local outcome, reason, after_s = connection:post(head, body, TARGET)
            if outcome == "sent" then
                dropped = dropped - told
            else
                dropped = dropped + count
            end
            if reason then
                queue.complain("samples", count, " samples: ", reason)
            end
            if outcome == "failed" then
                connection:close()
                return after_s or WAIT_S
            end
        end
    end
    connection:keep()
end


local function flush(premature)
    timer_set = false
    if premature or ngx.worker.exiting() then
        waiting, waiting_bytes = {}, 0
        return
    end
    timer_set = true  -- one at a time: what comes meanwhile is sent along
    local ok, wait_s = pcall(send)
    timer_set = false
    if not ok then
        queue.complain("samples", wait_s)
        wait_s = WAIT_S
    end
    if waiting[1] then
        set_timer(wait_s or FLUSH_S)
    end
end


function set_timer(delay)
    if not timer_set then
        timer_set = ngx.timer.at(delay, flush) and true or false
    end
end


-- For tests and for whoever looks at a worker.
function _M.state()
    return {
        waiting = #waiting, waiting_bytes = waiting_bytes, held_bytes = held_bytes, dropped = dropped, failed = failed,
    }
end


return _M
