"""The page in a real browser: what one sees and does there, and no errors."""

import numpy as np
from browser import choose_repo, seen, stack, submit
from PIL import Image
from serving import serving

# -- the whole way -------------------------------------------------------------------------


def test_from_an_empty_store_to_a_branch(server, tab, tmp_path):
    tab.goto(f"{server.url}/?admin=1")
    tab.wait("document.querySelector('h1')?.textContent === 'No repos yet'")
    tab.click("#repos button", "New repo")
    tab.fill("dialog [name=alias]", "fly")
    tab.fill("dialog [name=description]", "A fly's brain")
    submit(tab)
    tab.wait("document.querySelector('h1')?.textContent === 'fly'")
    root = server.get("repos/info").json
    (root,) = root
    assert tab.js("location.hash").startswith(f"#repo={root}&node={root}")
    assert tab.js("document.querySelectorAll('.dag [role=option]').length") == 1

    tab.click(".details button", "New array")
    tab.fill("dialog [name=dataname]", "gray")
    tab.fill("dialog [name=VoxelSize]", "8, 8, 8")
    submit(tab)
    tab.wait("!!document.querySelector('[data-array=gray]')")
    assert "empty" in tab.text("[data-array=gray]")
    info = server.get(f"node/{root}/gray/info").json
    assert info["Extended"]["VoxelSize"] == [8, 8, 8]

    values = stack()
    server.post(f"node/{root}/gray/raw/0_1_2/120_90_40/0_0_0", values.tobytes())
    tab.click("#top button", "Refresh")
    tab.wait(
        "document.querySelector('[data-array=gray]')?.textContent"
        ".includes('120 \u00d7 90 \u00d7 40')"
    )
    tab.wait("!!document.querySelector('[data-array=gray] img')")
    tab.wait("/\\d B|kB/.test(document.querySelector('[data-array=gray] .size').textContent)")
    assert "960 nm \u00d7 720 nm \u00d7 320 nm" in tab.text("[data-array=gray]")
    tab.click("[data-array=gray] button", "View")
    tab.click(".viewer button", "1:1")
    tab.key("c")
    for plane, wanted in (
        ("xy", values[20]), ("xz", values[:, 45]), ("yz", values[:, :, 60].T),
    ):  # fmt: skip
        shown, wanted = seen(tab, plane, wanted)
        assert (shown == wanted[:, None]).all(), plane
    tab.click(".viewer button", "← Back")

    tab.click(".nodehead button", "Lock")
    tab.fill("dialog [name=note]", "loaded")
    submit(tab)
    tab.wait("document.querySelector('.nodehead .state').textContent === 'locked'")
    assert server.get(f"node/{root}/status").json == {"Locked": True}
    assert "loaded" in tab.text(".dag")
    tab.click(".nodehead button", "New version")
    tab.fill("dialog [name=branch]", "proofread")
    tab.fill("dialog [name=note]", "a branch")
    submit(tab)
    tab.wait("document.querySelectorAll('.dag [role=option]').length === 2")
    tab.wait("document.querySelector('.nodehead .state').textContent === 'open'")
    assert tab.js("document.querySelectorAll('.dag circle').length") == 2
    assert tab.js("document.querySelectorAll('.dag path').length") == 1
    assert "proofread" in tab.text(".nodehead")
    nodes = server.get(f"repo/{root}/info").json["DAG"]["Nodes"]
    child = next(each for each in nodes.values() if each["UUID"] != root)
    assert (child["Branch"], child["Note"]) == ("proofread", "a branch")
    assert child["UUID"] in tab.js("location.hash")

    tab.click(".nodehead button", "Note")
    tab.fill("dialog [name=note]", "another note")
    submit(tab)
    tab.wait("document.querySelector('.nodehead .note').textContent === 'another note'")
    tab.click(".nodehead button", "Log")
    tab.fill("dialog [name=line]", "a line of the log")
    submit(tab)
    tab.wait("document.querySelector('.log')?.textContent.includes('a line of the log')")
    tab.js(f"document.querySelector('[data-uuid=\"{root}\"]').click()")
    tab.wait(f"document.querySelector('.nodehead .uuid').textContent === '{root}'")
    tab.click(".nodehead button", "Tag")
    tab.fill("dialog [name=tag]", "v1.0")
    submit(tab)
    tab.wait("document.querySelector('.dag').textContent.includes('v1.0')")
    tab.screenshot(tmp_path / "versions.png")


