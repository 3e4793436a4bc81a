#!/usr/bin/env python3
"""Looks at the map of the mesh with a browser, as an operator does.

    map.py URL SHOTS_DIR         a live page: one command a line on stdin, one answer a line on stdout, `ok …` or `WRONG …`
    map.py --mock N SHOTS_DIR    serves the page itself, with made-up data of N services, and checks layout and keys;
                                 an odd N has three namespaces, 0 is an empty mesh

Needs selenium, chromium and chromedriver.
"""

import http.server
import json
import math
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../control-plane/src/web/map.html")
WIDTH, HEIGHT = 1280, 800
CSP = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class Wrong(Exception):
    pass


# ---- What is asked of the page. Texts that nobody can read (dimmed, empty, not drawn) can't overlap.

OVERLAPS = """
const graph = document.getElementById('graph');
const seen = el => { for (let e = el; e && e !== graph; e = e.parentNode) {
    const style = getComputedStyle(e);
    if (style.display === 'none' || style.visibility === 'hidden' || style.opacity < 0.4) return false; } return true; };
const rect = el => { const r = el.getBoundingClientRect(); return {l: r.left, t: r.top, r: r.right, b: r.bottom}; };
const over = (a, b, by) => a.l + by < b.r && b.l + by < a.r && a.t + by < b.b && b.t + by < a.b;
const inside = (a, b) => a.l >= b.l - 1 && a.r <= b.r + 1 && a.t >= b.t - 1 && a.b <= b.b + 1;
const texts = [...graph.querySelectorAll('text')].filter(el => el.textContent.trim() && seen(el))
    .map(el => ({el, words: el.textContent.trim(), of: el.closest('[data-node],[data-label]'), ...rect(el)})).filter(t => t.r > t.l);
const boxes = [...graph.querySelectorAll('.node')].filter(seen).map(el => ({el, words: el.dataset.node, ...rect(el.querySelector('.box'))}));
const found = [];
texts.forEach((a, i) => { for (let j = i + 1; j < texts.length; j++) if (over(a, texts[j], 0.5)) found.push(`"${a.words}" and "${texts[j].words}"`); });
boxes.forEach((a, i) => { for (let j = i + 1; j < boxes.length; j++) if (over(a, boxes[j], 0)) found.push(`box ${a.words} and box ${boxes[j].words}`); });
for (const t of texts) {
    const own = t.of && t.of.querySelector('rect');
    if (own && !inside(t, rect(own))) found.push(`"${t.words}" leaves its box`);
    for (const box of boxes) if (t.of !== box.el && over(t, box, 0.5)) found.push(`"${t.words}" and box ${box.words}`);
}
return {found, texts: texts.length, boxes: boxes.length, labels: graph.querySelectorAll('.label').length,
    scale: graph.firstChild.getCTM().a};
"""

EDGE = """
return [...document.querySelectorAll('[data-edge]')].filter(e => e.dataset.edge.startsWith(arguments[0] + '|' + arguments[1] + '|'))
    .map(e => { const label = [...document.querySelectorAll('[data-label]')].find(l => l.dataset.label === e.dataset.edge);
        return {mtls: e.dataset.mtls, lock: label ? label.querySelector('.lock').getAttribute('class') : null}; });
"""

EJECTED = """
const node = [...document.querySelectorAll('[data-node]')].find(n => n.dataset.node === arguments[0]);
const mark = node && node.querySelector('.out');
return node ? [Number(node.dataset.ejected), !!mark && mark.getAttribute('display') !== 'none'] : null;
"""

OBJECTS = """
return [...document.querySelectorAll('[data-object]')].filter(row => row.textContent.replaceAll(/\\s/g, '').includes(arguments[0]))
    .map(row => row.dataset.state);
"""

FOCUS = "const e = document.activeElement; return e && e.dataset ? e.dataset.node || null : null;"


