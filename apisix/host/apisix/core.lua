--
-- SPDX-License-Identifier: Apache-2.0
--
-- What a plugin may expect of `apisix.core`, as far as this project's demo and tests need it: log, json,
-- schema.check, string, request, response, and the request context's `var` with its cache.
--
-- As in APISIX, `ctx.var` keeps the first value it read: bytes_sent read in the access phase stays 0
-- in the log phase. Plugins have to live with that, so this host has it too.
--
local cjson    = require("cjson.safe")
local ngx      = ngx
local ipairs   = ipairs
local pairs    = pairs
local tonumber = tonumber
local tostring = tostring
local type     = type
local setmetatable = setmetatable

local _M = {version = "3.18.0"}


-- log ------------------------------------------------------------------------------------------

local levels = {
    emerg = ngx.EMERG, alert = ngx.ALERT, crit = ngx.CRIT, error = ngx.ERR, warn = ngx.WARN,
    notice = ngx.NOTICE, info = ngx.INFO, debug = ngx.DEBUG,
}
_M.log = {}
for name, level in pairs(levels) do
    _M.log[name] = function(...)
        return ngx.log(level, ...)
    end
end


-- json, string ---------------------------------------------------------------------------------

_M.json = {encode = cjson.encode, decode = cjson.decode}
_M.string = {
    format = string.format,
    has_prefix = function(s, prefix) return s:sub(1, #prefix) == prefix end,
    has_suffix = function(s, suffix) return suffix == "" or s:sub(-#suffix) == suffix end,
}


-- schema ---------------------------------------------------------------------------------------

local schema = {TYPE_CONSUMER = 1, TYPE_METADATA = 2}
_M.schema = schema

local function is_type(value, kind)
    if kind == "integer" then
        return type(value) == "number" and value % 1 == 0
    end
    if kind == "object" or kind == "array" then
        return type(value) == "table"
    end
    return type(value) == kind
end


-- The keywords that plugins' schemas commonly use; defaults are filled in, as APISIX does.
local function check(rule, value, place)
    if rule.type and not is_type(value, rule.type) then
        return nil, place .. ": wrong type: expected " .. rule.type .. ", got " .. type(value)
    end
    if rule.enum then
        local found = false
        for _, item in ipairs(rule.enum) do
            found = found or item == value
        end
        if not found then
            return nil, place .. ": " .. tostring(value) .. " is not one of the allowed values"
        end
    end
    if type(value) == "number" then
        if rule.minimum and value < rule.minimum then
            return nil, place .. ": expected at least " .. rule.minimum .. ", got " .. value
        end
        if rule.maximum and value > rule.maximum then
            return nil, place .. ": expected at most " .. rule.maximum .. ", got " .. value
        end
    elseif type(value) == "string" then
        if rule.minLength and #value < rule.minLength or rule.maxLength and #value > rule.maxLength then
            return nil, place .. ": a text of " .. #value .. " bytes is too short or too long"
        end
        if rule.pattern and not ngx.re.find(value, rule.pattern, "jo") then
            return nil, place .. ": does not match " .. rule.pattern
        end
    elseif type(value) == "table" and rule.type == "array" then
        if rule.maxItems and #value > rule.maxItems or rule.minItems and #value < rule.minItems then
            return nil, place .. ": " .. #value .. " items are too few or too many"
        end
        for i, item in ipairs(value) do
            local ok, err = check(rule.items or {}, item, place .. "[" .. i .. "]")
            if not ok then
                return nil, err
            end
        end
    elseif type(value) == "table" then
        for name in pairs(rule.additionalProperties == false and value or {}) do
            if not (rule.properties or {})[name] then
                return nil, place .. ": additional properties forbidden, found " .. tostring(name)
            end
        end
        for _, name in ipairs(rule.required or {}) do
            if value[name] == nil then
                return nil, place .. ": " .. name .. " is required"
            end
        end
        for name, inner in pairs(rule.properties or {}) do
            if value[name] == nil then
                value[name] = inner.default
            end
            if value[name] ~= nil then
                local ok, err = check(inner, value[name], place .. "." .. name)
                if not ok then
                    return nil, err
                end
            end
        end
    end
    return true
end


function schema.check(rule, value)
    local ok, err = check(rule, value, "value")
    if not ok then
        return false, err
    end
    return true
end


-- ctx ------------------------------------------------------------------------------------------

local of_context = {
    route_id = true, route_name = true, service_id = true, service_name = true, consumer_name = true,
    balancer_ip = true, balancer_port = true,
}
local numeric = {status = true, request_length = true, bytes_sent = true, body_bytes_sent = true}
local of_nginx = {upstream_uri = true, upstream_scheme = true, upstream_host = true}

local var_mt = {}

function var_mt.__index(self, key)
    local cached = self._cache[key]
    if cached ~= nil then
        return cached
    end
    local value
    if of_context[key] then
        value = self._ctx[key]
    elseif key == "method" then
        value = ngx.req.get_method()
    else
        value = ngx.var[key]
        if numeric[key] then
            value = tonumber(value)
        end
    end
    self._cache[key] = value
    return value
end

function var_mt.__newindex(self, key, value)
    if of_nginx[key] then
        ngx.var[key] = value
    end
    self._cache[key] = value
end

_M.ctx = {}
function _M.ctx.set_vars_meta(ctx)
    ctx.var = setmetatable({_cache = {uri = ngx.var.uri, host = ngx.var.host}, _ctx = ctx}, var_mt)
end


-- request, response ----------------------------------------------------------------------------

_M.request = {}
function _M.request.header(_, name)
    local value = ngx.req.get_headers()[name]
    return type(value) == "table" and value[1] or value
end

function _M.request.set_header(_, name, value)
    ngx.req.set_header(name, value)
end


_M.response = {}
function _M.response.exit(code, body)
    local ctx = ngx.ctx.api_ctx
    if ctx and _M.version >= "3.17" then
        ctx._resp_source = "apisix"
    end
    ngx.status = code
    if body then
        if type(body) == "table" then
            ngx.header["Content-Type"] = "application/json"
            body = cjson.encode(body)
        end
        ngx.say(body)
    end
    return ngx.exit(code)
end


function _M.response.get_response_source(ctx)
    if ctx._resp_source then
        return ctx._resp_source
    end
    if not ctx._apisix_proxied then
        return "apisix"
    end
    local header_time = ngx.var.upstream_header_time
    return header_time and header_time:sub(-1) ~= "-" and "upstream" or "nginx"
end


return _M
