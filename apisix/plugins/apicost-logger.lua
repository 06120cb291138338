--
-- SPDX-License-Identifier: Apache-2.0
--
-- One usage line per finished request, in numbered batches, to the apicost receiver beside the gateway.
--
-- Rules of this plugin:
-- - It reads and never changes a request. The access and header_filter phases only look at a clock;
--   everything else happens in the log phase, after the response.
-- - An error in it costs a line (counted, and a hole in the numbers), never a request.
-- - Header values and query values never leave the gateway, and bodies only of routes that have `sample`.
-- - Memory is bounded: `max_queue_bytes` and a few bounded caches per worker.
--
local core    = require("apisix.core")
local plugin  = require("apisix.plugin")
local line    = require("apisix.plugins.apicost-logger.line")
local queue   = require("apisix.plugins.apicost-logger.queue")
local sampler = require("apisix.plugins.apicost-logger.sampler")
local pcall   = pcall
local ipairs  = ipairs
local pairs   = pairs
local type    = type
local ngx     = ngx

local plugin_name = "apicost-logger"


-- There is one queue and one connection per worker, so nothing can be set by route but what is sampled of it.
local schema = {
    type = "object",
    properties = {
        sample = sampler.schema,
    },
}

local header_name = {
    type = "string",
    pattern = "^[A-Za-z0-9_-]+$",
    maxLength = 64,
}

