--
-- SPDX-License-Identifier: Apache-2.0
--
-- One finished request as one line of usage: columns in the order of `x-columns` in
-- specs/usage-line.schema.json, separated by TAB.
--
-- Rules of this file:
-- - The writer is straight-line code, generated once per configuration: a loop over columns, or one
--   helper called for each, does not compile ("loop unroll limit") and costs four times as much.
-- - The writer is one trace of its own, made at the first line: the traces of whoever calls it would else
--   take it in, some of them in part and each with its own copy, and which do is chance in every worker.
-- - Variables are read by nginx's own `ngx_http_get_variable`, their names hashed once: `ngx.var.x` does
--   not compile in lua-resty-core, and APISIX's `ctx.var` gives what was cached in an earlier phase
--   (bytes_sent = 0).
-- - Fields of the request's context are read by names that are no constants for LuaJIT: for a constant it
--   notes where in the table it was found, and APISIX's pooled tables have it at different places.
-- - What a client or a configuration can fill with any bytes is escaped, by caches of bounded size.
-- - Values of headers and query parameters are looked at for their presence only.
--
local ffi        = require("ffi")
local bit        = require("bit")
local jit        = require("jit")
local ngx        = ngx
local pcall      = pcall
local require    = require
local error      = error
local setmetatable = setmetatable
local tonumber   = tonumber
local tostring   = tostring
local type       = type
local ipairs     = ipairs
local loadstring = loadstring
local pairs      = pairs
local select     = select
local table_concat = table.concat
local str_find   = string.find
local str_gmatch = string.gmatch
local str_format = string.format
local str_byte   = string.byte
local str_gsub   = string.gsub
local str_lower  = string.lower
local str_match  = string.match
local str_sub    = string.sub
local floor      = math.floor
local C          = ffi.C
local ffi_str    = ffi.string

local MAX_PATH   = 2048   -- bytes of a path or query that are looked at; the receiver's bound too
local MAX_MEMO   = 4096   -- entries per cache and generation
local MAX_UNROLLED = 8    -- query parameters that compiled code takes; more go a slower way
local WARM_CALLS = 200    -- a function is compiled at its 112th call; about 2 ms, once in a worker

local _M = {}


-- Own names for the C functions, so that other modules' declarations of them can't collide.
-- `apicost_name` begins as nginx's ngx_str_t, `apicost_value` is its ngx_variable_value_t: 28 bits of
-- length, then flags (src/core/ngx_string.h; LuaJIT compiles no bit fields).
local have_ffi = pcall(ffi.cdef, [[
    struct apicost_time { long s; long ns; };
    int apicost_clock(int id, struct apicost_time *t) __asm__("clock_gettime");
    int apicost_gethostname(char *name, size_t size) __asm__("gethostname");
    const char *apicost_memchr(const char *s, int c, size_t n) __asm__("memchr");
    int apicost_strncasecmp(const char *a, const char *b, size_t n) __asm__("strncasecmp");
    struct apicost_name { size_t len; const char *data; size_t hash; char text[80]; };
    struct apicost_value { uint32_t bits; const char *data; };
    const struct apicost_value *apicost_variable(void *r, struct apicost_name *name, size_t hash)
                                                 __asm__("ngx_http_get_variable");
    size_t apicost_hash(char *low, const char *name, size_t size) __asm__("ngx_hash_strlow");
    int32_t apicost_escapes(char *dst, const char *src, size_t size, size_t kind)
                        __asm__("ngx_escape_uri");
    void *apicost_ssl(void *r, char **err) __asm__("ngx_http_lua_ffi_get_req_ssl_pointer");
    void *apicost_rbio(void *ssl) __asm__("SSL_get_rbio");
    void *apicost_wbio(void *ssl) __asm__("SSL_get_wbio");
    uint64_t apicost_bio_read(void *bio) __asm__("BIO_number_read");
    uint64_t apicost_bio_written(void *bio) __asm__("BIO_number_written");
    int apicost_pending(void *ssl) __asm__("SSL_has_pending");
]]) or pcall(function() return ffi.typeof("struct apicost_time") end)

local function symbol(name)
    return have_ffi and pcall(function() return C[name] end)
end


-- Clocks ---------------------------------------------------------------------------------------

local CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1
local ticks = ffi.new("struct apicost_time")
local clock = C.apicost_clock
clock(CLOCK_MONOTONIC, ticks)
local origin_s = tonumber(ticks.s)

-- CLOCK_MONOTONIC in microseconds since this module was loaded: small enough to stay exact in a
-- double, where nanoseconds since boot would not after 104 days.
local function mono_us()
    clock(CLOCK_MONOTONIC, ticks)
    return (tonumber(ticks.s) - origin_s) * 1e6 + tonumber(ticks.ns) * 1e-3
end
_M.mono_us = mono_us


-- Both clocks now: microseconds as above, and both as text in nanoseconds for a batch's header.
function _M.clocks()
    clock(CLOCK_REALTIME, ticks)
    local unix_ns = str_format("%d%09d", tonumber(ticks.s), tonumber(ticks.ns))
    local now_us = mono_us()
    return now_us, str_format("%d%09d", tonumber(ticks.s), tonumber(ticks.ns)), unix_ns
end


function _M.hostname()
    local name = ffi.new("char[256]")
    if C.apicost_gethostname(name, 255) ~= 0 then
        return "unknown"
    end
    return ffi_str(name)
end


-- Text -----------------------------------------------------------------------------------------

local function hex(c)
    return str_format("%%%02X", str_byte(c))
end


-- Whether bytes above 0x7f are well-formed UTF-8 (RFC 3629), by consuming sequences.
local function is_utf8(s)
    local rest = str_gsub(s, "[\194-\223][\128-\191]", "")
    rest = str_gsub(rest, "\224[\160-\191][\128-\191]", "")
    rest = str_gsub(rest, "[\225-\236\238\239][\128-\191][\128-\191]", "")
    rest = str_gsub(rest, "\237[\128-\159][\128-\191]", "")
    rest = str_gsub(rest, "\240[\144-\191][\128-\191][\128-\191]", "")
    rest = str_gsub(rest, "[\241-\243][\128-\191][\128-\191][\128-\191]", "")
    rest = str_gsub(rest, "\244[\128-\143][\128-\191][\128-\191]", "")
    return not str_find(rest, "[\128-\255]")
end


-- Control characters as %XX; bytes above 0x7f too where they are no UTF-8.
local function escape(s)
    if str_find(s, "[%z\1-\31\127]") then
        s = str_gsub(s, "[%z\1-\31\127]", hex)
    end
    if str_find(s, "[\128-\255]") and not is_utf8(s) then
        s = str_gsub(s, "[\128-\255]", hex)
    end
    return s
end


-- A path or query as RFC 3986 has it: everything outside printable ASCII as %XX.
local function escape_uri(s)
    if str_find(s, "[^!-~]") then
        s = str_gsub(s, "[^!-~]", hex)
    end
    if #s > MAX_PATH then
        s = str_gsub(str_sub(s, 1, MAX_PATH), "%%%x?$", "")  -- no half of an escape
    end
    return s
end


-- A cache from text to what `make` gives for it: at most two generations of MAX_MEMO entries, so that
-- a client that invents names fills no memory. `memo.now[key]` is the fast look, `memo.get` the slow one.
local function new_memo(make)
    local memo = {now = {}}
    local before, size = {}, 0
    function memo.get(key, extra)
        local value = memo.now[key]
        if value ~= nil then
            return value
        end
        value = before[key]
        if value == nil then
            value = make(key, extra)
        end
        if size >= MAX_MEMO then
            before, memo.now, size = memo.now, {}, 0
        end
        memo.now[key] = value
        size = size + 1
        return value
    end
    return memo
end


local texts = new_memo(function(s)
    return escape(str_sub(tostring(s), 1, 512))
end)


-- "application/json" of "Application/JSON"; "" for what is no media type: it could be anything.
local media_types = new_memo(function(s)
    return str_lower(str_match(s, "^%s*([%w!#$&^_.+-]+/[%w!#$&^_.+-]+)%s*$") or "")
end)


-- The port to add to $host: ":8080" of "shop.example:8080". Keyed by $host, a blank, and the Host header.
local function new_ports(default_port)
    return new_memo(function(key)
        local host, sent = str_match(key, "^(%S*) (.*)$")
        local name, port = str_match(sent or "", "^(.-)(:%d+)$")
        if not name or str_lower(name) ~= host or port == default_port then
            return ""
        end
        return port
    end)
