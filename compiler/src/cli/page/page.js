"use strict";
// Data: see data.rs. A section holds equal layers once; `ids` gives each layer's node numbers, so that every node of every
// layer can be shown and linked to. Nodes are named by side ("before", "after") and number; the address bar holds the
// selection: #variant=decode&node=12 (after), #before=7, #path=layers.3.mlp.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  if (!data.variants.length) return;

  const SIDES = ["before", "after"];
  const NODE_WIDTH = 158, NODE_HEIGHT = 40, VIEW_HEIGHT = 22, GAP_X = 14, GAP_Y = 16;

  /** An element; functions among the attributes are listeners, everything else is text. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (typeof value === "function") node.addEventListener(name, value);
      else if (name === "hue") node.style.setProperty("--hue", value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((c) => c !== undefined && c !== null));
    return node;
  }

  const hue = (fusion) => Math.round((fusion * 137.508 + 205) % 360);
  const swatch = (fusion) => el("span", { class: "swatch", hue: hue(fusion), "aria-hidden": "true" });
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : word.endsWith("ch") ? "es" : "s"}`;

  function bytes(n) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0, value = Math.abs(n);
    while (value >= 1024 && unit + 1 < units.length) { value /= 1024; unit += 1; }
    const shown = unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1);
    return `${n < 0 ? "-" : ""}${shown} ${units[unit]}`;
  }

  /** `1..46` for neighbours, `0, 47` for others. */
  function ranges(numbers) {
    const out = [];
    for (let i = 0; i < numbers.length;) {
      let j = i;
      while (j + 1 < numbers.length && numbers[j + 1] === numbers[j] + 1) j += 1;
      out.push(i === j ? `${numbers[i]}` : `${numbers[i]}..${numbers[j]}`);
      i = j + 1;
    }
    return out.join(", ");
  }

  /** Source paths of a section are written for any of its layers: `layers.{-1}.mlp` is the layer before. */
  const path = (pattern, layer) => pattern.replace(/\{(-?\d+)\}/g, (_, d) => `${layer + Number(d)}`);

  // --- The model: one object a node of one layer, found by number. -------------------------------------------------------

  /** Every node of a variant by side and number: { section, copy, index, node, side, number, layer }. */
  function index(variant) {
    const found = { before: new Map(), after: new Map() };
    variant.sections.forEach((section) => {
      section.ids.forEach((ids, copy) => {
        const layer = section.layers[copy] ?? null;
        for (const side of SIDES) {
          section[side].forEach((node, i) => {
            const number = ids[side][i];
            found[side].set(number, { section, copy, index: i, node, side, number, layer });
          });
        }
      });
    });
    return found;
  }

  /** The number of the node that `ref` names, from layer copy `copy` of `section`. */
  function resolve(variant, section, copy, side, ref) {
    if (typeof ref === "number") return section.ids[copy][side][ref];
    const [where, i] = ref.split(":");
    if (where === "first" || where === "last") {
      const other = variant.sections.find((s) => s.place === where);
      return other && other.ids[0][side][Number(i)];
    }
    const layer = section.layers.length ? section.layers[copy] + Number(where) : Number(where);
    const other = variant.sections.find((s) => s.layers.includes(layer));
    return other && other.ids[other.layers.indexOf(layer)][side][Number(i)];
  }

  const known = new Map();
  function model(variant) {
    if (!known.has(variant)) {
      const nodes = index(variant);
      const users = { before: new Map(), after: new Map() };
      const became = new Map();
      const places = new Map();
      const put = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
      for (const side of SIDES) {
        for (const at of nodes[side].values()) {
          at.operands = (at.node.operands ?? []).map((r) => resolve(variant, at.section, at.copy, side, r));
          at.operands.forEach((n) => put(users[side], n, at.number));
          if (side === "after") {
            at.stands = (at.node.stands_for ?? []).map((r) => resolve(variant, at.section, at.copy, "before", r));
            at.stands.forEach((n) => put(became, n, at.number));
          }
        }
      }
      for (const section of variant.sections) {
        section.ids.forEach((_, copy) => section.places.forEach((place) => place.nodes.forEach((ref) => {
          put(places, resolve(variant, section, copy, "before", ref), { place, section, copy });
        })));
      }
      known.set(variant, { nodes, users, became, places });
    }
    return known.get(variant);
  }

  /** Fusions of a node's chain, the rarest first: it says most about the node. A node before has those of what it went into. */
  function fusionsOf(at) {
    const { nodes, became } = model(state.variant);
    const into = at.side === "after" ? [at] : (became.get(at.number) ?? []).map((n) => nodes.after.get(n));
    const found = into.flatMap((n) => (n.node.chain ?? []).map((i) => data.rules[i].fusion)).filter((f) => f !== undefined);
    const places = (f) => state.variant.fusions[f].total;
    return [...new Set(found)].sort((a, b) => places(a) - places(b) || a - b);
  }

  const placesOf = (at) => (at.side === "before" && model(state.variant).places.get(at.number)) || [];
  const isKept = (at) => placesOf(at).some(({ place }) => place.outcome === "kept");

  // --- State. ------------------------------------------------------------------------------------------------------------

  const state = { variant: data.variants[0], side: null, number: null, fusion: null, shown: new Map() };

  function address(changes) {
    const parts = new URLSearchParams();
    parts.set("variant", changes.variant ?? state.variant.name);
    if (changes.node !== undefined) parts.set("node", changes.node);
    if (changes.before !== undefined) parts.set("before", changes.before);
    if (changes.path !== undefined) parts.set("path", changes.path);
    return `#${parts}`;
  }
  const go = (changes) => {
    const target = address(changes);
    if (location.hash === target) follow();
    else location.hash = target;
  };
  const goNode = (at) => go({ [at.side === "after" ? "node" : "before"]: at.number });

  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const variant = data.variants.find((v) => v.name === asked.get("variant")) ?? state.variant;
    if (variant !== state.variant) { state.variant = variant; state.shown = new Map(); drawVariant(); }
    const { nodes } = model(variant);
    const number = (name) => asked.has(name) && asked.get(name) !== "" ? Number(asked.get(name)) : null;
    let at = nodes.after.get(number("node")) ?? nodes.before.get(number("before"));
    if (asked.has("path")) at = at ?? firstAt(asked.get("path"));
    select(at ?? null);
  }

  const below = (source, wanted) => source === wanted || source.startsWith(`${wanted}.`);

  /** The node that a source path became, else one of that path before. */
  function firstAt(wanted) {
    const { nodes } = model(state.variant);
    for (const side of ["after", "before"]) {
      for (const at of nodes[side].values()) {
        if (at.node.sources.some((s) => below(path(s, at.layer), wanted))) return at;
      }
    }
    return undefined;
  }

  // --- Coverage, legend, places left. ------------------------------------------------------------------------------------

  const fusionName = (i) => data.fusions[i];

  function cell(counts) {
    if (!counts || counts.total === 0) return el("span", { class: "soft" }, "-");
    const kept = keptOf(counts);
    const done = [counts.fused ? `${counts.fused} fused` : "",
      ...Object.entries(counts.absorbed ?? {}).map(([op, n]) => `${n} absorbed by ${op}`)].filter(Boolean).join(", ");
    return el("span", {}, done, kept ? el("span", { class: "alarm" }, `${done ? ", " : ""}${kept} kept`) : null);
  }

  const absorbedOf = (counts) => Object.values(counts.absorbed ?? {}).reduce((sum, n) => sum + n, 0);

  const keptOf = (counts) => counts.total - counts.fused - absorbedOf(counts);

  /** `28 fused, 2 kept`. */
  const summary = (counts) => [[counts.fused, "fused"], [absorbedOf(counts), "absorbed"], [keptOf(counts), "kept"]]
    .filter(([n]) => n).map(([n, what]) => `${n} ${what}`).join(", ");

  /** `T 2..512`: the ranges that tell a variant from others. */
  const rangesOf = (v) => Object.entries(v.ranges ?? {})
    .map(([symbol, [min, max]]) => `${symbol} ${min === max ? min : `${min}..${max}`}`).join(", ");

  function drawCoverage() {
    const head = el("tr", {}, el("th", { scope: "col" }, "Fusion"),
      data.variants.map((v) => el("th", { scope: "col" }, v.name, el("div", { class: "soft" }, rangesOf(v)))));
    const rows = data.fusions.map((name, i) => el("tr", {},
      el("th", { scope: "row" }, swatch(i), name),
      data.variants.map((v) => {
        const counts = v.fusions[i];
        if (!counts || counts.total === 0) return el("td", {}, cell(counts));
        const label = `${name} in ${v.name}`;
        const show = () => { state.fusion = i; go({ variant: v.name }); drawVariant(); };
        return el("td", {}, el("button", { type: "button", "aria-label": `${label}: ${summary(counts)}`, click: show }, cell(counts)));
      })));
    const total = el("tr", {}, el("th", { scope: "row" }, "launches a step"),
      data.variants.map((v) => el("td", {}, `${v.launches[0]} before, ${v.launches[1]} after`)));
    const moved = el("tr", {}, el("th", { scope: "row" }, "bytes a step"),
      data.variants.map((v) => el("td", {}, v.bytes ? `${bytes(v.bytes[0])} before, ${bytes(v.bytes[1])} after` : "-")));
    byId("coverage").replaceChildren(el("thead", {}, head), el("tbody", {}, rows, total, moved));
  }

  function drawTabs() {
    const tabs = data.variants.map((v) => el("button", {
      type: "button", role: "tab", id: `tab-${v.name}`, "aria-controls": "panel",
      "aria-selected": v === state.variant ? "true" : "false", tabindex: v === state.variant ? "0" : "-1",
      click: () => go({ variant: v.name }),
      keydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = data.variants[(data.variants.indexOf(v) + step + data.variants.length) % data.variants.length];
        go({ variant: next.name });
        setTimeout(() => byId(`tab-${next.name}`).focus(), 0);
      },
    }, v.name));
    byId("variants").replaceChildren(...tabs);
  }

  function drawLegend() {
    const buttons = state.variant.fusions.map((counts, i) => counts && counts.total
      ? el("button", {
        type: "button", "aria-pressed": state.fusion === i ? "true" : "false", "data-fusion": fusionName(i),
        click: () => { state.fusion = state.fusion === i ? null : i; drawLegend(); mark(); },
      }, swatch(i), fusionName(i), " ", el("span", { class: "soft" }, summary(counts)))
      : null);
    byId("legend").replaceChildren(...buttons.filter(Boolean));
  }

  function drawFacts() {
    const v = state.variant;
    const dims = Object.entries(v.dims ?? {}).map(([name, n]) => `${name}=${n}`).join(", ");
    const parts = [`Policy ${v.policy}. ${v.launches[0]} launches a step before fusion, ${v.launches[1]} after.`];
    if (v.bytes) parts.push(`${bytes(v.bytes[0])} moved a step before, ${bytes(v.bytes[1])} after${dims ? `, at ${dims}` : ""}.`);
    if (v.disabled.length) parts.push(`Switched off: ${v.disabled.join(", ")}.`);
    byId("facts").textContent = parts.join(" ");
  }

  /** The reason of a place, for one copy of its section: texts name its layer, `at` are node numbers. */
  function reasonAt({ place, section, copy }) {
    const layer = section.layers[copy] ?? null;
    const text = (value) => typeof value === "string" ? path(value, layer) : Array.isArray(value) ? value.map(text) : value;
    const reason = Object.fromEntries(Object.entries(place.reason).map(([name, value]) => [name, text(value)]));
    // The change has a place of its own.
    const tail = `; ${reason.change}`;
    if (reason.change && reason.sentence.endsWith(tail)) reason.sentence = reason.sentence.slice(0, -tail.length);
    reason.at = (place.reason.at ?? []).map((ref) => resolve(state.variant, section, copy, "before", ref));
    return reason;
  }

  function drawKept() {
    const rows = [];
    for (const section of state.variant.sections) {
      for (const place of section.places.filter((p) => p.outcome === "kept")) {
        const layer = section.layers[0] ?? null;
        const reason = reasonAt({ place, section, copy: 0 });
        const number = place.nodes.length ? resolve(state.variant, section, 0, "before", place.nodes[0]) : undefined;
        const shown = place.paths.map((p) => path(p, layer)).join(", ");
        const more = section.layers.length > 1 ? el("span", { class: "soft" }, ` and in layers ${ranges(section.layers.slice(1))}`) : null;
        const open = number === undefined ? shown : el("button", { type: "button", class: "mono", click: () => go({ before: number }) }, shown);
        rows.push(el("tr", {}, el("td", {}, swatch(place.fusion), fusionName(place.fusion)), el("td", {}, open, more),
          el("td", {}, reason.sentence), el("td", {}, reason.change ?? "")));
      }
    }
    byId("left").hidden = rows.length === 0;
    const head = ["Fusion", "Place", "Why", "Smallest change that would let it match"];
    byId("kept").replaceChildren(el("thead", {}, el("tr", {}, head.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, rows));
  }

  // --- The graph. --------------------------------------------------------------------------------------------------------

  /** Rows by longest path, order within a row by the mean place of what it reads: [{ row, x }] by node, and the rows' sizes. */
  function layout(nodes) {
    const inside = nodes.map((n) => (n.operands ?? []).filter((r) => typeof r === "number"));
    const row = nodes.map(() => 0);
    nodes.forEach((_, i) => inside[i].forEach((o) => { if (o < i) row[i] = Math.max(row[i], row[o] + 1); }));
    const rows = [];
    nodes.forEach((_, i) => (rows[row[i]] ??= []).push(i));
    const x = nodes.map(() => 0);
    for (const members of rows) {
      const wish = (i) => inside[i].length ? inside[i].reduce((sum, o) => sum + x[o], 0) / inside[i].length : i / nodes.length;
      members.sort((a, b) => wish(a) - wish(b) || a - b);
      let from = 0;
      // Each as far left as its operands, never over its neighbour.
      for (const i of members) {
        x[i] = Math.max(from, inside[i].length ? Math.floor(wish(i)) : from);
        from = x[i] + 1;
      }
    }
    const height = rows.map((members) => members.some((i) => nodes[i].launch) ? NODE_HEIGHT : VIEW_HEIGHT);
    const top = [];
    height.reduce((y, h, i) => { top[i] = y; return y + h + GAP_Y; }, 0);
    return { row, x, height, top, inside };
  }

  const SVG = "http://www.w3.org/2000/svg";
  function svg(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /** Paths that say the same with less: the layer's own prefix goes. */
  function short(sources, layer) {
    if (!sources.length) return "";
    const own = sources.find((s) => s.includes("{0}")) ?? sources[0];
    const text = own.includes("{0}") ? own.slice(own.indexOf("{0}") + 4) : path(own, layer);
    return sources.length > 1 ? `${text || own} +${sources.length - 1}` : text || path(own, layer);
  }

  function drawSide(section, copy, side) {
    const nodes = section[side];
    const launches = nodes.filter((n) => n.launch).length;
    const title = `${side === "before" ? "Before" : "After"}: ${plural(launches, "launch")}`;
    const { row, x, height, top, inside } = layout(nodes);
    const left = (i) => x[i] * (NODE_WIDTH + GAP_X);
    const canvas = el("div", { class: "canvas" });
    const width = Math.max(0, ...nodes.map((_, i) => left(i) + NODE_WIDTH));
    const total = top.length ? top[top.length - 1] + height[height.length - 1] : 0;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${total}px`;
    const edges = svg("svg", { width, height: total, "aria-hidden": "true" });
    nodes.forEach((_, i) => inside[i].forEach((o) => {
      const tall = (n) => nodes[n].launch ? NODE_HEIGHT : VIEW_HEIGHT;
      const [x1, y1, x2, y2] = [left(o) + NODE_WIDTH / 2, top[row[o]] + tall(o), left(i) + NODE_WIDTH / 2, top[row[i]]];
      const bend = Math.min(40, (y2 - y1) / 2 + 4);
      edges.append(svg("path", { d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, "data-ends": `${o} ${i}` }));
    }));
    canvas.append(edges);
    nodes.forEach((node, i) => {
      const at = model(state.variant).nodes[side].get(section.ids[copy][side][i]);
      const fusions = fusionsOf(at);
      const kept = isKept(at);
      const names = [node.launch ? "node" : "node view", fusions.length ? "fused" : "", kept ? "kept" : ""].filter(Boolean).join(" ");
      const where = node.sources.map((s) => path(s, at.layer)).join(", ");
      const label = [node.op, where, fusions.length ? `fused by ${fusions.map(fusionName).join(", ")}` : "", kept ? "left as it was" : ""];
      const button = el("button", {
        type: "button", class: names, hue: fusions.length ? hue(fusions[0]) : undefined, title: `${node.op} ${node.type}\n${where}`,
        "data-side": side, "data-node": at.number, "data-index": i, "aria-pressed": "false",
        "aria-label": label.filter(Boolean).join("; "), click: () => goNode(at), keydown: (event) => walk(event, at),
      }, `${kept ? "\u26a0 " : ""}${node.op}`,
      node.launch && fusions.length > 1 ? el("span", { class: "more" }, fusions.slice(1).map(swatch)) : null, node.launch ? el("small", {}, short(node.sources, at.layer)) : null);
      button.style.left = `${left(i)}px`;
      button.style.top = `${top[row[i]]}px`;
      button.style.width = `${NODE_WIDTH}px`;
      button.style.height = `${node.launch ? NODE_HEIGHT : VIEW_HEIGHT}px`;
      canvas.append(button);
    });
    return el("div", {}, el("h3", {}, title), el("div", { class: "drawing" }, canvas));
  }

  /** Arrow keys go along edges: up to what a node reads, down to what reads it, left and right by number. */
  function walk(event, at) {
    const { nodes, users } = model(state.variant);
    const order = at.section.ids[at.copy][at.side];
    const next = {
      ArrowUp: () => at.operands[0], ArrowDown: () => (users[at.side].get(at.number) ?? [])[0],
      ArrowLeft: () => order[at.index - 1], ArrowRight: () => order[at.index + 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const target = nodes[at.side].get(next());
    if (!target) return;
    goNode(target);
    setTimeout(() => button(target)?.focus(), 0);
  }

  const title = (section) => {
    if (section.place === "first") return "Before the layers";
    if (section.place === "last") return "After the layers";
    if (section.layers.length === 1) return `Layer ${section.layers[0]}`;
    return `Layers ${ranges(section.layers)}, ${section.layers.length} times the same`;
  };

  const boxes = new Map();
  function fill(section) {
    const box = boxes.get(section);
    const copy = state.shown.get(section) ?? 0;
    const parts = [];
    if (section.layers.length > 1) {
      const choose = el("select", { change: (event) => { state.shown.set(section, Number(event.target.value)); fill(section); mark(); } },
        section.layers.map((layer, i) => el("option", { value: i, selected: i === copy }, `${layer}`)));
      parts.push(el("label", { class: "instance" }, "Shown: layer ", choose));
    }
    parts.push(el("div", { class: "pair" }, SIDES.map((side) => drawSide(section, copy, side))));
    box.body.replaceChildren(...parts);
    box.filled = true;
  }

  function drawGraph() {
    boxes.clear();
    const list = state.variant.sections.map((section, i) => {
      const count = (side) => section[side].filter((n) => n.launch).length;
      const kept = section.places.filter((p) => p.outcome === "kept").length;
      const body = el("div");
      const box = el("details", {
        class: "layers", toggle: () => { if (box.open && !boxes.get(section).filled) { fill(section); mark(); } },
      }, el("summary", {}, el("b", {}, title(section)), `${plural(count("before"), "launch")} before, ${count("after")} after`,
        kept ? el("span", { class: "alarm" }, `; ${plural(kept, "place")} left as ${kept === 1 ? "it was" : "they were"}`) : null), body);
      boxes.set(section, { box, body, filled: false });
      // Few sections are open at once; the others are drawn when they are opened.
      if (i < 4) { fill(section); box.open = true; }
      return box;
    });
    byId("graph").replaceChildren(...list);
  }

  const button = (at) => byId("graph").querySelector(`button[data-side="${at.side}"][data-node="${at.number}"]`);

  /** Selection, its partners on the other side and the chosen fusion, on what is drawn. */
  function mark() {
    const { nodes, became } = model(state.variant);
    const at = state.side && nodes[state.side].get(state.number);
    const partners = new Set(!at ? [] : at.side === "after" ? at.stands : became.get(at.number) ?? []);
    for (const b of byId("graph").querySelectorAll(".node")) {
      const here = nodes[b.dataset.side].get(Number(b.dataset.node));
      const chosen = here === at;
      b.setAttribute("aria-pressed", chosen ? "true" : "false");
      b.classList.toggle("partner", Boolean(at) && here.side !== at.side && partners.has(here.number));
      const counted = placesOf(here).some(({ place }) => place.fusion === state.fusion);
      b.classList.toggle("faded", state.fusion !== null && !counted && !fusionsOf(here).includes(state.fusion));
    }
    for (const line of byId("graph").querySelectorAll("path.lit")) line.classList.remove("lit");
    const chosen = at && button(at);
    if (!chosen) return;
    for (const line of chosen.parentElement.querySelectorAll("path")) {
      line.classList.toggle("lit", line.dataset.ends.split(" ").includes(chosen.dataset.index));
    }
  }

  function select(at) {
    state.side = at ? at.side : null;
    state.number = at ? at.number : null;
    if (at) {
      const { box, filled } = boxes.get(at.section);
      if (!filled || (state.shown.get(at.section) ?? 0) !== at.copy) { state.shown.set(at.section, at.copy); fill(at.section); }
      box.open = true;
    }
    mark();
    drawDetails(at);
    if (at) button(at)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // --- Details of one node. ----------------------------------------------------------------------------------------------

  function links(side, numbers) {
    const { nodes } = model(state.variant);
    const items = numbers.map((n) => nodes[side].get(n)).filter(Boolean).map((at) => {
      const where = at.node.sources.map((s) => path(s, at.layer)).join(", ");
      return el("li", {}, el("button", { type: "button", class: "link", click: () => goNode(at) }, `%${at.number} ${at.node.op}`),
        " ", el("span", { class: "soft" }, where));
    });
    return items.length ? el("ul", {}, items) : el("p", { class: "soft" }, "none in the step");
  }

  function reasonBox(found) {
    const reason = reasonAt(found);
    const change = reason.change ? [el("dt", {}, "smallest change"), el("dd", {}, reason.change)] : [];
    if (reason.why !== "near_miss") return el("div", { class: "miss" }, reason.sentence, el("dl", {}, change));
    return el("div", { class: "miss" }, el("dl", {},
      el("dt", {}, "closest rule"), el("dd", { class: "mono" }, reason.rule),
      el("dt", {}, "predicate"), el("dd", {}, reason.predicate),
      el("dt", {}, "found"), el("dd", { class: "alarm" }, reason.found),
      el("dt", {}, "accepted"), el("dd", {}, reason.accepted),
      change), reason.at.length ? [el("div", { class: "soft" }, "it fails at"), links("before", reason.at)] : []);
  }

  function placeText(found) {
    const { place } = found;
    const head = [swatch(place.fusion), el("b", {}, fusionName(place.fusion)), ": "];
    if (place.outcome === "fused") return el("li", {}, head, `fused into ${place.into}`);
    if (place.outcome === "absorbed") return el("li", {}, head, `nothing left to fuse, absorbed by ${place.into}`);
    return el("li", {}, head, el("span", { class: "alarm" }, "left as it was"), reasonBox(found));
  }

  function chainStep(i) {
    const rule = data.rules[i];
    return el("li", {}, rule.fusion === undefined ? null : swatch(rule.fusion), el("b", {}, rule.rule), " ",
      rule.class ? el("span", { class: "badge" }, rule.class) : null, rule.fusion === undefined ? null : ` ${fusionName(rule.fusion)}`,
      rule.text ? el("code", {}, rule.text) : null);
  }

  function drawDetails(at) {
    const panel = byId("details");
    if (!at) {
      panel.removeAttribute("data-node");
      panel.replaceChildren(el("h3", {}, "Choose a node"), el("p", { class: "soft" },
        "Coloured nodes were fused, dashed ones are places that a fusion left as they were. Arrow keys walk along edges, / goes to the search."));
      return;
    }
    const { node, side } = at;
    const { users, became } = model(state.variant);
    const parts = [el("h3", {}, el("span", { class: "mono" }, `%${at.number} ${node.op}`), ` ${side} fusion`)];
    parts.push(el("dl", {},
      el("dt", {}, "type"), el("dd", { class: "mono" }, node.type),
      at.layer === null ? [] : [el("dt", {}, "layer"), el("dd", {}, `${at.layer}`)],
      el("dt", {}, "launch"), el("dd", {}, node.launch ? "yes" : "no: a view, or computed ahead of the step"),
      node.bytes === undefined ? [] : [el("dt", {}, "bytes moved"), el("dd", {}, bytes(node.bytes))],
      node.launches_saved ? [el("dt", {}, "launches saved"), el("dd", { "data-saved": "launches" }, `${node.launches_saved}`)] : [],
      node.bytes_saved ? [el("dt", {}, "bytes saved"), el("dd", { "data-saved": "bytes" }, bytes(node.bytes_saved))] : []));
    parts.push(el("h3", {}, "Source paths"), el("ul", { class: "mono" }, node.sources.map((s) => el("li", {}, path(s, at.layer)))));
    if (side === "after") {
      const chain = node.chain ?? [];
      parts.push(el("h3", {}, "Rule chain"), chain.length
        ? el("ol", { class: "chain" }, chain.map(chainStep))
        : el("p", { class: "soft" }, "As the model definition has it: no rule made it."));
      parts.push(el("h3", {}, "Stands for"), links("before", at.stands));
    } else {
      const places = placesOf(at);
      parts.push(el("h3", {}, "Fusions here"), places.length
        ? el("ul", {}, places.map(placeText))
        : el("p", { class: "soft" }, "No fusion counts this node as a place of its own."));
      parts.push(el("h3", {}, "Became"), links("after", became.get(at.number) ?? []));
    }
    parts.push(el("h3", {}, "Reads"), links(side, at.operands), el("h3", {}, "Read by"), links(side, users[side].get(at.number) ?? []));
    panel.dataset.node = at.number;
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
  }

  // --- Search. -----------------------------------------------------------------------------------------------------------

  const MOST_FOUND = 40;
  function search(text) {
    const wanted = text.trim().toLowerCase();
    const found = new Map();
    if (!wanted) return found;
    for (const side of ["after", "before"]) {
      for (const at of model(state.variant).nodes[side].values()) {
        for (const source of at.node.sources) {
          const full = path(source, at.layer);
          if (!found.has(full) && full.toLowerCase().includes(wanted)) found.set(full, at);
          if (found.size >= MOST_FOUND) return found;
        }
      }
    }
    return found;
  }

  function drawFound() {
    const list = byId("found");
    const found = search(byId("query").value);
    const items = [...found.keys()].map((full) => el("li", {}, el("button", {
      type: "button", class: "mono", click: () => { list.hidden = true; go({ path: full }); },
    }, full)));
    if (!items.length) items.push(el("li", { class: "soft" }, "no source path holds this"));
    list.replaceChildren(...items);
    list.hidden = byId("query").value.trim() === "";
  }

  byId("query").addEventListener("input", drawFound);
  byId("search").addEventListener("keydown", (event) => {
    const options = [...byId("found").querySelectorAll("button")];
    const here = options.indexOf(document.activeElement);
    if (event.key === "Escape") { byId("found").hidden = true; byId("query").focus(); }
    else if (event.key === "Enter" && here < 0 && options.length) options[0].click();
    else if (event.key === "ArrowDown") { event.preventDefault(); options[Math.min(here + 1, options.length - 1)]?.focus(); }
    else if (event.key === "ArrowUp") { event.preventDefault(); (here > 0 ? options[here - 1] : byId("query")).focus(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); byId("query").focus(); }
  });
  document.addEventListener("click", (event) => { if (!byId("search").contains(event.target)) byId("found").hidden = true; });

  // --- All of it. --------------------------------------------------------------------------------------------------------

  function drawVariant() {
    drawTabs();
    byId("panel").setAttribute("aria-labelledby", `tab-${state.variant.name}`);
    drawFacts();
    drawLegend();
    drawKept();
    drawGraph();
    mark();
  }

  byId("report").hidden = false;
  byId("search").hidden = false;
  drawCoverage();
  drawVariant();
  drawDetails(null);
  if (location.hash) follow();
  else if (data.start !== undefined) select(firstAt(data.start) ?? null);
  window.addEventListener("hashchange", follow);
})();
