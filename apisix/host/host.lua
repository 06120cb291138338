--
-- SPDX-License-Identifier: Apache-2.0
--
-- A small host for APISIX plugins on nginx and its Lua module: matches a request to a route, fills the
-- request context as APISIX does, runs the plugins' phases and proxies. It reads the same resources as
-- APISIX's standalone mode, from a JSON file.
--
-- For demos and tests on machines without APISIX; not a gateway for production: no discovery, no
-- health checks, no admin API, weights as round robin.
--
-- As APISIX sets LuaJIT, so that the plugin is compiled here as it is there.
require("jit.opt").start("minstitch=2", "maxtrace=4000", "maxrecord=8000", "sizemcode=64", "maxmcode=4000",
                         "maxirconst=1000")

local core     = require("apisix.core")
local plugin   = require("apisix.plugin")
local balancer = require("ngx.balancer")
local cjson    = require("cjson")
local ngx      = ngx
local error    = error
local ipairs   = ipairs
local pairs    = pairs
local pcall    = pcall
local tonumber = tonumber
local io_open  = io.open

local _M = {}

local resources
local exact = {}      -- host -> path -> candidates
local patterns = {}   -- ordered by length, longest first
local services, consumers_by_key = {}, {}
local global_plugins = {}


local function read(path)
    local file, err = io_open(path, "rb")
    if not file then
        error("host: " .. err)
    end
    local text = file:read("*a")
    file:close()
    return cjson.decode(text)
end


-- "/v1/orders/:id" and "/files/*" as a regular expression; nil for a plain path.
local function regex_of(uri)
    if not uri:find("[:*]") then
        return nil
    end
    local escaped = uri:gsub("[%.%+%?%(%)%[%]%^%$]", "\\%0")
    escaped = escaped:gsub(":[%w_]+", "[^/]+")
    escaped = escaped:gsub("%*$", ".*")
    return "^" .. escaped .. "$"
end