end

local plain_ports, tls_ports = new_ports(":80"), new_ports(":443")


-- A parameter's name, where it is not plain ASCII.
local names = new_memo(function(s)
    return escape_uri(s)
end)


-- Names of "a=1&b=2&c": "a&b&*". A parameter without "=" may be a secret on its own, so its name is not
-- sent: "*" stands for it. The slow way, for what the unrolled code of the writer leaves over.
local function query_names(query)
    local found = {}
    for element in str_gmatch(query, "[^&]+") do
        local name = str_match(element, "^([^=]*)=")
        found[#found + 1] = name and escape_uri(name) or "*"
    end
    return table_concat(found, "&")
end


local auth_of = {}
do
    local schemes = {[0] = "", "basic", "bearer", "digest", "other"}
    for bits = 1, 63 do
        local kinds = {}
        local scheme = schemes[bits % 8]
        if scheme and scheme ~= "" then
            kinds[1] = scheme
        end
        for i, kind in ipairs({"apikey", "cookie", "mtls"}) do
            if floor(bits / 2 ^ (i + 2)) % 2 == 1 then
                kinds[#kinds + 1] = kind
            end
        end
        auth_of[bits] = table_concat(kinds, ",")
    end
end


-- The kind of an Authorization header, by its scheme's name alone.
local function scheme_of(value)
    local name = str_lower(str_match(str_sub(value, 1, 8), "^%a+ ") or "")
    return name == "basic " and 1 or name == "bearer " and 2 or name == "digest " and 3 or 4
end


-- The route's own columns, by matched route: gone with it (weak keys).
local routes = setmetatable({}, {__mode = "k"})
local function route_of(ctx)
    local route = ctx.matched_route
    local value = route and route.value or {}
    local columns = {
        texts.get(ctx.route_id or value.id or ""), texts.get(ctx.route_name or value.name or ""),
        texts.get(ctx.service_id or value.service_id or ""),
    }
    local text = table_concat(columns, "\t") .. "\t"
    if route then
        routes[route] = text
    end
    return text
end


-- A connection's own columns. Keyed by $connection, which no process uses twice.
local connections = new_memo(function(_, var)
    local tls = var.ssl_protocol or ""
    local verify = var.ssl_client_verify or "NONE"
    local columns = {
        var.realip_remote_addr or var.remote_addr or "", var.realip_remote_port or "",
        var.server_addr or "", var.server_port or "", tls, var.ssl_cipher or "",
    }
    for i = 1, #columns do
        columns[i] = escape(columns[i])
    end
    return {
        text = table_concat(columns, "\t") .. "\t",
        tls = tls ~= "",
        ports = tls ~= "" and tls_ports or plain_ports,
        mtls = verify ~= "NONE" and verify ~= "" and 32 or 0,
    }
end)


-- The TLS layer -------------------------------------------------------------------------------

local ssl_of = symbol("apicost_ssl") and symbol("apicost_bio_written") and symbol("apicost_rbio")
    and symbol("apicost_wbio") and symbol("apicost_bio_read") and C.apicost_ssl
local ssl_err = ffi.new("char *[1]")

local has_pending = symbol("apicost_pending") and C.apicost_pending  -- OpenSSL 1.1.0

-- Bytes that OpenSSL has read from and written to the client's socket so far, or nil. In the log phase
-- nginx has flushed its TLS buffer, so that this response is in them. "" for those read where OpenSSL
-- holds bytes of what comes next: it reads on as far as its buffer goes, and a body that nginx throws
-- away often comes in together with the next request. A NULL pointer is no `nil` in Lua: it has to be
-- compared.
local function tls_bytes(r)
    if not ssl_of then
        return nil
    end
    local ssl = ssl_of(r, ssl_err)
    if ssl == nil then
        return nil
    end
    local rbio, wbio = C.apicost_rbio(ssl), C.apicost_wbio(ssl)
    if rbio == nil or wbio == nil then
        return nil
    end
    local written = tonumber(C.apicost_bio_written(wbio))
    if has_pending and has_pending(ssl) ~= 0 then
        return "", written
    end
    return tonumber(C.apicost_bio_read(rbio)), written
end


-- The writer -----------------------------------------------------------------------------------

-- What the macros of SOURCE stand for: $COPY(variable) puts a variable, $TEXT(variable) makes it the
-- text `key` ("" where absent), $HAS(variable) sets `has`, $MEDIA(variable) puts a media type,
-- $SCHEME(variable) sets `auth`, $PATH(variable) puts path and query names and sets `has_query`,
-- $LAST(variable) sets `key` to its last byte. In all of them $GET reads the variable. $FIELD(table.name)
-- is a table's field.
local BY_FFI = {
    COPY = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 then buf:putcdata(v.data, band(v.bits, LENGTH)) end]],
    TEXT = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 then key = ffi_str(v.data, band(v.bits, LENGTH)) else key = "" end]],
    HAS = [[v = $GET
    has = v ~= nil and band(v.bits, NOT_FOUND) == 0 and band(v.bits, LENGTH) > 0]],
    MEDIA = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 then
        len = band(v.bits, LENGTH)
        p = memchr(v.data, 59, len)
        if p ~= nil then len = p - v.data end
        key = ffi_str(v.data, len)
        value = media_types.now[key] or media_types.get(key)
        buf:put(value)
    end]],
    SCHEME = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 and band(v.bits, LENGTH) > 0 then
        p, len = v.data, band(v.bits, LENGTH)
        if len > 6 and strncasecmp(p, "bearer ", 7) == 0 then auth = 2
        elseif len > 5 and strncasecmp(p, "basic ", 6) == 0 then auth = 1
        elseif len > 6 and strncasecmp(p, "digest ", 7) == 0 then auth = 3
        else auth = 4 end
    end]],
    PATH = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 then
        p, len = v.data, band(v.bits, LENGTH)
        mark = memchr(p, 63, len)
        if mark ~= nil then
            has_query = true
            rest = len - (mark - p) - 1
            if rest > MAX_PATH then rest = MAX_PATH end
            len = mark - p
        end
        -- How many bytes would have to be escaped; those that are escapes already don't count.
        local bad = escapes(nil, p, len, 0)
        if bad ~= 0 then
            local at = memchr(p, 37, len)
            $PERCENT4
        end
        if bad == 0 and len <= MAX_PATH then
            buf:putcdata(p, len)
        else
            value = escape_uri(ffi_str(p, len))
            buf:put(value)
        end
        buf:put("\t")
        if has_query then
            p = mark + 1
            $NAMES1
        end
    else
        buf:put("\t")
    end]],
    LAST = [[v = $GET
    if v ~= nil and band(v.bits, NOT_FOUND) == 0 and band(v.bits, LENGTH) > 0 then
        key = v.data[band(v.bits, LENGTH) - 1]
    else
        key = 45
    end]],
    GET = [[variable(r, variables + $AT, variables[$AT].hash)]],
}
local BY_VAR = {
    COPY = [[buf:put(ngx_var["$NAME"] or "")]],
    TEXT = [[key = ngx_var["$NAME"] or ""]],
    HAS = [[has = (ngx_var["$NAME"] or "") ~= ""]],
    MEDIA = [[key = str_match(ngx_var["$NAME"] or "", "^[^;]*")
    value = media_types.now[key] or media_types.get(key)
    buf:put(value)]],
    SCHEME = [[key = ngx_var["$NAME"] or ""
    if key ~= "" then auth = scheme_of(key) end]],
    PATH = [[key = ngx_var["$NAME"] or ""
    value, key = str_match(key, "^([^?]*)(.*)$")
    has_query = key ~= ""
    value = escape_uri(value)
    buf:put(value, "\t")
    value = query_names(str_sub(key, 2, MAX_PATH + 1))
    buf:put(value)]],
    LAST = [[key = str_byte(ngx_var["$NAME"] or "-", -1) or 45]],
    GET = "",
}

