//! The HTML report in headless Chromium: what it draws, what a selection shows, and that nothing is asked of any network.
//! Debian's package `chromium` is needed; `.ci/deps` installs it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Browser {
    dir: tempfile::TempDir,
}

/// What a page came to.
struct Opened {
    /// The document after its scripts ran.
    dom: String,
    /// Addresses that the page asked for, itself left out.
    asked: Vec<String>,
}

impl Browser {
    fn new() -> Browser {
        Browser { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `weldment` and gives its stdout.
    #[track_caller]
    fn weldment(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
        let out = command.args(arguments).current_dir(self.dir.path()).env("NO_COLOR", "1").output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Opens `page` at `fragment`, with every name of the network unknown.
    fn open(&self, page: &str, fragment: &str) -> Opened {
        let log = self.path("net.json");
        let out = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", "--window-size=1400,1000"])
            .arg(format!("--user-data-dir={}", self.path("profile").display()))
            .arg(format!("--log-net-log={}", log.display()))
            .arg("--dump-dom")
            .arg(format!("file://{}#{fragment}", self.path(page).display()))
            .output()
            .expect("the Debian package `chromium` is installed (.ci/deps)");
        assert!(out.status.success(), "chromium: {}", String::from_utf8_lossy(&out.stderr));
        let log: Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        Opened { dom: String::from_utf8(out.stdout).unwrap(), asked: asked(&log) }
    }

    /// The document of a page that asks for nothing.
    #[track_caller]
    fn quiet(&self, page: &str, fragment: &str) -> String {
        let Opened { dom, asked } = self.open(page, fragment);
        assert_eq!(asked, [""; 0]);
        dom
    }
}

/// Addresses in a log of the browser's network that a page asked for. The browser's own errands have no origin.
fn asked(log: &Value) -> Vec<String> {
    let kinds = log["constants"]["logEventTypes"].as_object().unwrap();
    let start = &kinds["URL_REQUEST_START_JOB"];
    let requests = list(log, "events").iter().filter(|e| e["type"] == *start).map(|e| &e["params"]);
    let by_pages = requests.filter(|p| p["initiator"].as_str().is_some_and(|i| i != "not an origin"));
    by_pages.filter_map(|p| p["url"].as_str()).map(str::to_owned).collect()
}

fn fixture(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model);
    path.canonicalize().unwrap().to_string_lossy().into_owned()
}

/// What is between `start` and the next `end`.
#[track_caller]
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("no {start}"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end} after {start}")).0
}

fn details(dom: &str) -> &str {
    between(dom, "<aside id=\"details\"", "</aside>")
}

/// As an element shows it.
fn shown(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn the_page_draws_the_report_and_asks_nothing_of_the_network() {
    let browser = Browser::new();
    let model = fixture("llama");
    browser.weldment(&["explain", &model, "--format", "html", "-o", "page.html"]);
    let reports: Value = serde_json::from_str(&browser.weldment(&["explain", &model, "--format", "json"])).unwrap();
    let report = &reports["decode"];

    let dom = browser.quiet("page.html", "");
    let coverage = between(&dom, "<table id=\"coverage\"", "</table>");
    for group in list(report, "groups").iter().filter(|g| !list(g, "anchors").is_empty()) {
        let name = group["name"].as_str().unwrap();
        let count = |what: &str| list(group, "anchors").iter().filter(|a| a["outcome"] == what).count();
        let counts = ["fused", "absorbed", "kept"].map(|what| (count(what), what));
        let summary: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        assert!(coverage.contains(name), "{name}");
        assert!(coverage.contains(&format!("aria-label=\"{name} in decode: {}\"", summary.join(", "))), "{name}");
        assert!(dom.contains(&format!("data-fusion=\"{name}\"")), "{name} is in the legend");
    }
    // Everything is drawn here: three layers, two of them told once.
    assert!(dom.contains("Layers 1..2, 2 times the same"), "{dom}");
    let drawn = dom.matches("data-side=\"after\"").count();
    let layer_two = list(report, "nodes").iter().filter(|n| n["layer"] == 2).count();
    assert_eq!(drawn, list(report, "nodes").len() - layer_two);
    assert!(details(&dom).contains("Choose a node"));

    // A page that does ask is found out, so that a silent one means something.
    std::fs::write(browser.path("loud.html"), "<img src=\"http://weldment.test/a.png\">").unwrap();
    assert_eq!(browser.open("loud.html", "").asked, ["http://weldment.test/a.png"]);
}

#[test]
fn a_selection_shows_its_rule_chain_in_any_layer_and_variant() {
    let browser = Browser::new();
    let model = fixture("llama");
    browser.weldment(&["explain", &model, "--format", "html", "-o", "page.html"]);
    let reports: Value = serde_json::from_str(&browser.weldment(&["explain", &model, "--format", "json"])).unwrap();
    // The longest chain of the last layer, which is folded into the one before.
    let nodes = list(&reports["prefill"], "nodes").iter().filter(|n| n["layer"] == 2);
    let node = nodes.max_by_key(|n| list(n, "chain").len()).unwrap();
    assert!(list(node, "chain").len() > 1);
    let check = |dom: &str| {
        let panel = details(dom);
        assert!(panel.contains(&format!("data-node=\"{}\"", node["node"])), "{panel}");
        let mut rest = between(panel, "Rule chain", "Stands for");
        for step in list(node, "chain") {
            let (rule, text) = (step["rule"].as_str().unwrap(), shown(step["text"].as_str().unwrap()));
            rest = rest.split_once(rule).unwrap_or_else(|| panic!("{rule} in its order in {rest}")).1;
            assert!(rest.contains(&text), "{text}");
        }
        for source in list(node, "sources") {
            assert!(panel.contains(source.as_str().unwrap()), "{source}");
        }
        for stood in list(node, "stands_for") {
            assert!(between(panel, "Stands for", "Reads").contains(&format!("%{stood} ")), "{stood}");
        }
        let saved = format!("data-saved=\"launches\">{}<", node["launches_saved"]);
        assert_eq!(panel.contains(&saved), node["launches_saved"].is_number(), "{panel}");
    };
    check(&browser.quiet("page.html", &format!("variant=prefill&node={}", node["node"])));
    let source = node["sources"][0].as_str().unwrap();
    let dom = browser.quiet("page.html", &format!("variant=prefill&path={source}"));
    assert!(details(&dom).contains(source), "{}", details(&dom));

    // A real click, on the copy of layer 2 that the address shows.
    let page = std::fs::read_to_string(browser.path("page.html")).unwrap();
    let pressed = list(&reports["prefill"], "nodes").iter().find(|n| n["layer"] == 2 && n["launch"] == true).unwrap();
    let click = format!(
        "<script>document.querySelector('button[data-side=after][data-node=\"{}\"]').click();</script></body>",
        node["node"]
    );
    std::fs::write(browser.path("clicked.html"), page.replace("</body>", &click)).unwrap();
    check(&browser.quiet("clicked.html", &format!("variant=prefill&node={}", pressed["node"])));
}

#[test]
fn a_place_left_as_it_was_shows_why() {
    let browser = Browser::new();
    let model = fixture("llama");
    browser.weldment(&["compile", &model, "--stop-after", "ir", "--emit", "ir"]);
    // Layer 1 multiplies its gate with one number a row, which is no gated product.
    let graph = std::fs::read_to_string(browser.path("model.wir")).unwrap();
    let gate = graph.lines().find(|l| l.contains("= mul(") && l.ends_with("\"layers.1.mlp.product\"")).unwrap();
    let up = between(gate, ", ", ")");
    let planted =
        format!("  %most = reduce_max({up}) {{axis: 1}} @ \"layers.1.mlp.most\"\n{}", gate.replace(up, "%most"));
    std::fs::write(browser.path("planted.wir"), graph.replace(gate, &planted)).unwrap();
    let line = ["explain", "planted.wir", "--checkpoint", &model, "--format"];
    browser.weldment(&[&line[..], &["html", "-o", "page.html"]].concat());
    let reports: Value = serde_json::from_str(&browser.weldment(&[&line[..], &["json"]].concat())).unwrap();
    let groups = list(&reports["decode"], "groups");
    let kept = groups.iter().flat_map(|g| list(g, "anchors")).filter(|a| a["outcome"] == "kept");
    let kept: Vec<&Value> = kept.filter(|a| a["paths"][0] == "layers.1.mlp.act_fn").collect();
    assert_eq!(kept.len(), 1);
    let dom = browser.quiet("page.html", &format!("before={}", kept[0]["nodes"][0]));
    let (panel, table) = (details(&dom), between(&dom, "<table id=\"kept\"", "</table>"));
    assert!(table.contains("layers.1.mlp.act_fn"), "{table}");
    assert!(panel.contains("left as it was"), "{panel}");
    let reason = &kept[0]["reason"];
    assert_eq!(reason["why"], "near_miss", "{reason}");
    for field in ["rule", "predicate", "found", "accepted", "change"] {
        let text = shown(reason[field].as_str().unwrap());
        assert!(!text.is_empty() && panel.contains(&text), "{field}: {text} in {panel}");
    }
    assert!(table.contains(&shown(reason["change"].as_str().unwrap())), "{table}");
    for node in list(reason, "at") {
        assert!(between(panel, "it fails at", "Became").contains(&format!("%{node} ")), "{node}");
    }
}

#[test]
fn forty_eight_layers_are_a_small_page() {
    let browser = Browser::new();
    let config = std::fs::read_to_string(format!("{}/config.json", fixture("llama"))).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = 48.into();
    std::fs::create_dir(browser.path("deep")).unwrap();
    std::fs::write(browser.path("deep/config.json"), config.to_string()).unwrap();
    let line =
        ["explain", "deep", "--weights", "random:1", "--target", "sm_90a", "--dtype", "bf16", "--format", "html"];
    browser.weldment(&[&line[..], &["--dim", "tokens=1..1024", "-o", "page.html"]].concat());
    let bytes = std::fs::metadata(browser.path("page.html")).unwrap().len();
    assert!(bytes < 2_000_000, "{bytes}");
    let dom = browser.quiet("page.html", "path=layers.31.mlp.down_proj");
    assert!(dom.contains("47 times the same") || dom.contains("46 times the same"));
    assert!(details(&dom).contains("layers.31.mlp.down_proj"), "{}", details(&dom));
}
