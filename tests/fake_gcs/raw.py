"""Requests to a bucket without a client library of Google's: what goes over the wire."""

from urllib.parse import quote


class Raw:
    """Requests without a client library, to one bucket."""

    def __init__(self, server, pool, token=None):
        self.server, self.pool, self.bucket = server, pool, server.bucket
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method, path, body=None, headers=None, **query):
        text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
        url = f"{self.server.endpoint}{path}?{text}"
        headers = {**self.headers, **(headers or {})}
        return self.pool.request(method, url, body=body, headers=headers, retries=False)

    def put(self, name, data, headers=None, **query):
        query = {"uploadType": "media", "name": name, **query}
        headers = {"Content-Type": "application/x-test", **(headers or {})}
        return self("POST", f"/upload/storage/v1/b/{self.bucket}/o", data, headers, **query)

    def path(self, name):
        return f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}"

    def get(self, name, headers=None, **query):
        return self("GET", self.path(name), None, headers, alt="media", **query)

    def stat(self, name, **query):
        return self("GET", self.path(name), **query)

    def delete(self, name, **query):
        return self("DELETE", self.path(name), **query)

    def names(self, **query):
        found = self("GET", f"/storage/v1/b/{self.bucket}/o", **query).json()
        return [item["name"] for item in found.get("items", ())], found
