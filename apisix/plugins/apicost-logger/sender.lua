--
-- SPDX-License-Identifier: Apache-2.0
--
-- Posts batches to the receiver over one kept-alive connection (TCP or Unix socket).
-- Runs in timers only, where waiting for a socket holds nobody up.
--
local ngx        = ngx
local tonumber   = tonumber
local setmetatable = setmetatable
local io_open    = io.open
local str_find   = string.find
local str_format = string.format
local str_lower  = string.lower
local str_match  = string.match

local MAX_ANSWER_BYTES = 65536
local USAGE = {path = "/v1/usage", kind = "text/x-apicost-usage"}
local KEEPALIVE_MS = 60000

local _M = {}
local mt = {__index = _M}

-- The token of a file, kept between flushes; read again after a 401.
local kept_tokens = {}

local function token_of(settings)
    if settings.token then
        return settings.token
    end
    local path = settings.token_file
    if not path then
        return nil, "neither token nor token_file is set"
    end
    local token = kept_tokens[path]
    if token then
        return token
    end
    local file, err = io_open(path, "rb")
    if not file then
        return nil, "no token: " .. err
    end
    token = str_match(file:read(4096) or "", "^([!-~]+)")
    file:close()
    if not token then
        return nil, "no token: the first line of " .. path .. " is none"
    end
    kept_tokens[path] = token
    return token
end


-- HOST and PORT, or the path of a Unix socket as cosockets want it.
local function address_of(receiver)
    if str_find(receiver, "^unix:") then
        return receiver
    end
    local host, port = str_match(receiver, "^http://(.+):(%d+)$")
    if host == "localhost" then
        host = "127.0.0.1"  -- a cosocket would ask a resolver
    end
    return host, tonumber(port)
end


function _M.new(settings)
    return setmetatable({settings = settings}, mt)
end


function _M.close(self)
    if self.socket then
        self.socket:close()
        self.socket = nil
    end
end


function _M.keep(self)
    if self.socket then
        self.socket:setkeepalive(KEEPALIVE_MS, 1)
        self.socket = nil
    end
end


local function connect(self)
    if self.socket then
        return self.socket
    end
    local socket, err = ngx.socket.tcp()
    if not socket then
        return nil, err
    end
    local timeout = self.settings.timeout
    socket:settimeouts(timeout, timeout, timeout)
    local host, port = address_of(self.settings.receiver)
    local ok
    if port then
        ok, err = socket:connect(host, port)
    else
        ok, err = socket:connect(host)
    end
    if not ok then
        return nil, err
    end
    self.socket = socket
    self.host = port and host .. ":" .. port or "localhost"
    return socket
end


-- Status, Retry-After in seconds or nil, and the body where its length is told.
local function read_answer(self, socket)
    local first, err = socket:receive("*l")
    if not first then
        return nil, err
    end
    local status = tonumber(str_match(first, "^HTTP/1%.[01] (%d%d%d)"))
    if not status then
        return nil, "no HTTP answer"
    end
    local length, retry_after
    local reusable = true
    for _ = 1, 100 do
        local header
        header, err = socket:receive("*l")
        if not header then
            return nil, err
        end
        if header == "" then
            break
        end
        local name, value = str_match(header, "^([^:]+):%s*(.-)%s*$")
        name = str_lower(name or "")
        if name == "content-length" then
            length = tonumber(value)
        elseif name == "retry-after" then
            retry_after = tonumber(value)
        elseif name == "connection" and str_lower(value) == "close" then
            reusable = false
        end
    end
    local body = ""
    if length and length <= MAX_ANSWER_BYTES then
        body, err = socket:receive(length)
        if not body then
            return nil, err
        end
    else
        reusable = false
    end
    if not reusable then
        self:close()
    end
    return status, retry_after, body
end


local function try(self, token, head, body, target)
    local socket, err = connect(self)
    if not socket then
        return nil, err
    end
    local ok
    ok, err = socket:send({
        "POST ", target.path, " HTTP/1.1\r\nHost: ", self.host, "\r\nAuthorization: Bearer ", token,
        "\r\nContent-Type: ", target.kind, "\r\nContent-Length: ", str_format("%d", #head + #body),
        "\r\n\r\n", head, body,
    })
    if not ok then
        return nil, err
    end
    return read_answer(self, socket)
end


-- A kept connection may have been closed by the other side meanwhile: then once more on a new one.
local function exchange(self, token, head, body, target)
    local status, err, answer = try(self, token, head, body, target)
    if not status and self.socket and err ~= "timeout" and self.socket:getreusedtimes() ~= 0 then
        self:close()
        status, err, answer = try(self, token, head, body, target)
    end
    return status, err, answer
end


-- Send one batch; target: {path, kind} where it is none of usage lines. Returns
--   "sent", and a reason where the receiver refused some of its lines;
--   "refused", reason: this batch will never be taken;
--   "failed", reason, seconds to wait or nil: the same bytes may be sent again.
function _M.post(self, head, body, target)
    local settings = self.settings
    local token, token_err = token_of(settings)
    if not token then
        return "failed", token_err
    end
    local status, err, answer = exchange(self, token, head, body, target or USAGE)
    if not status then
        self:close()
        return "failed", "receiver " .. settings.receiver .. ": " .. (err or "no answer")
    end
    if status == 200 then
        if str_find(answer, '"refused"%s*:%s*%[%s*[^%s%]]') then
            return "sent", "the receiver refused lines: " .. answer:sub(1, 300)
        end
        return "sent"
    end
    local reason = str_format("receiver %s answered %d: %s", settings.receiver, status, (answer or ""):sub(1, 200))
    if status == 400 or status == 413 or status == 415 then
        return "refused", reason
    end
    if status == 401 then
        kept_tokens = {}
    end
    return "failed", reason, err
end


return _M