class Page:
    """A browser with the page in it."""

    def __init__(self, url, shots):
        self.shots = shots
        self.lost_expected = False
        self.profile = tempfile.mkdtemp(prefix="leno-map-")
        os.makedirs(shots, exist_ok=True)
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium" if os.path.exists("/usr/bin/chromium") else shutil.which("chromium")
        for flag in (
            "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
            " --disable-component-update --disable-sync --disable-dev-shm-usage"
        ).split():
            options.add_argument(flag)
        options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
        options.add_argument(f"--user-data-dir={self.profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        path = "/usr/bin/chromedriver"
        self.driver = webdriver.Chrome(options, Service(path if os.path.exists(path) else shutil.which("chromedriver")))
        # The window's size counts a frame that headless has not; this is the viewport's.
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url)

    def quit(self):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def keys(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def wait(self, seconds, what, check):
        """Seconds until `check` holds."""
        start = time.monotonic()
        while True:
            held = check()
            took = time.monotonic() - start
            if held:
                return f"after {took:.1f} s"
            if took > float(seconds):
                raise Wrong(f"{what} not within {seconds} s")
            time.sleep(0.1)

    # ---- Commands.

    def tab(self, name):
        self.js("document.querySelector(`[aria-controls=\"${arguments[0]}\"]`).click()", name)
        return name

    def on(self, name):
        if not self.js("return document.querySelector('[role=tab][aria-selected=true]').getAttribute('aria-controls') === arguments[0]", name):
            self.tab(name)

    def edge(self, source, target, seconds):
        self.on("map")
        return self.wait(seconds, f"edge {source} to {target}", lambda: self.js(EDGE, source, target))

    def padlock(self, source, target, seconds):
        self.on("map")

        def closed():
            found = self.js(EDGE, source, target)
            return found and all(e["mtls"] == "true" and e["lock"] in (None, "lock closed") for e in found)

        return self.wait(seconds, f"closed padlock from {source} to {target}", closed)

    def ejected(self, node, seconds):
        self.on("map")
        return self.wait(seconds, f"{node} with an ejected endpoint", lambda: (self.js(EJECTED, node) or [0, 0])[0] > 0 and self.js(EJECTED, node)[1])

    def not_ejected(self, node, seconds):
        self.on("map")
        return self.wait(seconds, f"{node} without ejected endpoints", lambda: self.js(EJECTED, node) == [0, False])

    def object(self, text, state, seconds):
        self.on("config")
        return self.wait(seconds, f"object {text} in state {state}", lambda: state in self.js(OBJECTS, text))

    def no_object(self, text, state, seconds):
        self.on("config")
        return self.wait(seconds, f"no object {text} in state {state}", lambda: state not in self.js(OBJECTS, text))

    def error(self, text, seconds):
        self.on("errors")
        words = text.replace("_", " ")
        look = "return [...document.querySelectorAll('#errors .explanation')].some(e => e.textContent.replaceAll('_', ' ').includes(arguments[0]))"
        return self.wait(seconds, f"an error explained by {words}", lambda: self.js(look, words))

    def nodes(self):
        return set(self.js("return [...document.querySelectorAll('[data-node]')].map(n => n.dataset.node)"))

    def walk(self, until):
        """Tabs from the filter on, until `until` of the nodes met so far; says how many keys it took."""
        self.on("map")
        self.js("document.getElementById('filter').focus()")
        met = set()
        for key in range(1, len(self.nodes()) + 30):
            self.keys(Keys.TAB)
            met.add(self.js(FOCUS))
            if until(met):
                return key
        raise Wrong(f"Tab reached only {sorted(met - {None})}")

    def open(self, node):
        keys = self.walk(lambda met: node in met)
        self.keys(Keys.ENTER)
        look = "return document.getElementById('side-name')?.textContent === arguments[0] && document.querySelectorAll('#side [data-endpoint]').length"
        took = self.wait(3, f"panel of {node} with endpoints", lambda: self.js(look, node))
        if self.js("return !document.getElementById('side').contains(document.activeElement)"):
            raise Wrong("the panel has not got the focus")
        return f"{keys} keys, {self.js(look, node)} endpoints {took}"

    def close(self):
        self.keys(Keys.ESCAPE)
        self.wait(2, "panel closed", lambda: self.js("return document.getElementById('side').hidden"))
        if not self.js(FOCUS):
            raise Wrong("the focus did not return to the node")
        return "focus is back on " + self.js(FOCUS)

    def keyboard(self):
        every = self.nodes()
        if not every:
            raise Wrong("no nodes")
        keys = self.walk(lambda met: every <= met)
        self.js("document.activeElement.blur()")
        return f"{len(every)} nodes by {keys} keys"

    def overlaps(self):
        self.on("map")
        seen = self.js(OVERLAPS)
        if seen["found"]:
            raise Wrong(f"{len(seen['found'])} overlaps: {'; '.join(seen['found'][:5])}")
        if not seen["texts"]:
            raise Wrong("no texts")
        return f"{seen['boxes']} boxes, {seen['labels']} labels, {seen['texts']} texts at scale {seen['scale']:.2f}"

    def frame(self, limit):
        self.on("map")
        first = self.js("const worst = leno.worst; leno.worst = 0; return worst")
        # A shared machine may stop anybody for a moment: one quiet stretch of three tells what the page itself takes.
        for _ in range(3):
            time.sleep(3)
            worst = self.js("const worst = leno.worst; leno.worst = 0; return worst")
            if 0 < worst <= float(limit):
                break
        else:
            raise Wrong(f"{worst:.1f} ms, worst before {first:.1f} ms")
        return f"{worst:.1f} ms, worst before {first:.1f} ms"

    def lost(self, seconds):
        self.lost_expected = True
        look = "const b = document.getElementById('lost'); return !b.hidden && b.textContent"
        return self.wait(seconds, "banner", lambda: self.js(look)) + f": {self.js(look)}"

    def live(self, seconds):
        return self.wait(seconds, "live again", lambda: self.js("return document.getElementById('lost').hidden && leno.connected"))

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return name

    def dark(self):
        return self.scheme("dark")

    def light(self):
        return self.scheme("light")

    def shot(self, name):
        path = os.path.join(self.shots, f"{name}.png")
        if not self.driver.save_screenshot(path):
            raise Wrong(f"{path} cannot be written")
        return path

    def console(self):
        severe = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        if self.lost_expected:
            severe = [entry for entry in severe if "/debug/mesh" not in entry["message"]]
        if severe:
            raise Wrong(f"{len(severe)} errors: " + "; ".join(entry["message"].replace("\n", " ") for entry in severe[:3]))
        return "no errors"

    def obey(self, line):
        name, *arguments = line.split()
        known = "edge padlock ejected not-ejected object no-object error open close keyboard overlaps frame lost live dark light shot console tab"
        try:
            if name not in known.split():
                raise Wrong(f"unknown command {name}")
            said = getattr(self, name.replace("-", "_"))(*arguments)
            return f"ok {said}"
        except Wrong as wrong:
            return f"WRONG {name}: {wrong}"
        except Exception as error:  # the line protocol promises an answer to every command
            return f"WRONG {name}: {type(error).__name__} {error}".replace("\n", " ")


# ---- A made-up mesh.

SHOP = """
web>gateway mobile>gateway gateway>order-service gateway>user-service gateway>catalogue order-service>user-service
order-service>payment-service order-service>inventory catalogue>inventory inventory>stock-db:tcp payment-service>bank.example.com:https
user-service>user-db:tcp order-service>mail-relay payment-service>order-service
"""


def shop():
    edges = []
    for words in SHOP.split():
        source, target = words.split(">")
        target, _, protocol = target.partition(":")
        edges.append((source, target, {"tcp": "tcp"}.get(protocol, "grpc" if target == "inventory" else "http")))
    return edges


def tiers(n, dice):
    """Six tiers, each calling the next ones mostly; two edges a service, some of them back."""
    words = "order user payment cart search stock price mail audit login quota media report invoice recommendation".split()
    names = [f"{words[i % len(words)]}-{('service', 'api', 'worker', 'batch-scoring-engine')[i % 4]}-{i}" for i in range(n)]
    share = [0.03, 0.14, 0.25, 0.27, 0.2, 0.11]
    tier, start = [], 0
    for part in share:
        end = min(n, start + max(1, round(part * n)))
        tier.append(names[start:end])
        start = end
    tier[-1] += names[start:]
    edges = set()
    for at in range(1, 6):
        for name in tier[at]:
            edges.add((dice.choice(tier[at - 1]), name, dice.choice(["http", "http", "grpc", "tcp"])))
    while len(edges) < 2 * n:
        at = dice.randrange(5)
        to = min(5, at + 1 + (dice.random() < 0.2))
        pair = (dice.choice(tier[at]), dice.choice(tier[to]))
        edges.add((*(pair if dice.random() > 0.01 else pair[::-1]), "http"))
    return sorted(edges)


class Mesh:
    def __init__(self, n):
        self.dice = random.Random(n)
        self.spaces = ["default", "payments", "a-namespace-of-quite-some-length"] if n % 2 else ["default"]
        self.edges = [] if n == 0 else shop() if n <= 12 else tiers(n, self.dice)
        self.names = sorted({name for edge in self.edges for name in edge[:2]})
        self.names += [f"spare-{i}" for i in range(max(0, n - len(self.names)))]
        self.big = n > 12
        self.base = {edge: 10 ** self.dice.uniform(-0.5, 2.3) for edge in self.edges}
        self.errors = {edge: self.dice.choice([0.004, 0.02, 0.31]) if self.dice.random() < (0.05 if self.big else 0.2) else 0 for edge in self.edges}
        # By name, so that the same ones are ill in each run.
        self.ill = {name for i, name in enumerate(self.names) if i % 23 == 7} | {"user-service"} & set(self.names)

    def space(self, name):
        return self.spaces[len(name) % len(self.spaces)]

    def id(self, name):
        return f"{self.space(name)}/{name}"

    def kind(self, name):
        return "external" if name.endswith(".com") else "workload" if name in ("web", "mobile") else "unknown" if name == "mail-relay" else "service"

    def edge(self, edge, t):
        source, target, protocol = edge
        tcp = protocol == "tcp"
        rps = 0 if tcp else self.base[edge] * (1 + 0.2 * math.sin(t / 7 + len(target)))
        p50 = None if tcp else 0.4 + len(source) / 3 + math.sin(t)
        rate = 0 if tcp else self.errors[edge]
        return {
            "from": self.id(source), "to": self.id(target), "protocol": protocol, "rps": rps, "error_rate": rate,
            "p50_ms": p50, "p99_ms": p50 and p50 * 7.3, "mtls": None if self.kind(target) == "unknown" else self.kind(target) != "external",
            "bytes_per_second": self.base[edge] * 9000 if tcp else 0.0, "connections": 4 if tcp else 0,
            "flags": {"UH": rps * rate} if rate else {}, "last_seen_seconds": 0.3,
        }

    def node(self, name, edges):
        into = [edge for edge in edges if edge["to"] == self.id(name)]
        rps = sum(edge["rps"] for edge in into)
        return {
            "id": self.id(name), "namespace": self.space(name), "name": name, "kind": self.kind(name),
            "host": f"{name}.default.svc.cluster.local" if self.kind(name) == "service" else None, "rps": rps,
            "error_rate": sum(edge["rps"] * edge["error_rate"] for edge in into) / rps if rps else 0.0,
            "endpoints": 4 if self.kind(name) == "service" else 0, "ejected": int(name in self.ill), "draining": 0,
            "problems": int(name.startswith("catalogue") or name.endswith("-40")),
        }

    def service(self, name, t):
        version = lambda i: "v2" if i == 3 else "v1"
        ejection = {"by": "default/order-service", "reason": "5 consecutive 5xx", "times": 2, "returns_in_seconds": 30 - t % 30}
        endpoints = [
            {
                "address": f"127.0.1.{i + 1}:3001", "workload": f"{name}-{version(i)}", "version": version(i),
                "state": "ejected" if out else "draining" if i == 2 else "serving", "mtls": True, "in_flight": i, "rps": 0.0 if out else 3.0,
                "ejections": [ejection] if out else [],
            }
            for i in range(4) for out in [i == 1 and name in self.ill]
        ]
        subsets = [
            {"name": "v1", "labels": "version=v1", "endpoints": 3, "rps": 9.0, "share": 0.9},
            {"name": "v2", "labels": "version=v2", "endpoints": 1, "rps": 1.0, "share": 0.1},
        ]
        return {
            "id": self.id(name), "host": f"{name}.default.svc.cluster.local", "object": f"{self.id(name)} ServiceEntry",
            "ports": [{"number": 80, "protocol": "http"}, {"number": 9000, "protocol": "grpc"}], "subsets": subsets, "endpoints": endpoints,
        }

    def proxy(self, i, name, t, now):
        refusal = {
            "type": "Cluster", "name": "outbound|80||catalogue", "version": "3f2a77", "field": "lb_policy",
            "reason": "RING_HASH without a hash policy is not supported",
        }
        return {
            "node": f"sidecar~127.0.2.{i}~{name}.default~default.svc.cluster.local", "id": self.id(name), "workload": name, "namespace": self.space(name),
            "address": f"127.0.2.{i}", "client": "leno-proxy", "version": "0.1.0", "names": 5, "certificate_expires": now + 84_000_000,
            "certificate_days_left": 0.98, "config_age_seconds": 40 + t, "clock_skew_seconds": 0.01,
            "clock": "95 s ahead of the control plane" if i == 3 else "in step", "last_report_seconds": 0.8, "refused": [refusal] if i == 2 else [],
        }

    def objects(self):
        sick = {"default/catalogue": ("error", 'routing.yaml:4:5: error: spec.http[0].route[0].destination.subset: no subset "v3"; did you mean "v2"?')}
        sick["default/order-service"] = ("warning", "routing.yaml:31:5: warning: spec.http[0].mirror is not supported and has no effect")
        for name in self.names[:60]:
            state, message = sick.get(f"default/{name}", ("ok", None))
            for kind in ("ServiceEntry", "VirtualService"):
                one = {"kind": kind, "namespace": self.space(name), "name": name, "place": f"{kind.lower()}.yaml:{len(name)}"}
                faulty = message and kind == "VirtualService"
                yield one | {"state": state if faulty else "ok", "messages": [message] if faulty else []}

    def faults(self, now):
        target = "user-service" if "user-service" in self.names else next(iter(self.names), None)
        if not target:
            return []
        why = f"default/{target} VirtualService http[0] -> default/{target} DestinationRule subset v2 (version=v2): 0 endpoints match version=v2"
        return [
            {
                "id": i, "time": now - i * 7000, "reporter": "default/order-service", "source": "default/order-service",
                "destination": self.id(target), "method": "GET", "path": f"/users/{i}", "status": 503, "flag": "UH", "explanation": why,
                "request_id": f"5f0c2b9e-1d53-4d2f-9a4b-0000000000{i:02}", "count": 1 + i % 3,
            }
            for i in range(12)
        ]

    def state(self):
        t, now = time.monotonic(), int(time.time() * 1000)
        edges = [self.edge(edge, t) for edge in self.edges]
        services = [name for name in self.names if self.kind(name) == "service"]
        return {
            "version": "0.1.0", "now": now, "window_seconds": 10, "nodes": [self.node(name, edges) for name in self.names], "edges": edges,
            "services": [self.service(name, t) for name in services],
            "proxies": [self.proxy(i, name, t, now) for i, name in enumerate(services[:200])],
            "objects": list(self.objects()), "errors": self.faults(now),
        }


class Mock:
    """Serves the page and a mesh on a port of its own, which it keeps from one start to the next."""

    def __init__(self, mesh):
        self.mesh, self.port = mesh, 0
        self.start()

    def start(self):
        self.over, mesh, mock = threading.Event(), self.mesh, self

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                kinds = {"/": "text/html; charset=utf-8", "/debug/mesh": "application/json", "/debug/mesh/events": "text/event-stream"}
                path = self.path.partition("?")[0]
                self.send_response(200 if path in kinds or path == "/debug/proxy" else 404)
                self.send_header("content-type", kinds.get(path, "application/json"))
                self.send_header("content-security-policy", CSP)
                self.end_headers()
                if path == "/":
                    with open(PAGE, "rb") as page:
                        self.wfile.write(page.read())
                elif path == "/debug/mesh":
                    self.wfile.write(json.dumps(mesh.state()).encode())
                elif path == "/debug/proxy":
                    names = ["user-service:80", "order-service:80", "inbound"]
                    found = [{"type": kind, "name": name, "version": "3f2a77c0"} for kind in ("Listener", "Cluster") for name in names]
                    self.wfile.write(json.dumps({"node": self.path, "resources": found}).encode())
                elif path == "/debug/mesh/events":
                    self.stream(mock.over)

            def stream(self, over):
                try:
                    while not over.is_set():
                        self.wfile.write(f"data: {json.dumps(mesh.state())}\n\n".encode())
                        over.wait(1)
                    self.connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the browser left

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Answers)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def mock(n, shots):
    served = Mock(Mesh(n))
    page = Page(f"http://127.0.0.1:{served.port}/", shots)
    wrong = 0

    def ask(line):
        nonlocal wrong
        answer = page.obey(line)
        wrong += answer.startswith("WRONG")
        print(f"{line}: {answer}", flush=True)

    try:
        if n == 0:
            page.wait(5, "hint", lambda: page.js("return !document.getElementById('hint').hidden"))
            for line in ("live 5", "shot map-0", "dark", "shot map-0-dark", "console"):
                ask(line)
            return 1 if wrong else 0
        first, opened = served.mesh.edges[0], next(name for name in served.mesh.names if name in served.mesh.ill)
        ask(f"edge {served.mesh.id(first[0])} {served.mesh.id(first[1])} 5")
        for line in ("live 5", "overlaps", "frame 50", f"shot map-{n}", "dark", f"shot map-{n}-dark", "light", "keyboard", "overlaps"):
            ask(line)
        ask(f"ejected {served.mesh.id(opened)} 2")
        ask(f"open {served.mesh.id(opened)}")
        ask("overlaps")
        for line in (f"shot open-{n}", "dark", f"shot open-{n}-dark", "light", "frame 50", "close"):
            ask(line)
        for line in (f"object {served.mesh.names[0]} ok 3", f"shot config-{n}", "error 0_endpoints_match 3", f"shot errors-{n}", "tab proxies"):
            ask(line)
        page.js("document.querySelectorAll('[data-proxy] button').forEach((b, i) => { if (i < 2) b.click() })")
        time.sleep(0.5)
        for line in (f"shot proxies-{n}", "dark", f"shot proxies-{n}-dark", "light", "tab map", "console"):
            ask(line)
        served.stop()
        for line in ("lost 10", f"shot lost-{n}"):
            ask(line)
        served.start()
        for line in ("live 20", "overlaps", "frame 50", "console"):
            ask(line)
    finally:
        page.quit()
        served.stop()
    return 1 if wrong else 0


def live(url, shots):
    page = Page(url, shots)
    try:
        for line in sys.stdin:
            if line.strip() == "quit":
                print("ok quit", flush=True)
                break
            if line.strip():
                print(page.obey(line), flush=True)
    finally:
        page.quit()
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--mock":
        sys.exit(mock(int(sys.argv[2]), sys.argv[3]))
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(live(sys.argv[1], sys.argv[2]))