local SOURCE = [[
return function(buf, ctx, n, now_us, base_us)
    local r, v, p, len, key, value, has = get_request(), nil, nil, 0, nil, nil, nil
    -- First, while little is alive: a trace that begins further down, where a connection is new, was too
    -- much for the register allocator, and was tried in vain at each new connection.
    $TEXT(connection)
    local connection_key = key
    local connection = connections.now[key] or connections.get(key, ngx_var)
    local auth, api_key = 0, 0
    buf:put(n, "\t", floor(now_us - base_us), "\t")
    value = $FIELD(ctx.apicost_access_us)
    if value then buf:put(floor(now_us - value)) end
    buf:put("\t")
    value = $FIELD(ctx.apicost_header_us)
    if value then buf:put(floor(now_us - value)) end
    buf:put("\t")
    $COPY(msec) buf:put("\t")
    $COPY(request_time) buf:put("\t")
    buf:put(connection_key, "\t")
    $COPY(connection_requests)
    buf:put("\t", connection.text)
    $COPY(server_protocol) buf:put("\t")
    if connection.tls then
        len, value = tls_bytes(r)
        if len then buf:put(len, "\t", value, "\t") else buf:put("\t\t") end
    else
        buf:put("\t\t")
    end
    $COPY(request_method) buf:put("\t")
    $TEXT(host)
    value = texts.now[key] or texts.get(key)
    buf:put(value)
    value = key
    $TEXT(http_host)
    if key ~= value and key ~= "" then
        key = value .. " " .. key
        value = connection.ports.now[key] or connection.ports.get(key)
        buf:put(value)
    end
    buf:put("\t")
    local has_query, mark, rest = false, nil, 0
    $PATH(request_uri)
    buf:put("\t")
    $TEXT(upstream_uri)
    if key ~= "" then
        value = upstream_path(key, ngx_var.request_uri)
        buf:put(value)
    end
    value = routes[$FIELD(ctx.matched_route) or NO_ROUTE] or route_of(ctx)
    buf:put("\t", value)
    key = $FIELD(ctx.consumer_name)
    if key then
        value = texts.now[key] or texts.get(key)
        buf:put(value)
    end
    buf:put("\t")
    key = $FIELD(ctx.curr_req_matched)
    key = key and $FIELD(key._path)
    if key then
        value = texts.now[key] or texts.get(key)
        buf:put(value)
    end
    buf:put("\t")
    $COPY(status) buf:put("\t")
    $TEXT(upstream_addr)
    local tries = key
    -- As core.response.get_response_source does from 3.17 on, and the same by hand before.
    value = $FIELD(ctx._resp_source)
    if not value then
        if tries ~= "" then
            $LAST(upstream_header_time)
            value = key ~= 45 and "upstream" or "nginx"
        else
            value = $FIELD(ctx._apisix_proxied) and "nginx" or "apisix"
        end
    end
    buf:put(value, "\t")
    $COPY(request_length) buf:put("\t")
    $COPY(bytes_sent) buf:put("\t")
    $COPY(body_bytes_sent) buf:put("\t")
    $COPY(content_length) buf:put("\t")
    $MEDIA(content_type) buf:put("\t")
    $MEDIA(sent_http_content_type) buf:put("\t")
    if tries ~= "" then
        $COPY(upstream_scheme)
        value = texts.now[tries] or texts.get(tries)
        buf:put("\t", value, "\t")
        $COPY(upstream_status) buf:put("\t")
        -- ai-proxy speaks to the model by itself and tells nginx of address, status and times alone:
        -- the zeros that nginx then has for bytes are not known to be true.
        if $FIELD(ctx.picked_ai_instance) then
            buf:put("\t\t")
        else
            $COPY(upstream_bytes_sent) buf:put("\t")
            $COPY(upstream_bytes_received) buf:put("\t")
        end
        $COPY(upstream_connect_time) buf:put("\t")
        $COPY(upstream_response_time) buf:put("\t")
    else
        buf:put("\t\t\t\t\t\t\t")
    end
    $SCHEME(http_authorization)
    $API_KEY_HEADERS
    if has_query and api_key == 0 then
        $API_KEY_QUERY
    end
    auth = auth + api_key + connection.mtls
    $HAS(http_cookie)
    if has then auth = auth + 16 end
    if auth > 0 then buf:put(auth_of[auth]) end
    buf:put("\t")
    $TEXT(llm_model)
    if key ~= "" then
        value = texts.now[key] or texts.get(key)
        buf:put(value, "\t")
        $COPY(llm_prompt_tokens) buf:put("\t")
        $COPY(llm_completion_tokens) buf:put("\t")
    else
        buf:put("\t\t\t")
    end
    $COPY(request_id) buf:put("\n")
    -- A call that is never compiled ends the trace here. So the caller's traces jump into this one instead of
    -- taking it in, and none has to leave the caller's pcall, which a trace that began inside can't.
    end_trace()
end
]]