def test_images_are_loaded_from_the_page(server, tab, tmp_path):
    uuid = server.repo("r")
    server.instance(uuid, "uint8blk", "gray")
    values = stack((12, 33, 45))
    paths = []
    for z, plane in enumerate(values):
        paths.append(tmp_path / f"slice{z}.png")  # 10 comes behind 9
        Image.fromarray(plane).save(paths[-1])
    tab.goto(f"{server.url}/#repo={uuid}")
    tab.click("[data-array=gray] button", "Load images")
    tab.files("dialog [name=files]", paths)
    tab.fill("dialog [name=offset]", "5,6,7")
    submit(tab)
    array = server.store.open_repo(uuid=uuid)["gray"]
    assert np.array_equal(array[7:19, 6:39, 5:50], values)


def test_deleting_asks_for_the_name(server, tab):
    server.repo("doomed")
    server.repo("other")
    tab.goto(f"{server.url}/?admin=1")
    choose_repo(tab, "doomed")
    tab.click(".repohead button", "Delete repo")
    tab.fill("dialog [name=typed]", "dooomed")
    tab.click("dialog button[type=submit]")
    tab.wait("document.querySelector('.problem').textContent === 'This is not its name.'")
    tab.fill("dialog [name=typed]", "doomed")
    submit(tab)
    tab.wait("document.querySelectorAll('#repos a').length === 1")
    assert [name for name, _ in server.store.list_repos()] == ["other"]


def test_admin_actions_are_not_shown_unasked(server, tab):
    server.repo("r")
    tab.goto(server.url)
    choose_repo(tab, "r")
    words = tab.js("[...document.querySelectorAll('button')].map((each) => each.textContent)")
    assert "Lock" in words
    assert not {"New repo", "Rename", "Delete repo"} & set(words)


def test_a_read_only_server_offers_no_changes(tab, tmp_path):
    from diced.store import DicedStore

    with DicedStore(tmp_path / "store") as store:
        store.create_repo("r").upload_filedata("a", b"x")
    with serving(tmp_path / "store", mode="readonly") as server:
        tab.goto(f"{server.url}/?admin=1#tab=keys")
        choose_repo(tab, "r")
        tab.wait("!!document.querySelector('#main .body')")
        words = tab.js("[...document.querySelectorAll('button')].map((each) => each.textContent)")
        assert not {"New repo", "Rename", "Lock", "Note", "Upload", "New array"} & set(words)
        assert "read only" in tab.text("#top")


# -- versions ------------------------------------------------------------------------------


def test_a_version_of_thousands(server, tab):
    store = server.store
    repo = store.create_repo("long")
    repo.lock_node("root")
    parent = repo.uuid
    for number in range(40):
        repo.change_version(parent)
        child = repo.create_branch(f"step {number}", branch=f"b{number}" if number % 3 else None)
        repo.change_version(child)
        repo.lock_node(f"done {number}")
        parent = child if number % 4 else parent
    tab.goto(server.url)
    choose_repo(tab, "long")
    assert tab.js("document.querySelector('.dag .inner').clientHeight") > 41 * 30
    tab.js(
        "(() => { const nodes = []; for (let i = 1; i <= 20000; i++) nodes.push({"
        "UUID: String(i).padStart(32, '0'), VersionID: i, Branch: i % 7 ? 'b' + i % 50 : '',"
        "Note: 'note ' + i, Locked: true, Created: '2026-01-01T00:00:00Z', Log: [],"
        "Parents: i === 1 ? [] : i % 7 ? [Math.max(1, i - 7)] : [i - 1], Children: []});"
        "diced.repo.DAG.Nodes = Object.fromEntries(nodes.map((n) => [n.UUID, n]));"
        "diced.node.uuid = nodes[9999].UUID; return diced.go({node: nodes[9999].UUID}); })()"
    )
    tab.wait("document.querySelector('.dag').textContent.includes('note 10000')")
    assert tab.js("document.querySelectorAll('.dag [role=option]').length") < 120
    assert tab.js("document.querySelectorAll('.dag svg *').length") < 2000
    tab.js("document.querySelector('.dag').scrollTop = 0")
    tab.wait("document.querySelector('.dag').textContent.includes('note 20000')")
    tab.js("document.querySelector('.dag').scrollTop = 1e9")
    tab.wait("document.querySelectorAll('.dag [role=option]').length > 0")
    tab.wait("[...document.querySelectorAll('.dag .note')].at(-1).textContent === 'note 1'")


