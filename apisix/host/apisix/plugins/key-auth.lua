--
-- SPDX-License-Identifier: Apache-2.0
--
-- Consumers by API key, as far as the demo and the tests need it.
--
local core = require("apisix.core")

local _M = {
    version = 0.1,
    priority = 2500,
    name = "key-auth",
    schema = {
        type = "object",
        properties = {
            header = {type = "string", default = "apikey"},
            query = {type = "string", default = "apikey"},
        },
    },
}


function _M.check_schema(conf)
    return core.schema.check(_M.schema, conf)
end


function _M.rewrite(conf, ctx)
    local key = core.request.header(ctx, conf.header) or ngx.req.get_uri_args()[conf.query]
    if not key then
        return 401, {message = "Missing API key in request"}
    end
    local consumer = ctx.consumers_by_key[key]
    if not consumer then
        return 401, {message = "Invalid API key in request"}
    end
    ctx.consumer = consumer
    ctx.consumer_name = consumer.username
end


return _M