local NO_ROUTE = {}

-- The raw path sent upstream where it differs from the client's.
local function upstream_path(upstream_uri, request_uri)
    local sent = escape_uri(str_match(upstream_uri, "^[^?]*"))
    return sent == escape_uri(str_match(request_uri or "", "^[^?]*")) and "" or sent
end


-- Code that looks for a key in each of some variables.
local function key_checks(prefix, wanted)
    local checks = {}
    for _, name in ipairs(wanted or {}) do
        checks[#checks + 1] = "if api_key == 0 then $HAS(" .. prefix .. name .. ") if has then api_key = 8 end end"
    end
    return table_concat(checks, "\n")
end


-- Code for the names of a query, unrolled: a loop would not compile where it stands.
local function names_code(depth)
    if depth > MAX_UNROLLED then
        return "if rest > 0 then value = query_names(ffi_str(p, rest)) buf:put('&', value) end"
    end
    return [[
    if rest > 0 then
        len = rest
        mark = memchr(p, 38, rest)
        if mark ~= nil then len = mark - p end
        ]] .. (depth > 1 and [[buf:put("&")]] or "") .. [[
        mark = memchr(p, 61, len)
        if mark ~= nil then
            if escapes(nil, p, mark - p, 0) == 0 then
                buf:putcdata(p, mark - p)
            else
                key = ffi_str(p, mark - p)
                value = names.now[key] or names.get(key)
                buf:put(value)
            end
        elseif len > 0 then
            buf:put("*")
        end
        p, rest = p + len + 1, rest - len - 1
    ]] .. names_code(depth + 1) .. "\nend"
end


-- Code that takes "%" signs off the count of bytes to be escaped.
local function percent_code(depth)
    if depth == 0 then
        return ""
    end
    return "if at ~= nil then bad = bad - 1 at = memchr(at + 1, 37, len - (at - p) - 1)\n"
        .. percent_code(depth - 1) .. "\nend"
end


-- Number of a text in a list, from 0; added at its end where it is new.
local function place_of(list, text)
    for i = 1, #list do
        if list[i] == text then
            return i - 1
        end
    end
    list[#list + 1] = text
    return #list - 1
end


-- The writer's source; fills `variables` and `fields` with the names that it reads.
local function generate(macros, settings, variables, fields)
    local headers = {}
    for i, name in ipairs(settings.api_key_headers or {}) do
        headers[i] = str_gsub(str_lower(name), "-", "_")
    end
    local pieces = {
        API_KEY_HEADERS = key_checks("http_", headers),
        API_KEY_QUERY = key_checks("arg_", settings.api_key_query),
        NAMES1 = names_code(1),
        PERCENT4 = percent_code(4),
    }
    local source = str_gsub(SOURCE, "%$(API_KEY_%u+)", pieces)
    source = str_gsub(source, "%$(%u+)(%b())", function(macro, bracketed)
        local name = str_sub(bracketed, 2, -2)
        local of, field = str_match(name, "^(%w+)%.([%w_]+)$")
        if of then
            return of .. "[fields[" .. place_of(fields, field) + 1 .. "]]"
        end
        local get = str_gsub(macros.GET, "%$AT", place_of(variables, name))
        local code = str_gsub(macros[macro], "%$(%u+%d)", pieces)
        code = str_gsub(code, "%$NAME", name)
        return (str_gsub(code, "%$GET", get))
    end)
    return source
end


-- The writer with everything it uses as upvalues (a chunk may have 60 of them): globals would be
-- looked up by name each time.
local function compile(macros, settings, env)
    local variables, fields = {}, {}
    local writer = generate(macros, settings, variables, fields)
    env.fields = fields
    if env.variable then
        env.variables = ffi.new("struct apicost_name[?]", #variables)
        for i, name in ipairs(variables) do
            local at = env.variables[i - 1]
            at.len, at.data, at.hash = #name, at.text, C.apicost_hash(at.text, name, #name)
        end
    end
    local names, values = {}, {}
    for name in pairs(env) do
        names[#names + 1] = name
        values[#values + 1] = "env." .. name
    end
    local source = "local env = ...\nlocal " .. table_concat(names, ", ") .. " = "
        .. table_concat(values, ", ") .. "\n" .. writer
    local chunk, err = loadstring(source, "=apicost-logger writer")
    if not chunk then
        error(err)
    end
    return chunk(env)
end


local function request_by_ffi()
    local ok, base = pcall(require, "resty.core.base")
    return ok and ffi.abi("le") and symbol("apicost_variable") and symbol("apicost_hash")
        and symbol("apicost_escapes") and base.get_request
end


-- Make `_M.write(buf, ctx, n, now_us, base_us)`: puts one line into a buffer, LF included.
-- buf: what `_M.new_buffer` gives. n: the line's number less its batch's first.
-- now_us, base_us: `mono_us` now and at the batch's start.
-- Raises only what is a defect or a variable that this nginx lacks; the caller guards.
function _M.configure(settings)
    local get_request = request_by_ffi()
    local env = {
        auth_of = auth_of, connections = connections, end_trace = coroutine.running,
        escape_uri = escape_uri, ffi_str = ffi_str, floor = floor, get_request = get_request or function() end,
        MAX_PATH = MAX_PATH,
        media_types = media_types, names = names, ngx_var = ngx.var, NO_ROUTE = NO_ROUTE,
        query_names = query_names, route_of = route_of, routes = routes, scheme_of = scheme_of,
        str_byte = str_byte, str_match = str_match, str_sub = str_sub, texts = texts,
        tls_bytes = get_request and tls_bytes or function() end, upstream_path = upstream_path,
    }
    if get_request then
        env.variable, env.escapes = C.apicost_variable, C.apicost_escapes
        env.memchr, env.strncasecmp = C.apicost_memchr, C.apicost_strncasecmp
        env.band, env.LENGTH, env.NOT_FOUND = bit.band, 0x0fffffff, 0x40000000
    end
    _M.reads = get_request and "ffi" or "ngx.var"
    local write = compile(get_request and BY_FFI or BY_VAR, settings, env)

    -- The first line is written often enough for LuaJIT to compile the writer. Not compiled itself, so that
    -- the trace begins at the writer and not at a loop here.
    local first
    function first(buf, ctx, n, now_us, base_us)
        if _M.write == first then
            _M.write = write
        end
        local scratch = _M.new_buffer()
        for _ = 1, WARM_CALLS do
            write(scratch, ctx, n, now_us, base_us)
        end
        write(buf, ctx, n, now_us, base_us)
    end
    jit.off(first)
    _M.write = first
end


-- What else speaks of requests says it as lines do.
_M.text, _M.media_type, _M.escape_uri = texts.get, media_types.get, escape_uri
_M.query_names, _M.upstream_path = query_names, upstream_path


-- Buffers --------------------------------------------------------------------------------------

local has_buffer, string_buffer = pcall(require, "string.buffer")

-- The same four methods by hand, where LuaJIT is older than its string.buffer.
local parts_mt = {}
parts_mt.__index = parts_mt

function parts_mt.put(self, ...)
    for i = 1, select("#", ...) do
        local text = tostring((select(i, ...)))
        local count = self.count + 1
        self[count], self.count, self.bytes = text, count, self.bytes + #text
    end
end

function parts_mt.take(self)
    local text = table_concat(self, "", 1, self.count)
    self.count, self.bytes = 0, 0
    return text
end


-- A buffer for lines; `_M.size(buf)` and `_M.take(buf)` go with it.
function _M.new_buffer()
    if has_buffer then
        return string_buffer.new(65536)
    end
    return setmetatable({count = 0, bytes = 0}, parts_mt)
end

if has_buffer then
    function _M.size(buf) return #buf end
    function _M.take(buf) return buf:get() end
else
    function _M.size(buf) return buf.bytes end
    function _M.take(buf) return buf:take() end
end


return _M