def test_versions_by_keyboard(server, tab):
    repo = server.store.create_repo("r")
    uuids = [repo.uuid]
    for number in range(3):
        repo.lock_node(str(number))
        uuids.append(repo.create_branch())
        repo.change_version(uuids[-1])
    tab.goto(f"{server.url}/#repo={uuids[0]}&node={uuids[0]}")
    tab.wait("!!document.querySelector('.dag [aria-selected=true]')")
    tab.js("document.querySelector('.dag .rows').focus()")
    for key, wanted in (
        ("ArrowUp", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("ArrowDown", 1),
        ("Home", 3), ("End", 0),
    ):  # fmt: skip
        tab.key(key)
        tab.wait(f"document.querySelector('.nodehead .uuid').textContent === '{uuids[wanted]}'")
        tab.wait("document.activeElement.className === 'rows'")


def test_hundreds_of_repos(server, tab):
    for number in range(300):
        server.store.create_repo(f"repo {number:03}", "odd" if number % 2 else "even")
    tab.goto(server.url)
    tab.wait("document.querySelectorAll('#repos a').length === 300")
    tab.key("/")
    tab.wait("document.activeElement.type === 'search'")
    tab.fill("#repos input", "repo 12")
    assert tab.js("document.querySelectorAll('#repos a').length") == 10
    tab.fill("#repos input", "ODD")
    assert tab.js("document.querySelectorAll('#repos a').length") == 150


# -- keys ----------------------------------------------------------------------------------


def test_keys_and_files(server, tab, tmp_path):
    repo = server.store.create_repo("r")
    repo.files.put_many({f"key {number:04}": b"%d" % number for number in range(450)})
    repo.files["notes/über.json"] = '{"a": [1, 2]}'
    repo.files["data.bin"] = bytes(range(256))
    tab.goto(f"{server.url}/#repo={repo.uuid}&tab=keys")
    tab.wait("document.querySelectorAll('.key').length === 200")
    tab.click(".more button", "More")
    tab.wait("document.querySelectorAll('.key').length === 400")
    tab.fill("[aria-label='Keys that begin with']", "notes/")
    tab.wait("document.querySelectorAll('.key').length === 1")
    tab.click(".key", "notes/über.json")
    tab.wait("document.querySelector('.content pre')?.textContent.includes('\"a\": [\\n')")
    tab.fill("[aria-label='Keys that begin with']", "data")
    tab.wait("document.querySelector('.list.keys').textContent === 'data.bin'")
    tab.click(".key", "data.bin")
    tab.wait("document.querySelector('.content pre')?.textContent.includes('000010  10 11 12')")
    path = tmp_path / "up load.txt"
    path.write_bytes(b"uploaded \xe2\x82\xac")
    tab.click(".details button", "Upload")
    tab.files("dialog [name=files]", [path])
    tab.fill("dialog [name=name]", "dir/a?b#c%20d")
    submit(tab)
    assert repo.files["dir/a?b#c%20d"] == path.read_bytes()
    tab.fill("[aria-label='Keys that begin with']", "dir")
    tab.click(".key", "dir/a?b#c%20d")
    tab.wait("document.querySelector('.content pre')?.textContent === 'uploaded €'")
    tab.click(".content button", "Edit")
    tab.fill("dialog [name=text]", "edited\n")
    submit(tab)
    tab.wait("document.querySelector('.content pre')?.textContent === 'edited\\n'")
    assert repo.files["dir/a?b#c%20d"] == b"edited\n"
    tab.click(".content button", "Delete")
    submit(tab)
    tab.wait("document.querySelector('.content').textContent === 'Deleted.'")
    assert "dir/a?b#c%20d" not in repo.files


# -- the rest ------------------------------------------------------------------------------


def test_help_about_and_theme(server, tab):
    server.store.info["organisation"] = "Institute"
    server.repo("r")
    tab.goto(server.url)
    tab.wait("document.querySelector('#top')?.textContent.includes('Institute')")
    tab.click("#top button", "API")
    tab.wait("document.querySelector('dialog pre')?.textContent.includes('uint8blk')")
    tab.click("dialog button", "keyvalue")
    tab.wait("document.querySelector('dialog pre').textContent.includes('keyvalue')")
    tab.click("dialog button", "Close")
    tab.click("#top button", "About")
    tab.wait("document.querySelector('dialog')?.textContent.includes('Institute')")
    tab.click("dialog button", "Close")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.js(ground)
    tab.click("#top button", "Theme")
    assert tab.js(ground) != before
    tab.click("#top button", "Theme")
    assert tab.js(ground) == before


def test_another_server(server, tab):
    with serving("memory://another-server") as other:
        repo = other.store.create_repo("over there")
        repo.create_array("gray", np.uint8)[0:20, 0:50, 0:60] = stack((20, 50, 60))
        tab.goto(server.url)
        tab.wait("!!document.querySelector('#top select')")
        tab.fill("#top select", "+")
        tab.fill("dialog [name=url]", other.netloc)
        submit(tab)
        choose_repo(tab, "over there")
        tab.wait("!!document.querySelector('[data-array=gray] img')")
        tab.click("[data-array=gray] button", "View")
        tab.click(".viewer button", "1:1")
        tab.key("c")
        shown, wanted = seen(tab, "xy", stack((20, 50, 60))[10])
        assert (shown == wanted[:, None]).all()
        assert tab.js("new URLSearchParams(location.hash.slice(1)).get('server')") == other.url
        tab.goto(server.url)
        tab.wait("document.querySelector('#top select')?.options.length === 3")
        tab.js("localStorage.clear()")


def test_a_server_with_no_more_than_dvids_api(server, tab):
    """What /api/page answers is refused, as another DVID does."""
    repo = server.store.create_repo("plain")
    values = stack((20, 50, 60))
    repo.create_array("gray", np.uint8)[0:20, 0:50, 0:60] = values
    repo.files["a"] = b"text"
    tab.goto(server.url)
    tab.wait("!!document.querySelector('#repos a')")
    tab.js(
        "(() => { const real = window.fetch; window.fetch = (url, options) =>"
        " String(url).includes('/api/page/') ? Promise.resolve(new Response('Bad API call',"
        " {status: 404})) : real(url, options); return diced.server.greet(); })()"
    )
    assert tab.js("diced.server.ours") is False
    choose_repo(tab, "plain")
    tab.wait(
        "document.querySelector('[data-array=gray]')?.textContent"
        ".includes('60 \u00d7 50 \u00d7 20')"
    )
    tab.click(".tabs button", "Keys and files")
    tab.click(".key", "a")
    tab.wait("document.querySelector('.content pre')?.textContent === 'text'")
    tab.click(".tabs button", "Arrays")
    tab.click("[data-array=gray] button", "View")
    tab.click(".viewer button", "1:1")
    tab.key("c")
    shown, wanted = seen(tab, "xy", values[10])
    assert (shown == wanted[:, None]).all()


EVIL = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>\"'`${1}{{2}}"


def test_text_of_the_store_is_only_text(server, tab):
    store = server.store
    store.info["organisation"] = EVIL
    store.info["javascript:window.owned=1"] = EVIL
    repo = store.create_repo(EVIL, EVIL)
    name = "a'\"><svg onload=window.owned=1>"
    try:
        repo.create_array(name, np.uint8)[0:4, 0:64, 0:64] = 3
    except Exception as error:
        assert "name" in str(error)
        name = "plain"
        repo.create_array(name, np.uint8)[0:4, 0:64, 0:64] = 3
    repo.files[EVIL] = f"<html>{EVIL}"
    repo.add_log(EVIL)
    repo.lock_node(EVIL)
    tab.goto(f"{server.url}/?admin=1")
    choose_repo(tab, EVIL)
    assert EVIL in tab.text("#top")
    assert EVIL in tab.text("#repos")
    assert EVIL in tab.text(".repohead")
    assert EVIL in tab.text(".nodehead")
    assert EVIL in tab.text(".dag")
    tab.wait("!!document.querySelector('.card img')")
    assert name in tab.text(".cards")
    tab.click("#top button", "About")
    tab.wait("document.querySelector('dialog')?.textContent.includes('onerror')")
    tab.click("dialog button", "Close")
    tab.click(".tabs button", "Log")
    tab.wait("document.querySelector('.log')?.textContent.includes('onerror')")
    tab.click(".tabs button", "Keys and files")
    tab.click(".key", EVIL)
    tab.wait("document.querySelector('.content pre')?.textContent.startsWith('<html>')")
    tab.goto(f"{server.url}/#repo={EVIL.replace('#', '')}&node={EVIL}&tab={EVIL}&view={EVIL}")
    tab.wait("document.querySelector('#toasts').textContent.includes('There is no repo')")
    assert tab.js("window.owned") is None
    assert not tab.js("document.querySelector('img[onerror], svg[onload], main script')")
    # Nor would it be, if the page ever made a mistake.
    refused = tab.js(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()"
    )
    assert refused == "TypeError"
    tab.errors[:] = [each for each in tab.errors if "TrustedHTML" not in each]
