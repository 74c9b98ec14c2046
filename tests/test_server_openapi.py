"""The description of all requests: valid, whole, and true of the server that gives it."""

import re
from urllib.parse import quote

import openapi_spec_validator
import pytest

from diced.server.routes import variants

METHODS = {"get", "head", "post", "put", "delete"}


@pytest.fixture
def document(server):
    return server.get("openapi.json").json


def operations(document):
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def parameters(document, operation):
    """Return the parameters of an operation, references followed."""
    found = []
    for each in operation["parameters"]:
        if "$ref" in each:
            kind, name = each["$ref"].split("/")[-2:]
            each = document["components"][kind][name]
        found.append(each)
    return found


def test_it_is_valid(document):
    assert document["openapi"].startswith("3.1")
    openapi_spec_validator.validate(document)


def test_every_route_is_in_it(server, document):
    shapes = {
        (re.sub(r"\{[^}]*\}", "{}", path), method) for path, method, _ in operations(document)
    }
    site = server.app.site
    tables = [("", site.table), ("/api/node/{uuid}/{name}/", site.common)]
    tables += [("/api/node/{uuid}/{name}/", each.table) for each in site.types()]
    for prefix, table in tables:
        for route in table.routes:
            for pattern in variants(route.pattern):
                shape = re.sub(r"\{[^}]*\}", "{}", prefix + pattern)
                for method in route.methods:
                    assert (shape, method.lower()) in shapes, (shape, method)


def test_operations_have_names_and_what_their_paths_need(document):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names)) > 100
    for path, method, operation in operations(document):
        assert method in METHODS
        assert operation["summary"]
        assert {"200", "400", "default"} <= set(operation["responses"])
        found = parameters(document, operation)
        in_path = {each["name"] for each in found if each["in"] == "path"}
        assert in_path == set(re.findall(r"\{([^}]*)\}", path))
        assert all(each["required"] for each in found if each["in"] == "path")
        assert all(each["description"] and each["schema"] for each in found)
        keys = [(each["in"], each["name"]) for each in found]
        assert len(keys) == len(set(keys))
        if "requestBody" in operation:
            assert operation["requestBody"]["content"]


def test_several_types_at_one_path_are_told_together(document):
    item = document["paths"]["/api/node/{uuid}/{name}/raw/{dims}/{size}/{offset}"]
    assert {"uint8blk", "labelblk"} <= set(item["get"]["tags"])
    assert "requestBody" in item["post"]
    names = {each["name"] for each in parameters(document, item["get"])}
    assert {"throttle", "u", "admintoken"} <= names


def test_what_it_describes_is_answered_and_never_with_5xx(server, document):
    """Every operation is called as described; texts are examples, or plain ones."""
    uuid = server.repo()
    for kind in ("uint8blk", "keyvalue", "roi", "labelgraph", "labelblk"):
        server.instance(uuid, kind, kind)
    for path, method, operation in operations(document):
        if "/settings" in path or method == "delete":
            continue
        tags = [each for each in operation["tags"] if each in ("keyvalue", "roi", "labelgraph")]
        given = {"uuid": uuid, "name": tags[0] if tags else "uint8blk", "type": "roi"}
        filled, query = path, {}
        for each in parameters(document, operation):
            value = str(each["schema"].get("examples", each["schema"].get("enum", ["1"]))[0])
            if each["in"] == "path":
                value = quote(given.get(each["name"], value), safe="")
                filled = filled.replace("{" + each["name"] + "}", value)
            elif each["name"] != "admintoken":
                query[each["name"]] = value
        body = b"{}" if "requestBody" in operation else b""
        reply = server.ask(method.upper(), filled, body, query=query)
        assert reply.status < 500, (method, filled, query, reply)
        known = set(operation["responses"])
        assert str(reply.status) in known or reply.status in (206, 416), (method, filled, reply)
