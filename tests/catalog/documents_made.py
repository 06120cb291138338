"""OpenAPI documents made up for property tests: mostly sound, often odd, of any version."""

from hypothesis import strategies as st

WORDS = ["a", "b", "orders", "{id}", "{id}.json", "{x}{y}", "{+rest}", "items", "v1"]
keys = st.lists(st.sampled_from(WORDS), max_size=4).map(lambda parts: "/" + "/".join(parts))
templates = st.one_of(
    keys,
    st.builds(lambda key, end: key + end, keys, st.sampled_from(["#one", "#two", "?kind=x", "?kind", "/"])),
    st.sampled_from(["no/slash", "x-own", "/a//b", "/%7Eme", "/{", "/a{}"]),
)
# Anything where something else belongs.
odd = st.sampled_from([None, True, 7, -1.5, "", "text", [], {}, [None], [{}], {"a": 1}, {"$ref": "#/nowhere"},
                       {"$ref": "#/components/parameters/Round"}, {"$ref": "https://other.test/x"}])  # fmt: skip


def either(usual):
    """Usually what belongs there."""
    return st.integers(0, 11).flatmap(lambda draw: odd if draw == 0 else usual)


schemas = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": ["string", "null"]}, True, {},
                     {"$ref": "#/components/schemas/Loop"}]),
    lambda inner: st.one_of(
        st.builds(lambda of: {"type": "array", "items": of}, inner),
        st.fixed_dictionaries(
            {"type": st.just("object")},
            optional={
                "properties": st.dictionaries(st.sampled_from(["p", "q", "r"]), inner, max_size=3),
                "required": either(st.lists(st.sampled_from(["p", "q"]), max_size=2)),
                "additionalProperties": st.one_of(st.booleans(), inner),
            },
        ),
        st.dictionaries(st.sampled_from(["allOf", "oneOf", "anyOf"]), st.lists(inner, max_size=2), max_size=1),
    ),
    max_leaves=4,
)  # fmt: skip
parameters = st.one_of(
    st.sampled_from([{"$ref": "#/components/parameters/Page"}, {"$ref": "#/components/parameters/Round"}]),
    st.fixed_dictionaries(
        {
            "name": either(st.sampled_from(["id", "page", "filter", "ids[]", "x", "y"])),
            "in": either(st.sampled_from(["query", "path", "header", "cookie", "querystring", "body", "formData"])),
        },
        optional={
            "required": either(st.booleans()),
            "deprecated": st.booleans(),
            "style": st.sampled_from(["form", "deepObject", "pipeDelimited"]),
            "explode": st.booleans(),
            "schema": schemas,
            "x-multi-segment": st.booleans(),
        },
    ),
)
contents = st.dictionaries(
    st.sampled_from(["application/json", "Text/Plain; charset=utf-8", "*/*", "image/*", "json"]),
    st.builds(lambda schema: {"schema": schema}, schemas),
    max_size=2,
)
responses = st.dictionaries(
    st.sampled_from(["200", "404", "4XX", "5xx", "default", "x-own", "odd", 201, "099"]),
    either(st.fixed_dictionaries({"description": st.just("d")}, optional={"content": either(contents),
                                                                       "schema": schemas})),
    max_size=4,
)  # fmt: skip
security = st.lists(
    either(st.dictionaries(st.sampled_from(["key", "token", "unknown"]), st.just([]), max_size=2)), max_size=2
)
servers = st.lists(
    either(
        st.fixed_dictionaries(
            {
                "url": st.sampled_from(
                    ["/", "/v1", "https://s.example/v1", "//t.example/{base}", "https://{name}.example"]
                )
            },
            optional={"variables": either(st.just({"base": {"default": "v2", "enum": ["v2", "v3"]}}))},
        )
    ),
    max_size=3,
)
operations = st.fixed_dictionaries(
    {},
    optional={
        "operationId": either(st.sampled_from(["one", "two", "three"])),
        "deprecated": either(st.booleans()),
        "parameters": either(st.lists(parameters, max_size=4)),
        "requestBody": either(st.builds(lambda content: {"content": content, "required": True}, contents)),
        "responses": either(responses),
        "security": either(security),
        "servers": either(servers),
        "consumes": either(st.just(["application/json"])),
        "produces": either(st.just(["application/json; v=1"])),
        "tags": either(st.just(["t"])),
    },
)
path_items = st.fixed_dictionaries(
    {},
    optional={
        "get": either(operations),
        "post": either(operations),
        "head": operations,
        "query": operations,
        "additionalOperations": either(st.dictionaries(st.sampled_from(["LINK", "get"]), operations, max_size=1)),
        "parameters": either(st.lists(parameters, max_size=2)),
        "servers": either(servers),
        "$ref": st.sampled_from(["#/components/pathItems/Shared", "#/components/pathItems/Round", "other.json"]),
    },
)
SHARED = {
    "parameters": {
        "Page": {"name": "page", "in": "query", "schema": {"type": "integer"}},
        "Round": {"$ref": "#/components/parameters/Round"},
    },
    "schemas": {"Loop": {"allOf": [{"$ref": "#/components/schemas/Loop"}, {"type": "object"}]}},
    "securitySchemes": {
        "key": {"type": "apiKey", "in": "query", "name": "apikey"},
        "token": {"type": "http", "scheme": "Bearer"},
    },
    "pathItems": {
        "Shared": {"get": {"operationId": "shared"}, "parameters": [{"$ref": "#/components/parameters/Page"}]},
        "Round": {"$ref": "#/components/pathItems/Round"},
    },
}


@st.composite
def openapi_documents(draw):
    """A whole document; what belongs to one version may stand in another."""
    version = draw(st.sampled_from(["3.0.3", "3.1.0", "3.2.0", "2.0"]))
    document = {"swagger": version} if version == "2.0" else {"openapi": version}
    document["info"] = {"title": "made", "version": "1"}
    document["paths"] = draw(st.dictionaries(templates, either(path_items), max_size=5))
    document["components"] = SHARED
    for name, values in (("servers", servers), ("security", security)):
        if draw(st.booleans()):
            document[name] = draw(either(values))
    if draw(st.booleans()):
        document["host"], document["basePath"] = "s.example", draw(either(st.just("/v1")))
    return document
