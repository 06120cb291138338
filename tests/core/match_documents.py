"""Small catalogues for the matcher's tests, written as a person would say them."""

from apicost.core.naming.match import Api, Claim, Index, Operation, Place
from apicost.core.naming.operations import ANY, EXACT_HOST, HOST_PATTERN, HostPattern
from apicost.core.naming.paths import parse_template


def host_pattern(text):
    """ "shop.example", "*.shop.example" or "" for any host."""
    if not text:
        return ANY
    pieces = tuple(text.split("*"))
    return HostPattern(HOST_PATTERN if len(pieces) > 1 else EXACT_HOST, pieces)


def place(api, line, host="", base="", prefix="", name=None):
    """The place of "GET /orders/{id}"; the operation's id is the line itself."""
    method, key = line.split(" ", 1)
    template = parse_template(key)
    front = (*parse_template(prefix).segments, *parse_template(base).segments) if prefix or base else ()
    if prefix and not base:
        front = parse_template(prefix).segments
    if base and not prefix:
        front = parse_template(base).segments
    operation = Operation(
        api=api,
        operation_id=name or line,
        method=method,
        path_template=base + key.partition("#")[0],
        spec=f"{api}.yaml",
        pointer=f"/paths/{key.replace('~', '~0').replace('/', '~1')}/{method.lower()}",
    )
    return Place(
        operation=operation,
        hosts=(host_pattern(host),),
        segments=(*front, *template.segments),
        base_segments=len(front),
        discriminators=template.discriminators,
    )


def api(id, lines, *, hosts=("",), base="", prefix="", **settings):
    """An API with one operation per line, under each host and the base path."""
    places = tuple(place(id, line, host, base, prefix) for line in lines for host in hosts)
    front = parse_template(prefix + base).segments if prefix + base else ()
    claims = tuple(Claim(host=host_pattern(host), base=front) for host in hosts)
    return Api(id=id, places=places, claims=claims, **settings)


def index(*apis):
    """An index of APIs, or of lines for a single API on any host."""
    if apis and isinstance(apis[0], str):
        return Index([api("one", apis)])
    return Index(list(apis))


def found(index, method, path, host="any.example", **more):
    """The operation's id, or what there is instead of one."""
    match = index.find(method, host, path, **more)
    return match.operation.operation_id if match.operation else match.state
