"""The repos of a store: which there are, what they are called, and how that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diced.errors import AlreadyExistsError, NotFoundError, near_matches
from diced.meta import DEAD, GONE, INFO, REPOS, Edits, Meta, Tables
from diced.names import all_names, check_name, named

# The tables of a store's metadata lane.
TABLES = (REPOS, INFO, DEAD, GONE)

# Changes the fields of a repo in place; it is given all tables as well.
Change = Callable[[dict[str, Any], Tables], None]


class Catalog:
    """The repos of a store, as its metadata lane has them now, and what is said of the store.

    Parameters
    ----------
    meta : Meta
        With `TABLES`.
    url : str
        What messages call the store.
    """

    def __init__(self, meta: Meta, url: str):
        self._meta = meta
        self._url = url

    # -- reading ---------------------------------------------------------------------------

    def repos(self) -> dict[bytes, Any]:
        """Return the fields of every repo by its id. Shared: do not change them."""
        return self._meta.read()[1][REPOS]

    def names(self) -> dict[str, str]:
        """Return the id of every repo by its name."""
        return {each["name"]: key.decode() for key, each in self.repos().items()}

    def id_of(self, name: str) -> str:
        """Find a repo by name or by the whole UUID of its root: never by less, since what is
        asked may be its deletion.

        Raises
        ------
        NotFoundError
        """
        names = self.names()
        if name in names:
            return names[name]
        for key, each in self.repos().items():
            if each["uuid"] == name:
                return key.decode()
        raise NotFoundError(f"no repo {name!r} in {self._url}" + near_matches(str(name), names))

    def fields(self, repo_id: str) -> dict[str, Any]:
        """Return what is stored of a repo.

        Raises
        ------
        NotFoundError
            It was deleted.
        """
        fields: dict[str, Any] | None = self.repos().get(repo_id.encode())
        if fields is None:
            raise NotFoundError(f"the repo was deleted from {self._url}")
        return fields

    def info(self) -> dict[str, Any]:
        """Return what is said of the store as a whole."""
        return {key.decode(): value[0] for key, value in self._meta.read()[1][INFO].items()}

    # -- changing --------------------------------------------------------------------------

    def enter(self, repo_id: str, fields: dict[str, Any], alias: bool, user: str) -> str:
        """Enter a repo that was founded; return what is wrong with its name, or empty text.

        With `alias` a name that is taken, or empty, gives way to one that is free. The repo is not
        entered either if a sweep of orphans took it meanwhile.
        """
        key, taken = repo_id.encode(), ""

        def edit(tables: Tables, _number: int) -> Edits:
            nonlocal taken
            others = tables[REPOS].values()
            new = named(fields, fields["name"], others) if alias else fields
            clashes = [each for each in (new["name"], new["uuid"]) if each in all_names(others)]
            taken = f"a repo {clashes[0]!r} exists" if clashes else ""
            if key in tables[DEAD] or key in tables[GONE]:
                return []
            # What was founded is unreachable if the name is taken; the sweep takes it.
            return [(DEAD, key, fields["name"]) if taken else (REPOS, key, new)]

        self._meta.transact(edit, op=f"create repo {fields['name']}", user=user)
        return taken

    def edit(self, name: str, change: Change, op: str, user: str) -> None:
        """Change the fields of a repo atomically."""
        key = self.id_of(name).encode()

        def edit(tables: Tables, _number: int) -> Edits:
            if key not in tables[REPOS]:
                raise NotFoundError(f"repo {name!r} was deleted")
            fields = dict(tables[REPOS][key])
            change(fields, tables)
            return [(REPOS, key, fields)]

        self._meta.transact(edit, op=op, user=user)

    def rename(self, name: str, new_name: str, alias: bool, user: str) -> None:
        """Give a repo another name; with `alias` as for `enter`."""
        if new_name or not alias:
            check_name("repo", new_name)

        def change(fields: dict[str, Any], tables: Tables) -> None:
            others = [each for each in tables[REPOS].values() if each["uuid"] != fields["uuid"]]
            taken = new_name in all_names(others)
            if not alias and (taken or fields["name"] == new_name):
                raise AlreadyExistsError(f"a repo {new_name!r} exists already in {self._url}")
            new = named(fields, new_name, others)
            fields.clear()
            fields.update(new)

        self.edit(name, change, f"rename repo to {new_name}", user)

    def bury(self, name: str, user: str) -> str:
        """Move a repo to the dead, which makes it invisible; return its id."""
        repo_id = self.id_of(name)
        key = repo_id.encode()

        def edit(tables: Tables, _number: int) -> Edits:
            if key not in tables[REPOS]:
                raise NotFoundError(f"repo {name!r} was deleted already")
            return [(REPOS, key, None), (DEAD, key, tables[REPOS][key]["name"])]

        self._meta.transact(edit, op="delete repo", user=user)
        return repo_id

    def edit_info(self, change: Callable[[dict[str, Any]], dict[str, Any]], user: str) -> None:
        """Change what is said of the store atomically."""

        def edit(tables: Tables, _number: int) -> Edits:
            old = {key.decode(): value[0] for key, value in tables[INFO].items()}
            new = change(dict(old))
            gone: Edits = [(INFO, key.encode(), None) for key in old if key not in new]
            # The value None would read as a deletion, so values are wrapped in a list.
            return gone + [(INFO, key.encode(), [new[key]]) for key in new]

        self._meta.transact(edit, op="info", user=user)