-- "ADDR:PORT" of a standalone node list or map.
local function nodes_of(upstream)
    local nodes = {}
    for key, node in pairs(upstream.nodes or {}) do
        if type(key) == "number" then
            nodes[key] = {host = node.host, port = node.port}
        else
            local host, port = key:match("^(.*):(%d+)$")
            nodes[#nodes + 1] = {host = host, port = tonumber(port)}
        end
    end
    table.sort(nodes, function(a, b) return (a.port or 0) < (b.port or 0) end)
    return nodes
end


local function merged(service, route)
    local value = {}
    for _, source in ipairs({service or {}, route}) do
        for key, item in pairs(source) do
            value[key] = item
        end
    end
    local plugins = {}
    for _, source in ipairs({service and service.plugins or {}, route.plugins or {}}) do
        for name, conf in pairs(source) do
            plugins[name] = conf
        end
    end
    value.plugins, value.id, value.name, value.service_id = plugins, route.id, route.name, route.service_id
    return value
end


local function add_route(route)
    local service = route.service_id and services[route.service_id]
    local value = merged(service, route)
    local upstream = value.upstream or {}
    local matched = {
        key = "/routes/" .. value.id, value = value, modifiedIndex = 1, service = service,
        plugins = plugin.list(value.plugins), nodes = nodes_of(upstream), upstream = upstream, turn = 0,
    }
    if value.methods then
        matched.methods = {}
        for _, method in ipairs(value.methods) do
            matched.methods[method] = true
        end
    end
    local hosts = route.hosts or service and service.hosts or {route.host or "*"}
    for _, uri in ipairs(route.uris or {route.uri}) do
        local regex = regex_of(uri)
        for _, host in ipairs(hosts) do
            local candidate = {route = matched, uri = uri, host = host, regex = regex}
            if regex then
                patterns[#patterns + 1] = candidate
            else
                local key = host .. " " .. uri
                exact[key] = exact[key] or {}
                table.insert(exact[key], candidate)
            end
        end
    end
end


-- Once per worker: resources, plugins, routes.
-- The plugins' metadata of the resources: what is refused or no longer there is nil for the plugin.
local function set_metadata()
    local values = {}
    for _, item in ipairs(resources.plugin_metadata or {}) do
        local value = {}
        for key, setting in pairs(item) do
            if key ~= "id" then
                value[key] = setting
            end
        end
        values[item.id] = value
    end
    for _, name in ipairs(resources.plugins or {}) do
        plugin.set_metadata(name, values[name])
    end
end


-- As APISIX does with apisix.yaml; here for the metadata alone.
local function watch(premature, path)
    local ok, now = pcall(read, path)  -- it may be half written
    if premature or not ok or cjson.encode(now.plugin_metadata) == cjson.encode(resources.plugin_metadata) then
        return
    end
    resources.plugin_metadata = now.plugin_metadata
    set_metadata()
end


function _M.init_worker(path)
    resources = read(path)
    core.version = resources.apisix_version or core.version
    if core.version < "3.17" then
        core.response.get_response_source = nil
    end
    plugin.load(resources.plugins, resources.plugin_attr)
    set_metadata()
    ngx.timer.every(0.5, watch, path)
    for _, service in ipairs(resources.services or {}) do
        services[service.id] = service
    end
    for _, consumer in ipairs(resources.consumers or {}) do
        consumers_by_key[consumer.plugins["key-auth"].key] = consumer
    end
    for _, route in ipairs(resources.routes or {}) do
        add_route(route)
    end
    table.sort(patterns, function(a, b) return #a.uri > #b.uri end)
    for _, rule in ipairs(resources.global_rules or {}) do
        for _, item in ipairs(plugin.list(rule.plugins)) do
            table.insert(global_plugins, item)
        end
    end
end


function _M.exit_worker()
    plugin.unload()
end


local function fits(candidate, method)
    return not candidate.route.methods or candidate.route.methods[method]
end


local function match(host, path, method)
    for _, name in ipairs({host, "*"}) do
        for _, candidate in ipairs(exact[name .. " " .. path] or {}) do
            if fits(candidate, method) then
                return candidate
            end
        end
    end
    for _, candidate in ipairs(patterns) do
        if (candidate.host == host or candidate.host == "*") and fits(candidate, method)
            and ngx.re.find(path, candidate.regex, "jo") then
            return candidate
        end
    end
end


function _M.access()
    local ctx = {consumers_by_key = consumers_by_key}
    ngx.ctx.api_ctx = ctx
    core.ctx.set_vars_meta(ctx)
    local found = match(ngx.var.host, ngx.var.uri, ngx.req.get_method())
    local route = found and found.route
    if route then
        ctx.matched_route = route
        ctx.curr_req_matched = {_path = found.uri, _host = found.host, _method = ngx.req.get_method()}
        ctx.route_id, ctx.route_name = route.value.id, route.value.name
        if route.service then
            ctx.service_id, ctx.service_name = route.service.id, route.service.name
        end
    end
    ctx.global_plugins = global_plugins
    plugin.run("rewrite", global_plugins, ctx)
    plugin.run("access", global_plugins, ctx)
    if not route then
        return core.response.exit(404, {error_msg = "404 Route Not Found"})
    end
    ctx.plugins = route.plugins
    plugin.run("rewrite", route.plugins, ctx)
    plugin.run("access", route.plugins, ctx)
    if #route.nodes == 0 then
        return core.response.exit(503, {error_msg = "no upstream"})
    end
    ctx.upstream_scheme = route.upstream.scheme or "http"
    if ctx.upstream_scheme ~= "http" then
        ngx.var.upstream_scheme = ctx.upstream_scheme
    end
    if core.version >= "3.17" then
        ctx._apisix_proxied = true
    end
end


-- Round robin; a further try goes to the next node.
function _M.balance()
    local ctx = ngx.ctx.api_ctx
    local route = ctx.matched_route
    if not ctx.tries then
        ctx.tries = 0
        route.turn = route.turn + 1
        ctx.first_node = route.turn
        local retries = route.upstream.retries or #route.nodes - 1
        if retries > 0 then
            balancer.set_more_tries(retries)
        end
    end
    local node = route.nodes[(ctx.first_node + ctx.tries - 1) % #route.nodes + 1]
    ctx.tries = ctx.tries + 1
    ctx.balancer_ip, ctx.balancer_port = node.host, node.port
    local ok, err = balancer.set_current_peer(node.host, node.port)
    if not ok then
        core.log.error("no peer: ", err)
        return ngx.exit(500)
    end
end


local function later_phase(name)
    return function()
        local ctx = ngx.ctx.api_ctx
        if not ctx then
            return
        end
        plugin.run(name, global_plugins, ctx)
        if ctx.plugins then
            plugin.run(name, ctx.plugins, ctx)
        end
    end
end

_M.header_filter = later_phase("header_filter")
_M.body_filter = later_phase("body_filter")
_M.log = later_phase("log")


return _M
