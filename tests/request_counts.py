"""The requests of each call, as ``python -m tests.test_requests --update`` wrote them down.

Name of the call: version: of a store opened just now, right after that, and when max_age has
passed. i is insert, l list, g get, s stat, d delete.
"""

COUNTS: dict[str, dict[str, list[str]]] = {
    "`DicedStore(new)`": {
        "open": ["1i 2l 2g", "1i 2l 2g", "1i 2l 2g"],
    },
    "`DicedStore(there)`": {
        "open": ["1l 4g", "1l 4g", "1l 4g"],
    },
    "`DicedStore(there, readonly=True)`": {
        "open": ["1l 1g", "1l 1g", "1l 1g"],
    },
    "`store.create_repo`": {
        "open": ["2i 1l 1g", "2i 1l 1g", "2i 1l 2g"],
    },
    "`store.open_repo(name)`": {
        "open": ["1l 7g", "", "2g"],
    },
    "`store.open_repo(name, version=)`": {
        "open": ["1l 7g", "", "2g"],
    },
    "`store.open_repo(uuid=)`, one of 2 repos": {
        "open": ["2l 9g", "", "3g"],
    },
    "`store.list_repos`": {
        "open": ["", "", "1g"],
    },
    "`store.get_repouuid`, `store.repo_info`": {
        "open": ["", "", "1g"],
    },
    "`store.rename_repo`": {
        "open": ["1i", "1i", "1i 1g"],
    },
    "`store.describe_repo`": {
        "open": ["1i", "1i", "1i 1g"],
    },
    "read `store.info`": {
        "open": ["", "", "1g"],
    },
    "change `store.info`": {
        "open": ["1i", "1i", "1i"],
    },
    "`store.delete_repo`, the sweep of its 2 objects behind it included": {
        "open": ["2i 1l 2d", "2i 1l 2d", "2i 1l 1g 2d"],
    },
    "`store.sweep`, nothing to do": {
        "open": ["2l 9g", "", "3g"],
    },
    "`store.close`": {
        "open": ["", "", ""],
    },
    "`repo.uuid`, `repo.root`, `repo.get_current_version`": {
        "open": ["", "", ""],
        "locked": ["", "", ""],
    },
    "`repo.name`, `repo.description`": {
        "open": ["", "", "1g"],
        "locked": ["", "", "1g"],
    },
    "`repo.locked`": {
        "open": ["", "", "1g"],
        "locked": ["", "", ""],
    },
    "`repo.get_array`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.list_instances`": {
        "open": ["1l 2g", "", "3g"],
        "locked": ["1g", "", "2g"],
    },
    "`repo.list_instances(True)`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.create_array`": {
        "open": ["1i", "1i", "1i 1g"],
    },
    "`repo.delete_array`, the sweep of its 1 object behind it included": {
        "open": ["2i 2l 2g 1d", "2i 2l 2g 1d", "2i 2l 3g 1d"],
    },
    "`repo.lock_node`, 1 array and 1 file written": {
        "open": ["8i 1l 2g", "8i 1g", "8i 2g"],
    },
    "`repo.create_branch`": {
        "locked": ["1i", "1i", "1i 2g"],
    },
    "`repo.change_version`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.versions`, `repo.branches`, `repo.tags`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.get_commit_log`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.note`, `repo.log`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.tag`": {
        "locked": ["1i", "1i", "1i 2g"],
    },
    "`repo.set_note`": {
        "open": ["1i", "1i", "1i 1g"],
    },
    "`repo.add_log`": {
        "open": ["1i", "1i", "1i 1g"],
        "locked": ["1i", "1i", "1i 1g"],
    },
    "`repo.reserve_ids`": {
        "open": ["1i", "1i", "1i 1g"],
        "locked": ["1i", "1i", "1i 1g"],
    },
    "`repo.operations(name)`": {
        "open": ["2l 3g", "2l 3g", "2l 5g"],
        "locked": ["1l 2g", "1l 2g", "1l 4g"],
    },
    "`array.dtype`, `array.block_shape` and what else it is created with": {
        "open": ["", "", ""],
        "locked": ["", "", ""],
    },
    "`array.voxel_size`, `array.units`, read `array.attrs`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`array.locked`": {
        "open": ["", "", "1g"],
        "locked": ["", "", ""],
    },
    "change `array.attrs`": {
        "open": ["1i", "1i", "1i 1g"],
        "locked": ["1i", "1i", "1i 1g"],
    },
    "`array.get_extents`, `array.bounds`, `array.shape`, `array.size`, `array.nbytes`": {
        "open": ["1l 3g", "", "3g"],
        "locked": ["1g", "", ""],
    },
    "`array.blocks`": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", ""],
    },
    "read 1 voxel": {
        "open": ["1l 5g", "1g", "4g"],
        "locked": ["3g", "1g", "1g"],
    },
    "`array.read` of 64 blocks, up to 8 MiB of one segment": {
        "open": ["1l 6g", "2g", "5g"],
        "locked": ["3g", "1g", "1g"],
    },
    "read where nothing was written": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", ""],
    },
    "write, up to 288 KiB of whole blocks": {
        "open": ["1i 1l 4g", "1i", "1i 2g"],
    },
    "write, up to 32 MiB of whole blocks": {
        "open": ["2i 1l 4g", "2i", "2i 2g"],
    },
    "write of part of a block": {
        "open": ["1i 1l 5g", "1i 1g", "1i 3g"],
    },
    "write of parts of 8 blocks of one segment": {
        "open": ["1i 1l 5g", "1i 1g", "1i 3g"],
    },
    "`array.batch` of 3 writes": {
        "open": ["1i 1l 4g", "1i", "1i 2g"],
    },
    "`array.snapshot`": {
        "open": ["1l 3g", "", "3g"],
        "locked": ["1g", "", ""],
    },
    "`array.plane` through 16 blocks": {
        "open": ["1l 5g", "1g", "4g"],
        "locked": ["3g", "1g", "1g"],
    },
    "`array.write_plane` through 16 blocks": {
        "open": ["1i 1l 5g", "1i 1g", "1i 3g"],
    },
    "`array.pyramid`, `array.level`": {
        "open": ["1l 3g", "", "3g"],
        "locked": ["1g", "", "2g"],
    },
    "read 1 block of `array.level(1)` that is not stored": {
        "open": ["1l 6g", "2g", "5g"],
        "locked": ["3g", "1g", "3g"],
    },
    "`array.update_pyramid` with nothing to do": {
        "open": ["1g", "", "5g"],
        "locked": ["", "", "4g"],
    },
    "`array.to_dask`, `compute` of 64 blocks": {
        "open": ["1l 6g", "2g", "5g"],
        "locked": ["3g", "1g", "3g"],
    },
    "`array.from_dask`, 2 chunks": {
        "open": ["7i 3l 8g 4s 3d", "7i 2l 5g 4s 3d", "7i 2l 7g 4s 3d"],
    },
    "`array.session`": {
        "open": ["1i 1l 3g", "1i 1g", "1i 3g"],
    },
    "3 writes through one object, each up to 288 KiB: `session.write`": {
        "open": ["6i 1g 4s", "6i 4s", "6i 3g 4s"],
    },
    "`session.commit` of 3 parts": {
        "open": ["2i 2l 5g 1s 4d", "2i 2l 5g 1s 4d", "2i 2l 7g 1s 4d"],
    },
    "`session.discard` of 3 parts": {
        "open": ["1i 2l 1g 4d", "1i 2l 1g 4d", "1i 2l 3g 4d"],
    },
    "`array.session(resume=)`": {
        "open": ["1g", "1g", "3g"],
    },
    "`array.sessions`": {
        "open": ["1l", "1l", "1l 2g"],
        "locked": ["1l", "1l", "1l 2g"],
    },
    "`session.parts`, `session.array`": {
        "open": ["1l", "1l", "1l 2g"],
    },
    "`repo.files`": {
        "open": ["", "", "2g"],
        "locked": ["", "", "2g"],
    },
    "`repo.upload_filedata`, up to 288 KiB": {
        "open": ["1i 1l 3g", "1i", "1i 2g"],
    },
    "`repo.upload_filedata`, more": {
        "open": ["2i 1l 3g", "2i", "2i 2g"],
    },
    "`repo.download_filedata`, up to 256 bytes": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", "2g"],
    },
    "`repo.download_filedata`, more": {
        "open": ["1l 5g", "1g", "4g"],
        "locked": ["3g", "1g", "3g"],
    },
    "`repo.list_files`": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", "2g"],
    },
    "`repo.delete_file`": {
        "open": ["1i 1l 4g", "1i", "1i 2g"],
    },
    "`files.put_many` of 3": {
        "open": ["1i 1l 3g", "1i", "1i 2g"],
    },
    "`files.delete_many` of 3": {
        "open": ["1i 1l 3g", "1i", "1i 2g"],
    },
    "`files.get`, `in`, up to 256 bytes": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", "2g"],
    },
    "`files.find`, more than 256 bytes": {
        "open": ["1l 5g", "1g", "4g"],
        "locked": ["3g", "1g", "3g"],
    },
    "`files.get_many`, `files.sizes` of 2, 1 of more than 256 bytes": {
        "open": ["1l 6g", "2g", "5g"],
        "locked": ["4g", "2g", "4g"],
    },
    "`files.keys`, `len`": {
        "open": ["1l 4g", "", "3g"],
        "locked": ["2g", "", "2g"],
    },
    "`files.items`, 1 of more than 256 bytes": {
        "open": ["1l 5g", "1g", "4g"],
        "locked": ["3g", "1g", "3g"],
    },
}
