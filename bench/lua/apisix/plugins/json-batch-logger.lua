--
-- SPDX-License-Identifier: Apache-2.0
--
-- What a common batch logger does, to compare with: a table per request, kept until the batch is full
-- or old, then encoded as JSON and posted. `fields` is "usage" (the usage line's columns by name) or
-- "log" (request, response and headers, as loggers send by default).
--
local core = require("apisix.core")
local cjson = require("cjson")
local ngx = ngx
local tonumber = tonumber

local _M = {
    version = 0.1,
    priority = 410,
    name = "json-batch-logger",
    schema = {
        type = "object",
        properties = {
            port = {type = "integer"},
            fields = {type = "string", enum = {"usage", "log"}, default = "usage"},
            batch_max_size = {type = "integer", default = 1000},
            inactive_timeout = {type = "number", default = 1},
        },
    },
}

local entries, count, timer = {}, 0, false


function _M.check_schema(conf)
    return core.schema.check(_M.schema, conf)
end


local function post(conf, batch)
    local body = cjson.encode(batch)
    local socket = ngx.socket.tcp()
    socket:settimeouts(5000, 5000, 5000)
    if not socket:connect("127.0.0.1", conf.port) then
        return
    end
    socket:send({
        "POST /v1/usage HTTP/1.1\r\nHost: sink\r\nContent-Type: application/json\r\nContent-Length: ", #body,
        "\r\n\r\n", body,
    })
    local length = 0
    while true do
        local header = socket:receive("*l")
        if not header then
            return
        end
        if header == "" then
            break
        end
        length = tonumber(header:lower():match("^content%-length:%s*(%d+)")) or length
    end
    socket:receive(length)
    socket:setkeepalive(60000, 1)
end


local function flush(_, conf)
    timer = false
    local batch = entries
    entries, count = {}, 0
    if batch[1] then
        post(conf, batch)
    end
end


local usage_names = {
    "msec", "request_time", "connection", "connection_requests", "realip_remote_addr", "realip_remote_port",
    "server_addr", "server_port", "ssl_protocol", "ssl_cipher", "server_protocol", "request_method", "host",
    "upstream_uri", "status", "request_length", "bytes_sent", "body_bytes_sent", "content_length",
    "content_type", "sent_http_content_type", "upstream_scheme", "upstream_addr", "upstream_status",
    "upstream_bytes_sent", "upstream_bytes_received", "upstream_connect_time", "upstream_response_time",
    "request_id",
}

local function usage_entry(ctx)
    local var = ngx.var
    local entry = {
        route_id = ctx.route_id, route_name = ctx.route_name, service_id = ctx.service_id,
        consumer = ctx.consumer_name, matched_uri = ctx.curr_req_matched and ctx.curr_req_matched._path,
        worker = ngx.worker.pid(), now = ngx.now(),
        path = var.request_uri:match("^[^?]*"),
        auth = var.http_authorization and true or nil, api_key = var.http_apikey and true or nil,
        cookie = var.http_cookie and true or nil,
    }
    for i = 1, #usage_names do
        local name = usage_names[i]
        entry[name] = var[name]
    end
    return entry
end


local function log_entry(ctx)
    local var = ngx.var
    return {
        request = {
            url = var.scheme .. "://" .. var.host .. ":" .. var.server_port .. var.request_uri,
            uri = var.request_uri,
            method = ngx.req.get_method(),
            headers = ngx.req.get_headers(),
            querystring = ngx.req.get_uri_args(),
            size = tonumber(var.request_length),
        },
        response = {
            status = ngx.status, headers = ngx.resp.get_headers(), size = tonumber(var.bytes_sent),
        },
        server = {hostname = "bench", version = core.version},
        upstream = var.upstream_addr, service_id = ctx.service_id or "", route_id = ctx.route_id,
        consumer = ctx.consumer_name, client_ip = var.remote_addr,
        start_time = ngx.req.start_time() * 1000, latency = (ngx.now() - ngx.req.start_time()) * 1000,
        upstream_latency = tonumber(var.upstream_response_time), request_id = var.request_id,
    }
end


function _M.log(conf, ctx)
    count = count + 1
    entries[count] = conf.fields == "usage" and usage_entry(ctx) or log_entry(ctx)
    if count >= conf.batch_max_size then
        local batch = entries
        entries, count = {}, 0
        ngx.timer.at(0, function() post(conf, batch) end)
    elseif not timer then
        timer = ngx.timer.at(conf.inactive_timeout, flush, conf)
    end
end


return _M
