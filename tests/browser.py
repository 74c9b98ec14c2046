"""A headless Chromium, driven by its DevTools socket, for tests of the page.

``browsing(tmp)`` is a context manager that gives a `Browser`; tests that need it are skipped where
no Chromium or no websocket client is installed.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--mute-audio",
    "--force-device-scale-factor=1",
    "--force-color-profile=srgb", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--remote-debugging-port=0", "--window-size=1280,900",
)  # fmt: skip
PATIENCE = 60  # seconds; machines are busy


def program():
    """Return the path of a Chromium, or None."""
    named = os.environ.get("DICED_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One tab.

    Attributes
    ----------
    errors : list of str
        Console errors, uncaught exceptions, refused and failed requests.
    """

    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        self.errors = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    # -- the protocol ----------------------------------------------------------------------

    def call(self, method, **params):
        """Send a command and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            values = (str(each.get("value", each.get("description"))) for each in params["args"])
            self.errors.append(" ".join(values))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"a dialog: {params['message']}")

    # -- what tests say --------------------------------------------------------------------

    def goto(self, url):
        """Load a page."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url.partition('#')[0])})")
        self.wait("document.readyState === 'complete'")

    def js(self, expression):
        """Return the value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression, seconds=PATIENCE):
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while True:
            found = self.js(expression)
            if found:
                return found
            assert time.monotonic() < end, f"never true: {expression}\n{self.errors}\n{self.text()}"
            time.sleep(0.05)

    def text(self, selector="body"):
        """Return the text of the first element."""
        return self.js(f"(document.querySelector({json.dumps(selector)}) || {{}}).textContent")

    def click(self, selector, text=None):
        """Click the first element, or the first with a text, once it is there."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => {json.dumps(text)} === null ||"
            f" each.textContent.trim() === {json.dumps(text)})"
        )
        self.wait(f"!!{find}")
        self.js(f"{find}.click()")

    def fill(self, selector, value):
        """Set the value of a field, as typing would."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.js(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f" field.value = {json.dumps(value)};"
            " for (const name of ['input', 'change'])"
            " field.dispatchEvent(new Event(name, {bubbles: true})); })()"
        )

    def key(self, name, modifiers=0):
        """Press a key: a name like ``ArrowDown``, or a character."""
        text = {"text": name} if len(name) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, modifiers=modifiers, **text)

    def mouse(self, kind, x, y, **more):
        """Send an event of the mouse: mousePressed, mouseMoved, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def files(self, selector, paths):
        """Choose files in a field."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])
        self.js(
            f"document.querySelector({json.dumps(selector)})"
            ".dispatchEvent(new Event('input', {bubbles: true}))"
        )

    def screenshot(self, path):
        """Save what is seen as PNG."""
        found = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browsing(tmp):
    """Run a browser with a profile of its own below `tmp`."""
    websocket = pytest.importorskip("websocket")
    path = program()
    if path is None:
        pytest.skip("no Chromium is installed")
    profile = tmp / "profile"
    with open(tmp / "chromium.log", "wb") as log:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log
        )
    try:
        port = _port(process, profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True
        )
        try:
            yield Browser(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process, path):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium ended at once"
        if path.is_file() and "\n" in (text := path.read_text()):
            return int(text.split("\n")[0])
        time.sleep(0.05)
    raise AssertionError("Chromium did not start")


# -- the page -----------------------------------------------------------------------------

READY = "(document.querySelector('.viewer') || {dataset: {}}).dataset.ready === 'yes'"


def choose_repo(tab, alias):
    """Choose a repo in the list at the left."""
    tab.wait("!!document.querySelector('#repos a')")
    tab.js(
        "[...document.querySelectorAll('#repos a .name')]"
        f".find((each) => each.textContent === {json.dumps(alias)}).click()"
    )
    tab.wait(f"document.querySelector('h1')?.textContent === {json.dumps(alias)}")
    tab.wait("document.querySelectorAll('.dag [role=option]').length > 0")


def submit(tab):
    """Send a dialog, which must go well."""
    tab.click("dialog button[type=submit]")
    tab.wait("!document.querySelector('dialog[open]')")


def canvas(tab, plane):
    """Return the pixels of a pane (rows, columns, 4), where voxel 0 is, and a voxel's pixels."""
    tab.wait(READY)
    tab.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = tab.js(
        f"(() => {{ const pane = document.querySelector('canvas[data-plane={plane}]');"
        " const {width, height} = pane;"
        " const data = pane.getContext('2d').getImageData(0, 0, width, height).data;"
        " let text = ''; for (let i = 0; i < data.length; i += 4)"
        " text += String.fromCharCode(data[i], data[i + 1], data[i + 2]);"
        " return {width, height, data: btoa(text), origin: pane.dataset.origin,"
        " scale: pane.dataset.scale}; })()"
    )
    pixels = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    pixels = pixels.reshape(found["height"], found["width"], 3)
    numbers = [[float(n) for n in found[name].split(",")] for name in ("origin", "scale")]
    return pixels, [round(n) for n in numbers[0]], numbers[1]


def seen(tab, plane, values):
    """Return the part of a pane, at 1:1, where `values` (rows, columns) should be, and those."""
    pixels, (x, y), scale = canvas(tab, plane)
    assert scale == [1, 1]
    rows = slice(max(0, y), min(pixels.shape[0], y + values.shape[0]))
    columns = slice(max(0, x), min(pixels.shape[1], x + values.shape[1]))
    shown = pixels[rows, columns]
    wanted = values[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    # Texts, the bar of scale at the lower left, and the grey of the cross are drawn over it.
    keep = np.ones(shown.shape[:2], bool)
    keep[: max(0, 30 - rows.start)] = False
    keep[max(0, pixels.shape[0] - 50 - rows.start) :, : max(0, 200 - columns.start)] = False
    assert keep.mean() > 0.5
    return shown[keep], wanted[keep]


def stack(shape=(40, 90, 120)):
    """Return noise: ZYX, uint8."""
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)