local metadata_schema = {
    type = "object",
    properties = {
        receiver = {
            type = "string",
            description = "where usage lines go: http://HOST:PORT, or unix:PATH of a socket",
            pattern = [[^(http://[^/\s]+:[0-9]+|unix:/\S+)$]],
            default = "http://127.0.0.1:9555",
        },
        token = {
            type = "string",
            description = "bearer token of the receiver; wins over token_file",
            minLength = 1,
            maxLength = 512,
            pattern = "^[!-~]+$",
        },
        token_file = {
            type = "string",
            description = "file whose first line is the token; read again when the receiver refuses it",
            default = "/etc/apicost/token",
        },
        node = {
            type = "string",
            description = "name of this gateway node; the host's name where absent",
            minLength = 1,
            maxLength = 128,
        },
        spool_dir = {
            type = "string",
            description = "folder for what is left when a worker stops; the sidecar picks it up",
            default = "/var/spool/apicost",
        },
        batch_max_lines = {
            type = "integer",
            description = "a batch with so many lines is sent at once",
            minimum = 1,
            maximum = 10000,
            default = 1000,
        },
        flush_interval = {
            type = "number",
            description = "seconds that a line waits at most for its batch to be sent",
            minimum = 0.05,
            maximum = 60,
            default = 1,
        },
        max_queue_bytes = {
            type = "integer",
            description = "memory for unsent lines of one worker; beyond it new lines are dropped and counted",
            minimum = 65536,
            maximum = 1073741824,
            default = 8388608,
        },
        timeout = {
            type = "integer",
            description = "milliseconds for each of connect, send and receive",
            minimum = 1,
            maximum = 60000,
            default = 5000,
        },
        api_key_headers = {
            type = "array",
            description = "request headers that carry an API key; only their presence is sent",
            items = header_name,
            maxItems = 8,
            default = {"apikey", "x-api-key"},
        },
        api_key_query = {
            type = "array",
            description = "query parameters that carry an API key; only their presence is sent",
            items = header_name,
            maxItems = 8,
            default = {"apikey"},
        },
    },
}

-- What settings are checked against. A check writes the schema's defaults into what it checks; in the metadata
-- they would stand as if somebody had set them, and hide `plugin_attr`. So this one has none.
local checked_schema = {
    type = "object",
    properties = {},
}
for name, rule in pairs(metadata_schema.properties) do
    local copy = {}
    for key, value in pairs(rule) do
        if key ~= "default" then
            copy[key] = value
        end
    end
    checked_schema.properties[name] = copy
end


local _M = {
    version = 0.1,
    priority = 398,
    name = plugin_name,
    schema = schema,
    metadata_schema = metadata_schema,
}


-- Whether the last metadata that this worker saw was refused. APISIX then goes on without any, as if it had
-- been deleted.
local metadata_refused = false


function _M.check_schema(conf, schema_type)
    if schema_type == core.schema.TYPE_METADATA then
        local ok, err = core.schema.check(checked_schema, conf)
        metadata_refused = not ok
        return ok, err
    end

    return core.schema.check(schema, conf)
end


-- What is in force: the schema's defaults, over them `plugin_attr` of config.yaml (this node),
-- over them the plugin's metadata (all nodes, changes at run time).
local in_force
local from_metadata
local from_attr

local function settings()
    local attr = _M.attr
    local ok, metadata = pcall(plugin.plugin_metadata, plugin_name)
    metadata = ok and metadata and metadata.value
    if in_force and (metadata == from_metadata and attr == from_attr or not metadata and metadata_refused) then
        return in_force
    end

    local defaults = {}
    for key, rule in pairs(metadata_schema.properties) do
        defaults[key] = rule.default
    end
    local merged = {}
    for _, layer in ipairs({defaults, attr or {}, metadata or {}}) do
        for key, value in pairs(layer) do
            if metadata_schema.properties[key] then
                merged[key] = value
            end
        end
    end
    local valid, err = core.schema.check(checked_schema, merged)
    if not valid then
        core.log.error("apicost-logger: settings of plugin_attr and metadata refused, ",
                       in_force and "the former ones stay" or "defaults are used", ": ", err)
        merged = in_force or defaults
    end

    from_metadata, from_attr, in_force = metadata, attr, merged
    line.configure(merged)
    return merged
end


-- APISIX calls this in every worker when the plugin is loaded, at a hot reload as well.
function _M.init()
    in_force = nil
    queue.configure(settings, line)
    sampler.configure(settings, line)
end


-- At a hot reload lines go on: the queue outlives this module. At the worker's exit no timer runs
-- and no socket opens any more, so what is left becomes a file.
function _M.destroy()
    local ok, err = pcall(ngx.get_phase() == "exit_worker" and queue.spool or queue.flush_soon)
    if not ok then
        core.log.error("apicost-logger: ", err)
    end
end


-- The request's own fields, by names that are no constants for LuaJIT: see the rules of line.lua.
local fields = {"apicost_access_us", "apicost_header_us", "apicost_logged", "apicost_sample"}
local ACCESS_US, HEADER_US, LOGGED, SAMPLE = 1, 2, 3, 4


-- No phase of the plugin until a request of a route with `sample` comes: APISIX would call it for each piece of each
-- response, and look up the phase each time as well.
local function body_filter(conf, ctx)
    local sample = ctx[fields[SAMPLE]]
    if sample and sample.conf == conf then
        local ok, err = pcall(sampler.piece, sample)
        if not ok then
            pcall(sampler.failed, sample, err)
        end
    end
end


function _M.access(conf, ctx)
    if not ctx[fields[ACCESS_US]] then
        ctx[fields[ACCESS_US]] = line.mono_us()
    end
    if conf.sample and not ctx[fields[SAMPLE]] then
        _M.body_filter = body_filter
        local ok, err = pcall(sampler.choose, conf, ctx)
        if not ok then
            pcall(sampler.failed, nil, err)
        end
    end
end


function _M.header_filter(conf, ctx)
    if not ctx[fields[HEADER_US]] then
        ctx[fields[HEADER_US]] = line.mono_us()
    end
    -- A global rule and a route may both have the plugin: a sample belongs to one of them.
    local sample = ctx[fields[SAMPLE]]
    if sample and sample.conf == conf then
        local ok, err = pcall(sampler.header, sample)
        if not ok then
            pcall(sampler.failed, sample, err)
        end
    end
end


function _M.log(conf, ctx)
    -- A global rule and a route may both have the plugin: a request is one line.
    if ctx[fields[LOGGED]] then
        return
    end
    ctx[fields[LOGGED]] = true

    local ok, number = pcall(queue.add, ctx)
    if not ok then
        pcall(queue.failed, number)
    end
    local sample = ctx[fields[SAMPLE]]
    if sample then
        local made, err = pcall(sampler.finish, ctx, ok and number or nil)
        if not made then
            pcall(sampler.failed, nil, err)
        end
    end
end


return _M
