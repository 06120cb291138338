--
-- SPDX-License-Identifier: Apache-2.0
--
-- Another path towards the upstream, as far as the demo and the tests need it.
--
local core = require("apisix.core")

local _M = {
    version = 0.1,
    priority = 1008,
    name = "proxy-rewrite",
    schema = {
        type = "object",
        properties = {
            uri = {type = "string", minLength = 1},
            regex_uri = {type = "array", minItems = 2, maxItems = 2, items = {type = "string"}},
        },
    },
}


function _M.check_schema(conf)
    return core.schema.check(_M.schema, conf)
end


function _M.rewrite(conf, ctx)
    local uri = conf.uri
    if not uri and conf.regex_uri then
        uri = ngx.re.sub(ctx.var.uri, conf.regex_uri[1], conf.regex_uri[2], "jo")
    end
    if uri then
        local args = ngx.var.args
        ctx.var.upstream_uri = args and uri .. "?" .. args or uri
    end
end


return _M
