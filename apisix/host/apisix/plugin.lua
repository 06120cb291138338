--
-- SPDX-License-Identifier: Apache-2.0
--
-- What a plugin may expect of `apisix.plugin`, and what the host needs to load and run plugins.
--
local core   = require("apisix.core")
local ngx    = ngx
local ipairs = ipairs
local pairs  = pairs
local pcall  = pcall
local require = require
local package = package
local table_sort = table.sort

local _M = {}

local by_name = {}
local metadata = {}


-- {value = settings} as the admin API or apisix.yaml has them, or nil.
function _M.plugin_metadata(name)
    return metadata[name]
end


-- As in APISIX: metadata that its plugin refuses is as none, whatever was there before.
function _M.set_metadata(name, value)
    local plugin = by_name[name]
    metadata[name] = nil
    if not value then
        return
    end
    if plugin and plugin.check_schema then
        local ok, err = plugin.check_schema(value, core.schema.TYPE_METADATA)
        if not ok then
            core.log.error("metadata of plugin ", name, " refused: ", err)
            return
        end
    end
    metadata[name] = {value = value}
end


function _M.load(names, attributes)
    for _, name in ipairs(names) do
        local ok, plugin = pcall(require, "apisix.plugins." .. name)
        if not ok then
            core.log.error("failed to load plugin [", name, "]: ", plugin)
        else
            by_name[name] = plugin
            plugin.attr = attributes and attributes[name]
            if plugin.init then
                plugin.init()
            end
        end
    end
end


-- What a hot reload and a worker's exit do with each plugin.
function _M.unload()
    for name, plugin in pairs(by_name) do
        if plugin.destroy then
            plugin.destroy()
        end
        package.loaded["apisix.plugins." .. name] = nil
    end
    by_name = {}
end


-- A list {plugin, conf, plugin, conf, ...} by falling priority, from {name = conf}; raises what is wrong.
function _M.list(configuration)
    local found = {}
    for name, conf in pairs(configuration or {}) do
        local plugin = by_name[name] or error("plugin " .. name .. " is not loaded")
        local ok, err = plugin.check_schema(conf)
        if not ok then
            error("plugin " .. name .. ": " .. err)
        end
        found[#found + 1] = {plugin, conf}
    end
    table_sort(found, function(a, b) return a[1].priority > b[1].priority end)
    local list = {}
    for _, pair in ipairs(found) do
        list[#list + 1] = pair[1]
        list[#list + 1] = pair[2]
    end
    return list
end


-- Run one phase of a list. In rewrite and access a plugin may end the request with a status.
function _M.run(phase, list, ctx)
    for i = 1, #list, 2 do
        local run = list[i][phase]
        if run then
            local code, body = run(list[i + 1], ctx)
            if code and (phase == "rewrite" or phase == "access") then
                core.response.exit(code, body)
            end
        end
    end
end


return _M
